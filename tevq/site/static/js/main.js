// The playground: loads the networks, says how far that is and what goes wrong, and switches
// between its four parts.

import { Book } from './book.js';
import { Client, Files } from './client.js';
import { Describe } from './describe.js';
import { $ } from './dom.js';
import { Drag } from './drag.js';
import { Grammar } from './grammar.js';
import { bytesOf } from './picture.js';
import * as address from './state.js';
import { Type, firstCaption } from './type.js';

const PARTS = ['drag', 'type', 'describe', 'book'];
const page = { clients: {}, seen: new Set() };

/** Shows one line about what went wrong, and a button to try again if that may help. */
function alertOf(text, again = null) {
  const box = $('#alert');
  box.hidden = !text;
  $('span', box).textContent = text;
  const button = $('button', box);
  button.hidden = !again;
  button.onclick = again;
}

page.failed = (error) => {
  console.error(error);
  alertOf(`This did not work: ${error.message}.`, () => location.reload());
};

/** Why nothing can be computed now, or nothing. */
page.waits = () => (page.ready ? '' : page.broken ? 'The networks cannot run here; see above.' :
  'The networks are still being loaded.');

let saving;
page.changed = () => {
  clearTimeout(saving);
  saving = setTimeout(() => history.replaceState(null, '',
    `#${address.write(page.state, page.start)}`), 250);
};

/** Shows one of the parts; tells it, so that it draws what it needs. */
function open(tab, focus = false) {
  page.state.tab = tab;
  page.changed();
  for (const part of PARTS) {
    const chosen = part === tab, button = $(`#tab-${part}`);
    $(`#${part}`).hidden = !chosen;
    button.setAttribute('aria-selected', String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) button.focus();
  }
  return refresh();
}

/** Draws the open part anew; the first time also what needs the networks. */
async function refresh() {
  const { tab } = page.state, { drag, type, describe, book } = page;
  if (tab === 'drag') await drag.update();
  if (!page.ready) return;
  const first = !page.seen.has(tab);
  page.seen.add(tab);
  if (tab === 'type' && first) await type.paint();
  if (tab === 'describe' && first) await describe.take(page.state.take);
  if (tab === 'book') {
    await drag.update(); // the picture whose codes are merged
    await book.update();
  }
}

function tabs() {
  PARTS.forEach((part, i) => {
    const button = $(`#tab-${part}`);
    button.onclick = () => open(part);
    button.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) open(PARTS[(i + step + PARTS.length) % PARTS.length], true);
    };
  });
  $('#link').onclick = async () => {
    const link = `${location.href.split('#')[0]}#${address.write(page.state, page.start)}`;
    history.replaceState(null, '', link);
    await navigator.clipboard?.writeText(link).then(
      () => { $('#copied').textContent = 'Copied.'; },
      () => { $('#copied').textContent = 'Copy the address of this page instead.'; });
  };
}

/** A worker a variant; both get the files as they arrive. */
async function load() {
  const { data } = page;
  if (typeof WebAssembly !== 'object') {
    throw new Error('this browser does not run WebAssembly, which the networks need');
  }
  if (!data.runtime) throw new Error(data.noRuntime);
  const bar = $('#bytes');
  const files = new Files(data.files, (got, total) => {
    bar.value = got / total;
    bar.previousElementSibling.textContent = got < total ?
      `Loading the networks: ${(got / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB` :
      'Starting the networks …';
  });
  const wasm = files.get(data.runtime.wasm); // first: it takes longest
  const library = new URL(data.runtime.library, location.href).href;
  const made = Object.fromEntries(data.variants.map((name) => [name, new Client(name)]));
  const models = Object.keys(data.files).filter((name) => name.endsWith('.onnx'));
  for (const path of models) {
    const file = path.split('/').at(-1);
    const takers = Object.values(made).filter(({ variant }) =>
      file.startsWith(`${variant}-`) || file === 'classifier.onnx');
    files.get(path).then((bytes) => takers.forEach((client) => client.give(file, bytes)), (error) =>
      takers.forEach((client) => client.give(file, null, error.message)));
  }
  const bytes = await wasm, first = page.state.tab === 'type' ? 'transformer' : 'encoder';
  await Promise.all(Object.values(made).map((client) =>
    client.call('start', { library, wasm: bytes, data, variant: client.variant, first })));
  page.clients = made;
  return made;
}

async function warm() {
  for (const kind of ['encoder', 'decoder', 'transformer', 'classifier']) {
    await Promise.all(Object.values(page.clients).map((client) => client.call('warm', { kind })));
  }
}

/** Loads; on failure the page says why, and everything that needs no network still works. */
async function begin() {
  alertOf('');
  $('#loading').hidden = false;
  try {
    await load();
    page.ready = true;
    $('#loading').hidden = true;
    document.body.dataset.ready = 'codes';
    await refresh();
    await warm();
    document.body.dataset.ready = 'all';
  } catch (error) {
    console.error(error);
    page.broken = true;
    $('#loading').hidden = true;
    alertOf(`The networks cannot run here: ${error.message}. The text below and all other pages ` +
            'of this site work without them.', () => location.reload());
  }
}

/** Lets the page open without a network: what came before the service worker is kept, too. */
async function keep() {
  if (!navigator.serviceWorker || page.broken) return;
  const first = !navigator.serviceWorker.controller;
  await navigator.serviceWorker.register('offline.js');
  await navigator.serviceWorker.ready;
  if (first) {
    const files = performance.getEntriesByType('resource').map(({ name }) => name).filter((name) =>
      name.startsWith(location.origin));
    const inWorkers = ['worker', 'engine', 'random'].map((name) => `js/${name}.js`);
    const kept = await caches.open('tevq-site'); // as in offline.js
    await kept.addAll([...new Set([location.pathname, ...files, ...inWorkers, page.data.runtime.library].map(
      (file) => new URL(file, location.href.split('#')[0]).href))]);
  }
  document.body.dataset.kept = 'yes';
}

async function main() {
  const answer = await fetch('data.json').catch(() => null);
  if (!answer?.ok) {
    $('#loading').hidden = true;
    alertOf('data.json cannot be loaded: the network or the server is away.', () => location.reload());
    return;
  }
  const data = page.data = await answer.json();
  const bright = (name) => { // the used code that looks brightest: something to see
    const { looks, counts } = data.books[name], bytes = bytesOf(looks), n = bytes.length / counts.length;
    const light = counts.map((count, code) =>
      (count ? bytes.subarray(code * n, (code + 1) * n).reduce((a, b) => a + b, 0) : -1));
    return light.indexOf(Math.max(...light));
  };
  page.grammar = new Grammar(data.grammar);
  page.start = { tab: 'drag', digit: data.digits.labels.indexOf(5), colour: 0, right: 2, down: 0,
                 drawn: null, caption: firstCaption(data.grammar), greedy: true, seed: 0,
                 temperature: data.temperature, topk: data.topK, take: 'scene', scene: 0,
                 sc: bright('sc'), te: bright('te'), groups: data.transformer.K };
  page.state = address.read(location.hash, page.start);
  page.drag = new Drag(page);
  page.type = new Type(page);
  page.describe = new Describe(page);
  page.book = new Book(page);
  tabs();
  addEventListener('hashchange', () => {
    Object.assign(page.state, address.read(location.hash, page.start));
    page.type.fill();
    page.seen.clear();
    open(page.state.tab);
  });
  await open(page.state.tab);
  await begin();
  await keep().catch(() => {}); // a full disk, a private window: then only not offline
}

main().catch(page.failed);
