// "Code book": what a code looks like and where it occurs; and codes merged by hand.

import { $, cards, make, percent } from './dom.js';
import { cut, inkOf, standIns } from './measures.js';
import { bytesOf, show } from './picture.js';

const COLUMNS = 16;

export class Book {
  constructor(page) {
    const { data } = page;
    Object.assign(this, { page, tiles: {}, where: {} });
    for (const name of data.variants) {
      this.tiles[name] = bytesOf(data.books[name].looks);
      this.where[name] = bytesOf(data.books[name].where);
    }
    $('#looked').textContent = data.books[data.variants[0]].images;
    this.cards = cards('book', data.variants, (name) => [
      make('div', {}, make('canvas', { className: 'pixels shelf', tabIndex: 0, role: 'application',
        'aria-label': `Code book of ${name}. Arrow keys choose a code.` }),
      make('p', {}, 'Nearest: ', make('span', { className: 'strip near' }))),
      make('div', {},
        make('label', {}, 'Code ', make('input', { type: 'number', min: 0, step: 1,
          max: data.transformer.K - 1 })),
        make('p', { className: 'detail', 'aria-live': 'polite' }),
        make('div', { className: 'looks' },
          ...[['tile', 'its average look'], ['where', 'where it occurs: bright is often'],
              ['alone', 'a picture of this code only'], ['middle', 'this code amid the commonest']
          ].map(([kind, words]) => make('figure', {}, make('canvas', { className: `pixels ${kind}` }),
                                        make('figcaption', {}, words)))))]);
    for (const card of Object.values(this.cards)) card.classList.add('book');
    this.merges = cards('merge', data.variants, () => [
      make('canvas', { className: 'pixels', role: 'img', 'aria-label': 'Reconstruction' }),
      make('p', { className: 'number' }, make('b', {}, '–'), ' agreement'),
      make('p', { className: 'hint detail' }), make('p', { className: 'hint error' })]);
    this.controls();
  }

  controls() {
    const { state, data } = this.page, K = data.transformer.K;
    for (const name of data.variants) {
      const shelf = $('.shelf', this.cards[name]);
      shelf.onpointerdown = (event) => {
        const box = shelf.getBoundingClientRect(), part = (at, size) =>
          Math.max(0, Math.min(COLUMNS - 1, Math.floor(at / size * COLUMNS)));
        this.choose(name, part(event.clientY - box.top, box.height) * COLUMNS +
                    part(event.clientX - box.left, box.width));
      };
      shelf.onkeydown = (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: COLUMNS, ArrowUp: -COLUMNS }[event.key];
        if (!step) return;
        event.preventDefault();
        this.choose(name, (state[name] + step + K) % K);
      };
      const number = $('input', this.cards[name]);
      number.oninput = () => number.checkValidity() && number.value !== '' &&
        this.choose(name, Number(number.value));
      number.onchange = () => { number.value = state[name]; }; // instead of what cannot be
    }
    const steps = [];
    for (let n = K; n >= 2; n = Math.floor(n * 0.75)) steps.push(n);
    this.steps = steps;
    Object.assign($('#groups'), { min: 0, max: steps.length - 1, step: 1, oninput: (event) => {
      state.groups = steps[event.target.value];
      this.page.changed();
      this.merge();
    } });
  }

  choose(name, code) {
    this.page.state[name] = code;
    this.page.changed();
    this.entry(name, code);
  }

  /** Shows the chosen codes, and what merging does. */
  async update() {
    const { state, data } = this.page;
    for (const name of data.variants) this.entry(name, state[name]);
    await this.merge();
  }

  entry(name, code) {
    const { data, clients } = this.page, { counts, near, images } = data.books[name];
    const card = this.cards[name], { side, stride } = data, total = images * side ** 2;
    this.shelf(name, code);
    $('input', card).value = code;
    $('.detail', card).textContent = counts[code] ?
      `Used ${counts[code]} times: ${(counts[code] / total * 100).toFixed(2)} % of all squares.` :
      'Not used in these scenes.';
    const tile = $('.tile', card), where = $('.where', card);
    tile.width = tile.height = stride;
    this.tile(tile.getContext('2d'), name, code, 0, 0);
    where.width = where.height = side;
    const context = where.getContext('2d'), shown = context.createImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      const value = this.where[name][code * side * side + i];
      shown.data.set([value, value * 0.75, 40, 255], 4 * i);
    }
    context.putImageData(shown, 0, 0);
    $('.near', card).replaceChildren(...near[code].map((other) => {
      const small = make('canvas', { className: 'pixels', width: stride, height: stride });
      this.tile(small.getContext('2d'), name, other, 0, 0);
      return make('button', { type: 'button', 'aria-label': `Code ${other}`,
        onclick: () => this.choose(name, other) }, small, String(other));
    }));
    const only = new Int32Array(side * side).fill(code), n = side / 2;
    const amid = new Int32Array(side * side).fill(counts.indexOf(Math.max(...counts)));
    for (const at of [0, 1, side, side + 1]) amid[(n - 1) * side + n - 1 + at] = code;
    for (const [kind, codes] of [['alone', only], ['middle', amid]]) {
      clients[name]?.call('decode', { codes }).then((image) => {
        if (this.page.state[name] === code) show($(`.${kind}`, card), image, data.size);
      }).catch(this.page.failed);
    }
  }

  /** Paints the tile of a code with its upper left pixel at (x, y). */
  tile(context, name, code, x, y) {
    const { stride } = this.page.data, shown = context.createImageData(stride, stride);
    for (let i = 0; i < stride * stride; i++) {
      const at = (code * stride * stride + i) * 3;
      shown.data.set([...this.tiles[name].subarray(at, at + 3), 255], 4 * i);
    }
    context.putImageData(shown, x, y);
  }

  shelf(name, chosen) {
    const { stride } = this.page.data, shelf = $('.shelf', this.cards[name]);
    const { counts } = this.page.data.books[name], pitch = stride + 1;
    shelf.width = shelf.height = COLUMNS * pitch + 1;
    const context = shelf.getContext('2d');
    counts.forEach((count, code) => count && this.tile(context, name, code,
      1 + (code % COLUMNS) * pitch, 1 + Math.floor(code / COLUMNS) * pitch));
    context.strokeStyle = '#ff2e88';
    context.lineWidth = 1;
    context.strokeRect((chosen % COLUMNS) * pitch + 0.5, Math.floor(chosen / COLUMNS) * pitch + 0.5,
                       pitch, pitch);
  }

  /** Joined codes: the reconstruction of the dragged digit, and its agreement. */
  async merge() {
    const { state, data, drag, clients } = this.page, step = this.steps.findIndex(
      (n) => n <= state.groups), groups = this.steps[step < 0 ? this.steps.length - 1 : step];
    $('#groups').value = this.steps.indexOf(groups);
    $('#groups').setAttribute('aria-valuetext', `${groups} codes`);
    $('#groups').nextElementSibling.textContent = groups;
    const turn = this.turn = (this.turn ?? 0) + 1;
    show($('#dragged'), drag.now, data.size);
    await Promise.all(Object.entries(clients).map(async ([name, client]) => {
      const { tree, counts } = data.books[name], groupOf = cut(tree, groups);
      const latest = drag.latest[name];
      if (!latest) return;
      const found = drag.compare(latest.first, inkOf(drag.picture(0, 0), data.size, data.stride),
        latest.codes, drag.now, state.right, state.down, groupOf);
      const card = this.merges[name], instead = standIns(groupOf, counts);
      $('b', card).textContent = percent(found.agreement);
      const used = new Set(counts.flatMap((count, code) => (count ? [groupOf[code]] : [])));
      $('.detail', card).textContent = `kappa ${found.kappa === null ? '–' : found.kappa.toFixed(2)} · ` +
        `${used.size} of ${groups} codes in use · ${found.marked.length} squares changed`;
      const image = await client.call('decode', { codes: latest.codes.map((code) => instead[code]) });
      if (turn !== this.turn) return;
      show($('canvas', card), image, data.size);
      const off = image.reduce((sum, value, i) => sum + Math.abs(value - drag.now[i]), 0);
      $('.error', card).textContent = `The picture is off by ${
        (off / image.length / 2 * 100).toFixed(1)} % of the brightness, on average.`;
    })).catch(this.page.failed);
  }
}
