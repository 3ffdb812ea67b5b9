// Random numbers and the choice of a token, as in tevq/models/sampling.py: the same seed gives the
// same codes here and there.

const round = (x, factor) => Math.imul(x ^ (x >>> 15), factor);

/** The random number of (seed, step) in [0, 1). seed: whole number from 0 to 2^53. */
export function uniform(seed, step) {
  const words = [seed % 2 ** 32, Math.floor(seed / 2 ** 32), Math.imul(step, 0x9e3779b9)];
  let x = 0;
  for (const word of words) {
    x ^= word | 0;
    x = ((x ^ (x >>> 16)) + 0x6a09e667) | 0; // the constant: zero must not stay zero
    x = round(round(x, 0x21f0aaad), 0x735a2d97);
    x ^= x >>> 15;
  }
  return (x >>> 8) / 2 ** 24;
}

/**
 * Draws a token from logits with the random number u, or takes the likeliest one (greedy).
 * never: token ids that must not be drawn. topK: 0 for no limit.
 */
export function choose(logits, u, { temperature = 1, topK = 0, greedy = false, never = [] } = {}) {
  const values = Float32Array.from(logits);
  for (const id of never) values[id] = -Infinity;
  if (greedy) return values.indexOf(values.reduce((a, b) => Math.max(a, b)));
  let order = [...values.keys()];
  if (topK && topK < order.length) {
    order = order.sort((a, b) => values[b] - values[a]).slice(0, topK);
  }
  const most = order.reduce((a, i) => Math.max(a, values[i]), -Infinity);
  const weights = order.map((i) => Math.fround(Math.exp((values[i] - most) / temperature)));
  let total = 0;
  const cumulative = weights.map((w) => (total = Math.fround(total + w)));
  const found = cumulative.findIndex((c) => c > u * total);
  return order[found < 0 ? weights.findLastIndex((w) => w > 0) : found];
}
