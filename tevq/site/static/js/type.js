// "Type a caption": both transformers paint it, and the classifier reads what they painted.

import { $, cards, make } from './dom.js';
import { bytesOf, mosaic, show } from './picture.js';

export class Type {
  constructor(page) {
    Object.assign(this, { page, painted: {}, tiles: {} });
    const { data } = page;
    for (const name of data.variants) this.tiles[name] = bytesOf(data.books[name].looks);
    this.cards = cards('type', data.variants, (name) => [
      make('canvas', { className: 'pixels', width: data.size, height: data.size, role: 'img',
                       'aria-label': `Painting of ${name}` }),
      make('progress', { max: data.side ** 2, value: 0, 'aria-label': `Codes of ${name}` }),
      make('ul', { className: 'readings' })]);
    this.form();
  }

  form() {
    const { state, data } = this.page;
    $('#ask').onsubmit = (event) => {
      event.preventDefault();
      this.paint();
    };
    $('#caption').onkeydown = (event) => {
      if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault();
        this.paint();
      }
    };
    $('#caption').oninput = () => {
      state.caption = $('#caption').value;
      this.page.changed();
      this.check();
    };
    $('#another').onclick = () => {
      state.seed += 1;
      state.greedy = false;
      this.fill();
      this.paint();
    };
    $('#surprise').onclick = () => {
      const captions = data.captions.filter((text) => text !== state.caption);
      state.caption = captions[Math.floor(Math.random() * captions.length)];
      this.fill();
      this.paint();
    };
    for (const [id, name, read] of [
      ['greedy', 'greedy', (e) => e.checked], ['temperature', 'temperature', (e) => Number(e.value)],
      ['topk', 'topk', (e) => Number(e.value)], ['seed', 'seed', (e) => Number(e.value)]]) {
      $(`#${id}`).oninput = (event) => {
        if (!event.target.checkValidity() || event.target.value === '') return;
        state[name] = read(event.target);
        this.fill();
        this.page.changed();
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

  /** Says what is wrong with the caption and suggests words; its clauses, or null. */
  check() {
    const { grammar } = this.page, text = $('#caption').value, tidy = grammar.tidy(text);
    const unknown = grammar.unknown(tidy), { clauses, problems } = grammar.parse(tidy);
    const problem = !tidy ? 'Type a caption, or take another one.' : unknown.length ?
      `'${unknown[0]}' is not a word of these captions. Known: ${
        grammar.known.filter((word) => /[a-z]/.test(word)).join(' ')}` :
      problems.length ? `${problems[0]}. A good one: 'the upper left is blue ${
        grammar.names.at(-1)}.'` : '';
    $('#problem').textContent = problem;
    $('#problem').className = problem && tidy ? 'bad' : '';
    this.suggest(text, grammar);
    return problem ? null : { text: tidy, clauses };
  }

  suggest(text, grammar) {
    const box = $('#words');
    box.replaceChildren(...grammar.suggest(text, 40).map((word) => make('button', {
      type: 'button', onclick: () => {
        const start = text.replace(/[^\s,.]*$/, '');
        $('#caption').value = `${start && !/\s$/.test(start) ? `${start} ` : start}${word} `;
        $('#caption').oninput();
        $('#caption').focus();
      } }, word)));
  }

  async paint() {
    const { page, painted } = this, { state, data, clients } = page, asked = this.check();
    if (!asked) {
      $('#caption').focus();
      return;
    }
    page.changed();
    const began = performance.now(), turn = this.turn = (this.turn ?? 0) + 1;
    const { temperature, topk: topK, greedy, seed } = state;
    $('#painted').textContent = 'Painting …';
    const text = page.grammar.encode(asked.text), options = { temperature, topK, greedy, seed };
    await Promise.all(Object.entries(clients).map(async ([name, client]) => {
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
        image, places: asked.clauses.map((clause) => clause.place) }));
    })).then(() => {
      if (turn !== this.turn) return;
      const seconds = (performance.now() - began) / 1000;
      this.seconds = seconds;
      $('#painted').textContent = `Painted ${greedy ? 'greedily' : `with seed ${seed}`} in ` +
        `${seconds.toFixed(2)} s: “${asked.text}”`;
    }).catch(page.failed);
  }

  /** An unfinished painting: decoded now and then, the newest codes as their tiles. */
  async grow(name, some) {
    const { data, clients } = this.page, all = new Int32Array(data.side ** 2).fill(-1);
    all.set(some);
    const picture = mosaic(all, this.tiles[name], data.size, data.stride);
    this.shown(name, picture, some.length);
  }

  shown(name, picture, count) {
    show($('canvas', this.cards[name]), picture, this.page.data.size);
    $('progress', this.cards[name]).value = count;
  }

  /** What was asked, and under it what the classifier sees there. */
  readings(name, clauses, seen) {
    const { grammar } = this.page, { places, colours, names } = grammar;
    $('ul', this.cards[name]).replaceChildren(...clauses.map((clause, i) => {
      const right = seen && seen[i].label === clause.label && seen[i].colour === clause.colour;
      const mark = seen ? make('span', { className: right ? 'yes' : 'no' }, right ? '✓ ' : '✗ ') : '… ';
      const tag = grammar.isHeldOut(clause) ? make('span', { className: 'tag' }, 'never shown') : null;
      const read = seen && !right ? make('small', {}, ` looks like ${colours[seen[i].colour]} ` +
        names[seen[i].label]) : null;
      return make('li', {}, mark, `${places[clause.place]}: ${colours[clause.colour]} ` +
        names[clause.label], read, tag ? ' ' : null, tag);
    }));
  }
}
