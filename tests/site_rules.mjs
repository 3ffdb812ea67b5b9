// node site_rules.mjs SITE: reads tasks as JSON from standard input, lets the scripts of the
// playground do them, and prints what they found. No network runs.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const site = path.resolve(process.argv[2]);
const load = (file) => import(pathToFileURL(path.join(site, 'js', file)));
const [{ Grammar }, { choose }, measures] = await Promise.all(
  ['grammar.js', 'random.js', 'measures.js'].map(load));
const data = JSON.parse(readFileSync(path.join(site, 'data.json')));
const grammar = new Grammar(data.grammar);

const found = {
  parse: ({ texts }) => texts.map((text) => grammar.parse(text)),
  encode: ({ texts }) => texts.map((text) => [...grammar.encode(text)]),
  heldOut: ({ clauses }) => clauses.map((clause) => grammar.isHeldOut(clause)),
  choose: ({ logits, u, options }) => logits.map((row, i) => choose(row, u[i], options)),
  agreement: ({ a, b, mask }) => measures.agreement(a, b, mask),
  cut: ({ variant, groups }) => measures.cut(data.books[variant].tree, groups),
  ink: ({ images, places }) => images.map((image, i) =>
    measures.unasked(image, places[i].map((place) => ({ place })), data)),
  nearest: ({ pixels, stride }) => pixels.map((p) => measures.nearestCell(p, stride)),
};
console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(({ task, ...rest }) =>
  found[task](rest))));
