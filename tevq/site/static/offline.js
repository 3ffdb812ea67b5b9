// Keeps what has been loaded, so that the site opens without a network. The network comes first:
// what is kept is never shown while the server answers.

const KEPT = 'tevq-site';

self.addEventListener('fetch', (event) => {
  const { request } = event;
  if (request.method !== 'GET' || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith((async () => {
    try {
      const answer = await fetch(request);
      if (answer.ok) {
        const copy = answer.clone();
        // a full disk is no reason to fail: the page was loaded, it is only not kept
        event.waitUntil(caches.open(KEPT).then((kept) => kept.put(request, copy)).catch(() => {}));
      }
      return answer;
    } catch (error) {
      const found = await caches.match(request, { ignoreSearch: true }).catch(() => null);
      if (found) return found;
      throw error;
    }
  })());
});

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
