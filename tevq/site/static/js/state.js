// What the page shows, and the link that shows it again: everything stands in the address.

const NUMBERS = { digit: [0, 999], colour: [0, 3], right: [0, 32], down: [0, 32], sc: [0, 255],
                  te: [0, 255], scene: [0, 2147483647], groups: [1, 256], topk: [0, 256], seed: [0, 2147483647] };

/** The state of an address; what is wrong or missing there is as in `start`. */
export function read(hash, start) {
  const given = new URLSearchParams(hash.replace(/^#/, '')), state = { ...start };
  for (const [name, [low, high]] of Object.entries(NUMBERS)) {
    const value = Number(given.get(name) ?? NaN);
    if (Number.isInteger(value) && value >= low && value <= high) state[name] = value;
  }
  const temperature = Number(given.get('temperature') ?? NaN);
  if (temperature >= 0.1 && temperature <= 2) state.temperature = temperature;
  if (['drag', 'type', 'describe', 'book'].includes(given.get('tab'))) state.tab = given.get('tab');
  if (['scene', 'drag', 'sc', 'te'].includes(given.get('take'))) state.take = given.get('take');
  if (given.has('greedy')) state.greedy = given.get('greedy') === '1';
  if (given.has('caption')) state.caption = given.get('caption').slice(0, 600);
  if (/^[A-Za-z0-9_-]{523}$/.test(given.get('drawn') ?? '')) state.drawn = given.get('drawn');
  return state;
}

/** The part of the address that gives this state; what is as in `start` is left out. */
export function write(state, start) {
  const kept = Object.entries(state).filter(([name, value]) => value !== start[name] && value != null);
  return new URLSearchParams(kept.map(([name, value]) =>
    [name, typeof value === 'boolean' ? Number(value) : value])).toString();
}

/** A drawn digit (28 x 28 bytes) as text, in 16 shades. */
export function pack(item) {
  const bytes = Uint8Array.from({ length: item.length / 2 }, (_, i) =>
    ((item[2 * i] >> 4) << 4) | (item[2 * i + 1] >> 4));
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, '-').replace(/\//g, '_')
    .replace(/=+$/, '');
}

export function unpack(text) {
  const bytes = atob(text.replace(/-/g, '+').replace(/_/g, '/'));
  return Uint8Array.from({ length: bytes.length * 2 }, (_, i) => {
    const shade = (bytes.charCodeAt(i >> 1) >> (i % 2 ? 0 : 4)) & 15;
    return shade * 17;
  });
}
