// node js/measure.mjs [SITE]: how long the networks take in WebAssembly on this machine, in a
// sentence for the site's first page.

import { readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { Engine } from './engine.js';
import { Grammar } from './grammar.js';

const site = path.resolve(process.argv[2] ?? '.'), read = (file) => readFileSync(path.join(site, file));
const data = JSON.parse(read('data.json'));
const ort = await import(path.join(site, data.runtime.library));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = gunzipSync(read(data.runtime.wasm));
const engine = new Engine(ort, data, data.variants[0], async (file) => read(`models/${file}`));
const text = new Grammar(data.grammar).encode(data.captions[0]);

async function seconds(work, times = 1) {
  const began = performance.now();
  for (let i = 0; i < times; i++) await work();
  return (performance.now() - began) / 1000 / times;
}

let codes;
const paint = async () => {
  codes = await engine.paint(text, { greedy: true, seed: 0 });
  await engine.decode(codes);
};
const first = await seconds(paint), later = await seconds(paint);
const image = await engine.decode(codes);
await engine.encode(image);
const moves = 1 / await seconds(() => engine.encode(image), 20);
console.log(`Measured when the site was built, with one variant, in Node ${process.versions.node}, ` +
  `on one thread of ${os.cpus()[0].model}, load ${os.loadavg()[0].toFixed(1)} on ` +
  `${os.cpus().length} cores: the first picture after ${first.toFixed(1)} s, later ones after ` +
  `${later.toFixed(2)} s, ${moves.toFixed(0)} moves of a digit a second.`);
