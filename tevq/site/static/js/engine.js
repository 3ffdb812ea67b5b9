// One variant's networks, run by onnxruntime-web. Works in a worker of a browser and in Node.
// Images are Float32Array (3, S, S) in [-1, 1]; codes are Int32Array (side * side) in raster order.

import { choose, uniform } from './random.js';

const PAUSE = 16; // steps between two chances for messages to arrive

export class Engine {
  /** ort: the module of onnxruntime-web; data: data.json; read(file) -> bytes of a model. */
  constructor(ort, data, variant, read) {
    Object.assign(this, { ort, data, variant, read, sessions: new Map() });
  }

  /** The session of 'encoder', 'decoder', 'transformer' or 'classifier', made once. */
  session(kind) {
    if (!this.sessions.has(kind)) {
      const file = kind === 'classifier' ? 'classifier.onnx' : `${this.variant}-${kind}.onnx`;
      const made = this.read(file).then((bytes) => this.ort.InferenceSession.create(
        bytes, { executionProviders: ['wasm'], graphOptimizationLevel: 'all' }));
      made.catch(() => this.sessions.delete(kind)); // so that it can be tried again
      this.sessions.set(kind, made);
    }
    return this.sessions.get(kind);
  }

  async run(kind, inputs) {
    return (await this.session(kind)).run(inputs);
  }

  ints(values, shape) {
    return new this.ort.Tensor('int32', Int32Array.from(values), shape);
  }

  async encode(image) {
    const { size } = this.data;
    const images = new this.ort.Tensor('float32', image, [1, 3, size, size]);
    const found = await this.run('encoder', { images });
    return Int32Array.from(Object.values(found)[0].data);
  }

  async decode(codes) {
    const { side } = this.data;
    const found = await this.run('decoder', { codes: this.ints(codes, [1, side, side]) });
    return Float32Array.from(Object.values(found)[0].data);
  }

  /** What the classifier sees at places (indices): [{label, colour}]. */
  async classify(image, places) {
    const { size, item, offsets } = this.data;
    const crops = new Float32Array(places.length * 3 * item * item);
    let at = 0;
    for (const place of places) {
      const [top, left] = offsets[place];
      for (let channel = 0; channel < 3; channel++) {
        for (let row = top; row < top + item; row++) {
          const from = (channel * size + row) * size + left;
          crops.set(image.subarray(from, from + item), at);
          at += item;
        }
      }
    }
    const tensor = new this.ort.Tensor('float32', crops, [places.length, 3, item, item]);
    const [labels, colours] = Object.values(await this.run('classifier', { crops: tensor }));
    return places.map((_, i) => ({ label: labels.data[i], colour: colours.data[i] }));
  }

  /** Inputs of a token: what it sees of its own block, by the tables of the transformer. */
  near(kind, tokens, position) {
    const { sources, none } = this.data.transformer[kind];
    return sources[position].map((source) => (source < 0 ? none : tokens[source]));
  }

  /** Codes for token ids; onCodes(codes so far) -> true stops. */
  async paint(text, options, onCodes = () => false) {
    const { L } = this.data.transformer, N = this.data.side ** 2;
    const codes = new Int32Array(N), steps = new Steps(this);
    for (let i = 0; i < L; i++) steps.add(this.near('words', text, i), null, i);
    for (let step = 0; step < N; step++) {
      const { image } = await steps.run();
      codes[step] = choose(image, uniform(options.seed * 2 ** 32, step), options);
      steps.add(null, this.near('codes', codes, step), L + step);
      if (step % PAUSE === PAUSE - 1 && (await onCodes(codes.slice(0, step + 1)))) return null;
    }
    return codes;
  }

  /** Token ids of a caption for codes. */
  async describe(codes, options) {
    const { words: { none }, L } = this.data.transformer, { bos, eos, pad } = this.data.grammar;
    const text = new Int32Array(L).fill(pad), steps = new Steps(this);
    text[0] = bos;
    codes.forEach((_, i) => steps.add(null, this.near('codes', codes, i), L + i));
    for (let step = 1; step < L; step++) {
      steps.add(this.near('words', text, step - 1), null, step - 1);
      const { words } = await steps.run();
      text[step] = choose(words, uniform(options.seed * 2 ** 32, step),
                          { ...options, never: [pad, bos] });
      if (text[step] === eos) break;
    }
    return text;
  }
}

/** Tokens on their way through the transformer: those to come, and what is kept of those before. */
class Steps {
  constructor(engine) {
    const { depth, heads, head, L } = engine.data.transformer;
    this.engine = engine;
    this.shape = [depth, 2, heads, head];
    this.row = depth * 2 * heads * head;
    this.kept = new Float32Array((L + engine.data.side ** 2) * this.row);
    this.past = 0;
    this.clear();
  }

  clear() {
    this.words = [];
    this.codes = [];
    this.position = [];
  }

  /** Adds a token: what it sees as a word, or as a code (the other is null), and its position. */
  add(words, codes, position) {
    const { words: w, codes: c } = this.engine.data.transformer;
    this.words.push(...(words ?? w.sources[0].map(() => w.none)));
    this.codes.push(...(codes ?? c.sources[0].map(() => c.none)));
    this.position.push(position);
  }

  /** Runs the added tokens: logits of the next word and of the next code. */
  async run() {
    const { engine, past, row } = this, n = this.position.length;
    const kept = new engine.ort.Tensor('float32', this.kept.subarray(0, past * row),
                                       [past, ...this.shape]);
    const found = await engine.run('transformer', {
      words: engine.ints(this.words, [n, this.words.length / n]),
      codes: engine.ints(this.codes, [n, this.codes.length / n]),
      position: engine.ints(this.position, [n]), kept });
    const [words, image, added] = Object.values(found);
    this.kept.set(added.data, past * row);
    this.past += n;
    this.clear();
    return { words: words.data, image: image.data };
  }
}
