// What the page knows of the workers: calls with answers, files with progress, the newest image
// only.

/** Fetches files once each and says how many bytes of all have come. */
export class Files {
  constructor(sizes, onProgress) {
    Object.assign(this, { sizes, onProgress, got: 0, found: new Map() });
    this.total = Object.values(sizes).reduce((a, b) => a + b, 0);
  }

  get(name) {
    if (!this.found.has(name)) {
      const coming = this.fetch(name);
      coming.catch(() => this.found.delete(name)); // so that it can be tried again
      this.found.set(name, coming);
    }
    return this.found.get(name);
  }

  async fetch(name) {
    const answer = await fetch(name).catch(() => {
      throw new Error(`${name} cannot be loaded; is the network or the server away?`);
    });
    if (!answer.ok) throw new Error(`${name} cannot be loaded: the server says ${answer.status}`);
    const parts = [], reader = answer.body.getReader();
    let size = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      size += value.length;
      this.got += value.length;
      this.onProgress(Math.min(this.got, this.total), this.total);
    }
    const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
    return bytes[0] === 0x1f && bytes[1] === 0x8b ? unzip(bytes) : bytes;
  }
}

async function unzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** A variant's worker. Every call gives a promise of its result. */
export class Client {
  constructor(variant) {
    this.variant = variant;
    this.count = 0;
    this.waiting = new Map();
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.worker.onmessage = ({ data: { id, result, error, progress } }) => {
      const { resolve, reject, onProgress } = this.waiting.get(id) ?? {};
      if (progress) return onProgress?.(progress);
      this.waiting.delete(id);
      error ? reject?.(new Error(error)) : resolve?.(result);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      for (const { reject } of this.waiting.values()) {
        reject(new Error(event.message || 'the worker of this page could not be started'));
      }
      this.waiting.clear();
    };
  }

  call(call, args, onProgress) {
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, onProgress });
      this.worker.postMessage({ id, call, args });
    });
  }

  give(file, bytes, error) {
    this.worker.postMessage({ file, bytes, error });
  }

  /** Ends the paintings that have been started; they give null. */
  stop() {
    this.worker.postMessage({ stop: this.count });
  }

  /** Codes of the newest image. While one is at work, images in between are dropped: null. */
  async newest(image) {
    if (this.busy) {
      this.next?.resolve(null);
      return new Promise((resolve, reject) => {
        this.next = { image, resolve, reject };
      });
    }
    this.busy = true;
    try {
      return await this.call('encode', { image });
    } finally {
      this.busy = false;
      const { next } = this;
      this.next = null;
      if (next) this.newest(next.image).then(next.resolve, next.reject);
    }
  }
}
