// How far codes agree when a digit has moved: as in tevq/evaluate/equivariance.py. And where there is
// ink: as in tevq/evaluate/metrics.py.

/** The aligned position nearest to a shift, in cells; half a stride counts as not yet moved. */
export const nearestCell = (pixels, stride) => Math.ceil(pixels / stride - 0.5);

/** The n x n window of a grid (side x side) whose upper left cell is (row, column). */
export function windowOf(grid, side, row, column, n) {
  const found = [];
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) found.push(grid[(row + i) * side + column + j]);
  }
  return found;
}

/** Which cells show any ink: pixels (3, S, S) in [-1, 1] -> booleans (side * side). */
export function inkOf(pixels, S, stride) {
  const side = S / stride, ink = new Array(side * side).fill(false);
  for (let i = 0; i < pixels.length; i++) {
    if (pixels[i] > -1 + 1e-3) {
      const at = i % (S * S);
      ink[Math.floor(Math.floor(at / S) / stride) * side + Math.floor((at % S) / stride)] = true;
    }
  }
  return ink;
}

/**
 * Whether a place of an image (3, S, S) in [-1, 1] has ink. facts: data.json; center: only what lies
 * outside the center's cell counts.
 */
export function hasInk(image, place, { size, item, offsets, ink }, center = false) {
  const [top, left] = offsets[place], inside = (at) => at >= size / 4 && at < size - size / 4;
  let found = 0;
  for (let y = top; y < top + item; y++) {
    for (let x = left; x < left + item; x++) {
      if (center && inside(y) && inside(x)) continue;
      const at = y * size + x, plane = size * size;
      found += Math.max(image[at], image[at + plane], image[at + 2 * plane]) > 2 * ink.level - 1;
    }
  }
  return found >= ink.pixels;
}

/** The corners with ink that no clause asks for. */
export function unasked(image, clauses, facts) {
  const named = clauses.map((clause) => clause.place), corners = [0, 1, 2, 3];
  const center = named.includes(corners.length);
  return corners.filter((place) => !named.includes(place) && hasInk(image, place, facts, center));
}

/**
 * Agreement of two windows of codes over the cells where `mask` is true: {agreement, kappa, n}.
 * kappa is null when one code covers everything.
 */
export function agreement(a, b, mask) {
  const count = [new Map(), new Map()];
  let n = 0, same = 0;
  mask.forEach((use, i) => {
    if (!use) return;
    n += 1;
    same += a[i] === b[i];
    [a[i], b[i]].forEach((code, k) => count[k].set(code, (count[k].get(code) ?? 0) + 1));
  });
  const observed = same / Math.max(n, 1);
  let chance = 0;
  for (const [code, times] of count[0]) chance += (times / n) * ((count[1].get(code) ?? 0) / n);
  const kappa = chance > 1 - 1e-9 || !n ? null : (observed - chance) / (1 - chance);
  return { agreement: observed, kappa, n };
}

/**
 * The group of every code when only `groups` groups are left: the nearest two are joined first
 * (Ward). tree: pairs of nodes in the order in which they are joined; node K + i is pair i.
 */
export function cut(tree, groups) {
  const K = tree.length + 1, parent = [...Array(2 * K - 1).keys()];
  tree.slice(0, K - groups).forEach(([a, b], i) => {
    parent[a] = parent[b] = K + i;
  });
  const top = (node) => (parent[node] === node ? node : top(parent[node]));
  return Array.from({ length: K }, (_, code) => top(code));
}

/** For every code the most used code of its group, which stands for the group in pictures. */
export function standIns(groups, counts) {
  const best = new Map();
  groups.forEach((group, code) => {
    if (!best.has(group) || counts[code] > counts[best.get(group)]) best.set(group, code);
  });
  return groups.map((group) => best.get(group));
}
