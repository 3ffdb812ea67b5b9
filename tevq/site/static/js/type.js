// "Type a caption": both transformers paint it, and the classifier reads what they painted.

import { $, cards, make } from './dom.js';
import { hasInk, unasked } from './measures.js';
import { bytesOf, mosaic, show } from './picture.js';

const any = (list) => list[Math.floor(Math.random() * list.length)];

/** A caption to begin with: one digit as training shows it, and one that it never shows. */
export function firstCaption({ placeWords, colours, names, heldOut }) {
  const rare = 3 % names.length, [colour, place] = heldOut[rare];
  return `the ${placeWords[(place + 2) % 4][0]} is ${colours[(colour + 2) % 4]} ${
    names[7 % names.length]}, and the ${placeWords[place][0]} shows a ${colours[colour]} ${names[rare]}.`;
}

/** A caption drawn at random: one to four digits in corners. */
function anyCaption({ templates, placeWords, colours, names, connectors }) {
  const places = [0, 1, 2, 3].sort(() => Math.random() - 0.5).slice(0, any([1, 2, 3, 4]));
  return places.map((place, i) => (i ? `${any(connectors)} ` : '') + any(templates)
    .replace('{place}', any(placeWords[place])).replace('{colour}', any(colours))
    .replace('{label}', any(names))).join('') + '.';
}

export class Type {
  constructor(page) {
    Object.assign(this, { page, painted: {}, tiles: {} });
    const { data } = page;
    for (const name of data.variants) this.tiles[name] = bytesOf(data.books[name].looks);
    this.cards = cards('type', data.variants, (name) => [
      make('div', { className: 'painting' }, make('canvas', { className: 'pixels', width: data.size,
        height: data.size, role: 'img', 'aria-label': `Painting of ${name}` })),
      make('progress', { max: data.side ** 2, value: 0, 'aria-label': `Codes of ${name}` }),
      make('ul', { className: 'readings' })]);
    this.form();
  }

  form() {
    const { state, data } = this.page, box = $('#caption');
    const submit = (event) => {
      event.preventDefault();
      this.paint();
    };
    $('#ask').onsubmit = submit;
    box.onkeydown = (event) => {
      if (event.key === 'Enter' && !event.shiftKey) submit(event);
    };
    box.oninput = () => {
      state.caption = box.value;
      this.page.changed();
      this.check();
    };
    $('#another').onclick = () => {
      state.seed += state.greedy ? 0 : 1;
      state.greedy = false;
      this.fill();
      this.paint();
    };
    $('#surprise').onclick = () => {
      state.caption = anyCaption(data.grammar);
      this.fill();
      this.paint();
    };
    for (const [id, read] of [['greedy', (e) => e.checked], ['temperature', (e) => Number(e.value)],
      ['topk', (e) => Number(e.value)], ['seed', (e) => Number(e.value)]]) {
      const input = $(`#${id}`);
      input.oninput = () => {
        if (!input.checkValidity() || input.value === '') return;
        state[id] = read(input);
        this.fill();
      };
      input.onchange = () => { // what cannot be is replaced by what is
        if (!input.checkValidity() || input.value === '') {
          $('#painted').textContent = `${input.value || 'Nothing'} cannot be used there: choose a ` +
            `whole number from ${input.min} to ${input.max}.`;
          this.fill();
        } else {
          this.paint();
        }
      };
    }
    this.fill();
  }

  /** Shows the state in the form. */
  fill() {
    const { state } = this.page;
    if ($('#caption').value !== state.caption) $('#caption').value = state.caption;
    $('#greedy').checked = state.greedy;
    $('#temperature').value = state.temperature;
    $('#temperature').nextElementSibling.textContent = state.temperature.toFixed(2);
    for (const name of ['topk', 'seed']) $(`#${name}`).value = state[name];
    for (const name of ['temperature', 'topk', 'seed']) $(`#${name}`).disabled = state.greedy;
    this.page.changed();
    this.check();
  }

  /**
   * Says what is wrong with the caption and suggests words; what was asked, or null. done: nobody
   * is typing any more, so that what is unfinished is wrong, too.
   */
  check(done = false) {
    const { grammar } = this.page, text = $('#caption').value, tidy = grammar.tidy(text);
    const { clauses, problems } = grammar.parse(tidy), rest = /[^\s,.]*$/.exec(text)[0];
    const begun = (word) => word === rest.toLowerCase() && grammar.known.some((k) => k.startsWith(word));
    const unknown = grammar.unknown(tidy).filter((word) => done || !begun(word));
    const problem = unknown.length ?
      `“${unknown[0]}” is not a word of these captions. Known are: ${
        grammar.known.filter((word) => /[a-z]/.test(word)).join(' ')}` :
      !done ? '' : !tidy ? 'Type a caption first, or take another one.' :
        problems.length ? `This cannot be painted: ${problems[0]}. A good caption is: ${
          firstCaption(this.page.data.grammar)}` : '';
    $('#problem').textContent = problem;
    $('#problem').className = problem ? 'bad' : '';
    this.suggest(text);
    return tidy && !unknown.length && !problems.length ? { text: tidy, clauses } : null;
  }

  /** Buttons for the words that may come next. */
  suggest(text) {
    const rest = /[^\s,.]*$/.exec(text)[0];
    $('#words').replaceChildren(...this.fitting(text).map((word) => make('button', {
      type: 'button', onclick: () => {
        const start = text.slice(0, /^[,.]/.test(word) ? undefined : text.length - rest.length);
        const gap = !start || /\s$/.test(start) || /^[,.]/.test(word) ? '' : ' ';
        $('#caption').value = `${/^[,.]/.test(word) ? start.trimEnd() : start}${gap}${word}${
          word === '.' ? '' : ' '}`;
        $('#caption').oninput();
        $('#caption').focus();
      } }, word)));
  }

  /** The words that may complete or follow a text, in the order of the grammar. */
  fitting(text) {
    const { grammar } = this.page, { connectors } = this.page.data.grammar;
    if (/\.\s*$/.test(text)) return [];
    const units = text.toLowerCase().split(','), unit = units.at(-1).trimStart();
    const words = unit.split(/\s+/), rest = words.pop(), whole = grammar.tidy(text);
    const next = new Set(this.clauses(units.length > 1).flatMap((clause) =>
      (words.every((word, i) => clause[i] === word) && clause[words.length]?.startsWith(rest) &&
       clause[words.length] !== rest ? [clause[words.length]] : [])));
    const found = grammar.known.filter((word) => next.has(word));
    if (!found.length && !grammar.parse(whole).problems.length) return ['.', ...connectors];
    if (found.length || !rest) return found;
    return next.size ? [] : this.fitting(`${text} `); // a word is complete: what comes after it
  }

  /** All clauses, as lists of words; linked ones begin with a connector. */
  clauses(linked) {
    const { templates, placeWords, colours, names, connectors } = this.page.data.grammar;
    const spread = (texts, slot, words) => texts.flatMap((text) =>
      words.map((word) => text.replace(slot, word)));
    let texts = linked ? connectors.flatMap((c) => templates.map((t) => `${c.slice(1)} ${t}`.trim())) :
      templates;
    texts = spread(texts, '{place}', placeWords.flat());
    texts = spread(spread(texts, '{colour}', colours), '{label}', names);
    this.known ??= {};
    return this.known[linked] ??= texts.map((text) => text.split(' '));
  }

  async paint() {
    const { page, painted } = this, { state, clients } = page, asked = this.check(true);
    if (!asked) return $('#caption').focus();
    if (page.waits()) {
      $('#painted').textContent = page.waits();
      return null;
    }
    const began = performance.now(), turn = this.turn = (this.turn ?? 0) + 1;
    const { temperature, topk: topK, greedy, seed } = state;
    $('#painted').textContent = 'Painting …';
    const text = page.grammar.encode(asked.text), options = { temperature, topK, greedy, seed };
    return Promise.all(Object.entries(clients).map(async ([name, client]) => {
      client.stop();
      painted[name] = null;
      this.readings(name, asked.clauses, null);
      const codes = await client.call('paint', { text, options },
                                      ({ codes: some }) => turn === this.turn && this.grow(name, some));
      if (!codes || turn !== this.turn) return;
      const image = await client.call('decode', { codes });
      if (turn !== this.turn) return;
      painted[name] = { codes, image, clauses: asked.clauses };
      this.shown(name, image, codes.length);
      this.readings(name, asked.clauses, await client.call('classify', {
        image, places: asked.clauses.map((clause) => clause.place) }), image);
    })).then(() => {
      if (turn !== this.turn) return;
      $('#painted').textContent = `Painted ${greedy ? 'greedily' : `with seed ${seed}`} in ${
        ((performance.now() - began) / 1000).toFixed(2)} s.`;
    }).catch(page.failed);
  }

  /** An unfinished painting: what is there as tiles of the code book. */
  grow(name, some) {
    const { data } = this.page, all = new Int32Array(data.side ** 2).fill(-1);
    all.set(some);
    this.shown(name, mosaic(all, this.tiles[name], data.size, data.stride), some.length);
  }

  shown(name, picture, count) {
    show($('canvas', this.cards[name]), picture, this.page.data.size);
    $('progress', this.cards[name]).value = count;
  }

  /** A line per clause: what was asked, and what is there; then corners that should be empty. */
  readings(name, clauses, seen, image = null) {
    const { grammar, data } = this.page, { places, colours, names } = grammar, card = this.cards[name];
    const marks = [], signs = { yes: '✓', no: '✗' };
    const line = (place, kind, ...said) => {
      const [top, left] = data.offsets[place].map((at, k) =>
        (at + data.item * (k ? 0.5 : 1)) / data.size * 100);
      if (kind) marks.push(make('span', { className: `mark ${kind}`, 'aria-hidden': 'true',
                                          style: `top: ${top}%; left: ${left}%` }, signs[kind]));
      return make('li', {}, make('span', { className: kind }, `${signs[kind] ?? '…'} `), ...said);
    };
    const lines = clauses.map((clause, i) => {
      const right = seen && seen[i].label === clause.label && seen[i].colour === clause.colour;
      const read = seen && !right ? make('small', {}, hasInk(image, clause.place, data) ?
        ` looks like ${colours[seen[i].colour]} ${names[seen[i].label]}` : ' nothing is there') : null;
      return line(clause.place, !seen ? '' : right ? 'yes' : 'no',
        `${places[clause.place]}: ${colours[clause.colour]} ${names[clause.label]} `,
        grammar.isHeldOut(clause) ? make('span', { className: 'tag' }, 'never shown') : null, read);
    });
    const wrong = seen ? unasked(image, clauses, data) : [];
    lines.push(...wrong.map((place) => line(place, 'no', `${places[place]} should be empty`)));
    $('ul', card).replaceChildren(...lines);
    for (const mark of card.querySelectorAll('.mark')) mark.remove();
    $('.painting', card).append(...marks);
  }
}
