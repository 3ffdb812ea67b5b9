// node site_truth.mjs SITE FOLDER: what the site's networks make of FOLDER/task.json, as the browser
// runs them. Writes FOLDER/found.json, and FOLDER/decoded.f32 with the images of the given codes.

import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { gunzipSync } from 'node:zlib';

const [site, folder] = process.argv.slice(2).map((name) => path.resolve(name));
const load = (file) => import(pathToFileURL(path.join(site, file)));
const { Engine } = await load('js/engine.js'), { Grammar } = await load('js/grammar.js');
const { uniform } = await load('js/random.js');
const data = JSON.parse(readFileSync(path.join(site, 'data.json')));
const task = JSON.parse(readFileSync(path.join(folder, 'task.json')));
const ort = await load(data.runtime.library);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = gunzipSync(readFileSync(path.join(site, data.runtime.wasm)));
const engine = new Engine(ort, data, task.variant,
                          async (file) => readFileSync(path.join(site, 'models', file)));
const grammar = new Grammar(data.grammar), pixels = 3 * data.size ** 2;

async function all(list, work) {
  const found = [];
  for (const one of list) found.push(await work(one));
  return found;
}

const bytes = readFileSync(path.join(folder, 'images.f32'));
const images = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const count = Array.from({ length: images.length / pixels }, (_, i) => i);
const encoded = await all(count, (i) => engine.encode(images.slice(i * pixels, (i + 1) * pixels)));
const decoded = await all(task.codes, (codes) => engine.decode(Int32Array.from(codes)));
writeFileSync(path.join(folder, 'decoded.f32'),
              Buffer.concat(decoded.map((x) => Buffer.from(x.buffer, x.byteOffset, x.byteLength))));

const greedy = { greedy: true, seed: 0 };
const { temperature, topK } = data;
const found = {
  codes_found: encoded.map((x) => [...x]),
  described: await all(task.codes, async (codes) =>
    grammar.decode(await engine.describe(Int32Array.from(codes), greedy))),
  painted: await all(task.captions, async (text) =>
    [...await engine.paint(grammar.encode(text), greedy)]),
  sampled: await all(task.captions, async (text) =>
    [...await engine.paint(grammar.encode(text), { seed: task.seed, temperature, topK })]),
  uniform: task.uniform.map(([seed, step]) => uniform(seed, step)),
};
writeFileSync(path.join(folder, 'found.json'), JSON.stringify(found));
