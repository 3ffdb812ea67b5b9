// The playground: loads the networks, says how far that is and what goes wrong, and switches
// between its four parts.

import { Book } from './book.js';
import { Client, Files } from './client.js';
import { Describe } from './describe.js';
import { $ } from './dom.js';
import { Drag } from './drag.js';
import { Grammar } from './grammar.js';
import * as address from './state.js';
import { Type } from './type.js';

const PARTS = ['drag', 'type', 'describe', 'book'];
const page = { clients: {}, parts: {} };

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
  if (tab === 'type' && !type.turn) await type.paint();
  if (tab === 'describe' && !describe.turn) await describe.take('scene');
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
  const bytes = await wasm;
  await Promise.all(Object.values(made).map((client) =>
    client.call('start', { library, wasm: bytes, data, variant: client.variant })));
  page.clients = made;
  return made;
}

async function warm() {
  for (const kind of ['decoder', 'transformer', 'classifier']) {
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
    $('#loading').hidden = true;
    alertOf(`The networks cannot run here: ${error.message}. The text below and all other pages ` +
            'of this site work without them.', () => location.reload());
  }
}

async function main() {
  const answer = await fetch('data.json').catch(() => null);
  if (!answer?.ok) {
    $('#loading').hidden = true;
    alertOf('data.json cannot be loaded: the network or the server is away.', () => location.reload());
    return;
  }
  const data = page.data = await answer.json();
  page.start = { tab: 'drag', digit: data.digits.labels.indexOf(5), colour: 0, right: 0, down: 0,
                 drawn: null, caption: data.captions[0], greedy: true, seed: 0,
                 temperature: data.temperature, topk: data.topK, code: 0,
                 groups: data.transformer.K };
  page.state = address.read(location.hash, page.start);
  page.grammar = new Grammar(data.grammar);
  page.drag = new Drag(page);
  page.type = new Type(page);
  page.describe = new Describe(page);
  page.book = new Book(page);
  tabs();
  addEventListener('hashchange', () => {
    Object.assign(page.state, address.read(location.hash, page.start));
    page.type.fill();
    open(page.state.tab);
  });
  await open(page.state.tab);
  await begin();
  navigator.serviceWorker?.register('offline.js').catch(() => {}); // only for reading offline
}

main().catch(page.failed);
