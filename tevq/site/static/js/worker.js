// One variant's networks in a worker of their own, so that the page stays smooth. Messages in:
// {id, call, args}, and {file, bytes} for models that have arrived. Messages out: {id, result},
// {id, error}, {id, progress}.

import { Engine } from './engine.js';

const files = new Map();
let engine, stopped = 0;

/** The place where a file's bytes are waited for. */
function slot(file) {
  if (!files.has(file)) files.set(file, Promise.withResolvers ? Promise.withResolvers() : later());
  return files.get(file);
}

function later() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** Lets messages in between two steps of a long call. */
const pause = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = resolve;
  port2.postMessage(0);
});

const calls = {
  async start({ library, wasm, data, variant, first }) {
    const ort = await import(library);
    ort.env.wasm.numThreads = 1; // more would need headers that plain web servers do not send
    ort.env.wasm.wasmBinary = wasm;
    engine = new Engine(ort, data, variant, (file) => slot(file).promise);
    await engine.session(first);
  },
  warm: ({ kind }) => engine.session(kind).then(() => null),
  encode: ({ image }) => engine.encode(image),
  decode: ({ codes }) => engine.decode(codes),
  classify: ({ image, places }) => engine.classify(image, places),
  describe: ({ codes, options }) => engine.describe(codes, options),
  async paint({ text, options }, report, id) {
    return engine.paint(text, options, async (codes) => {
      report({ codes });
      await pause();
      return id <= stopped;
    });
  },
};

self.onmessage = async ({ data: { id, call, args, file, bytes, error, stop } }) => {
  if (stop) {
    stopped = stop;
  } else if (file) {
    error ? slot(file).reject(new Error(error)) : slot(file).resolve(bytes);
  } else {
    try {
      const report = (progress) => self.postMessage({ id, progress });
      self.postMessage({ id, result: await calls[call](args, report, id) });
    } catch (problem) {
      self.postMessage({ id, error: problem?.message || String(problem) });
    }
  }
};
