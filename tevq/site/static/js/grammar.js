// Captions: words to token ids and back, the strict parser, and the combinations of digit, colour
// and place that training never shows. All words come from data.json, which tevq writes.

export class Grammar {
  constructor({ words, pad, bos, eos, length, templates, places, placeWords, colours, connectors,
                names, heldOut }) {
    Object.assign(this, { words, pad, bos, eos, length, places, placeWords, colours, names,
                          heldOut });
    this.ids = new Map(words.map((word, id) => [word, id]));
    this.known = words.slice(eos + 1);
    this.center = places.length - 1;
    const fill = (template, linked) => new RegExp(
      '^' + (linked ? `(?:${connectors.map((c) => c.slice(1)).join('|')}) ` : '') + template
        .replace('{place}', `(?<place>${placeWords.flat().join('|')})`)
        .replace('{colour}', `(?<colour>${colours.join('|')})`)
        .replace('{label}', `(?<label>${names.join('|')})`) + '$');
    this.first = templates.map((template) => fill(template, false));
    this.linked = templates.map((template) => fill(template, true));
  }

  /** What people type, written as the grammar writes it: small letters, single spaces, a stop. */
  tidy(text) {
    const words = text.toLowerCase().match(/[,.]|[^\s,.]+/g) ?? [];
    while (words.at(-1) === '.') words.pop();
    return words.length ? this.join([...words, '.']) : '';
  }

  join(words) {
    return words.reduce((text, word) => text + (/^[,.]$/.test(word) || !text ? '' : ' ') + word, '');
  }

  /** Words that no caption has. */
  unknown(text) {
    return (text.match(/[,.]|[^\s,.]+/g) ?? []).filter((word) => !this.known.includes(word));
  }

  /** Token ids: BOS, words, EOS, then PAD up to the full length. */
  encode(text) {
    const ids = new Int32Array(this.length).fill(this.pad);
    const words = (text.match(/[,.]|[^\s,.]+/g) ?? []).map((word) => this.ids.get(word));
    ids.set([this.bos, ...words, this.eos]);
    return ids;
  }

  decode(ids) {
    const end = ids.indexOf(this.eos);
    return this.join([...ids.slice(1, end < 0 ? undefined : end)].map((id) => this.words[id]));
  }

  /**
   * Strict reading of a caption: {clauses: [{place, colour, label}], problems: [text]}. The same
   * rules as tevq/data/captions.py: parse.
   */
  parse(text) {
    const problems = text.endsWith('.') ? [] : ['no full stop at the end'];
    let found = [];
    const units = text.replace(/\.$/, '').split(',');
    units.forEach((unit, index) => {
      const match = (index ? this.linked : this.first).map((p) => p.exec(unit)).find(Boolean);
      if (match) {
        const { place, colour, label } = match.groups;
        found.push({ place: this.placeWords.findIndex((words) => words.includes(place)),
                     colour: this.colours.indexOf(colour), label: this.names.indexOf(label) });
      } else {
        const bad = unit.split(/\s+/).find((word) => word && !this.known.includes(word));
        problems.push(bad ? `unknown word '${bad}'` : `not a clause: '${unit.trim()}'`);
      }
    });
    this.places.forEach((name, place) => {
      const same = found.filter((clause) => clause.place === place);
      if (same.length > 1) {
        const equal = same.every((c) => c.colour === same[0].colour && c.label === same[0].label);
        problems.push(`${equal ? 'duplicate' : 'contradictory'} clauses: ${name} ` +
                      `${same.length} times`);
        found = found.filter((clause) => clause.place !== place);
      }
    });
    if (units.length > 1 && found.some((clause) => clause.place === this.center)) {
      problems.push('center beside other clauses');
      found = found.filter((clause) => clause.place !== this.center);
    }
    return { clauses: found, problems };
  }

  /** Whether training never shows this digit in this colour at this place. */
  isHeldOut({ place, colour, label }) {
    return this.heldOut[label][0] === colour && this.heldOut[label][1] === place;
  }

  /** Words that may complete the last word of an unfinished text, at most n. */
  suggest(text, n = 12) {
    const last = /[^\s,.]*$/.exec(text)[0].toLowerCase();
    return this.known.filter((word) => word !== last && word.startsWith(last) &&
                             (last || /[a-z]/.test(word))).slice(0, n);
  }
}
