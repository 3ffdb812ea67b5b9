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
      make('canvas', { className: 'pixels shelf', tabIndex: 0, role: 'application',
        'aria-label': `Code book of ${name}. Arrow keys choose a code.` }),
      make('p', { className: 'detail', 'aria-live': 'polite' }),
      make('div', { className: 'looks' },
        ...[['tile', 'on average'], ['alone', 'everywhere'], ['where', 'where it occurs']].map(
          ([kind, words]) => make('figure', {}, make('canvas', { className: `pixels ${kind}` }),
                                  make('figcaption', {}, words)))),
      make('p', {}, 'Nearest: ', make('span', { className: 'strip near' }))]);
    this.merges = cards('merge', data.variants, () => [
      make('canvas', { className: 'pixels', role: 'img', 'aria-label': 'Reconstruction' }),
      make('p', { className: 'number' }, make('b', {}, '–'), ' agreement'),
      make('p', { className: 'hint detail' })]);
    this.controls();
  }

  controls() {
    const { state, data } = this.page, K = data.transformer.K;
    for (const name of data.variants) {
      const shelf = $('.shelf', this.cards[name]);
      shelf.onpointerdown = (event) => {
        const box = shelf.getBoundingClientRect(), part = (at, size) =>
          Math.max(0, Math.min(COLUMNS - 1, Math.floor(at / size * COLUMNS)));
        this.choose(part(event.clientY - box.top, box.height) * COLUMNS +
                    part(event.clientX - box.left, box.width));
      };
      shelf.onkeydown = (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: COLUMNS, ArrowUp: -COLUMNS }[event.key];
        if (!step) return;
        event.preventDefault();
        this.choose((state.code + step + K) % K);
      };
    }
    $('#code').oninput = (event) => event.target.checkValidity() && event.target.value !== '' &&
      this.choose(Number(event.target.value));
    const steps = [];
    for (let n = K; n >= 2; n = Math.round(n * 0.75)) steps.push(n);
    this.steps = steps;
    Object.assign($('#groups'), { min: 0, max: steps.length - 1, step: 1, oninput: (event) => {
      state.groups = steps[event.target.value];
      this.page.changed();
      this.merge();
    } });
  }

  choose(code) {
    this.page.state.code = code;
    this.page.changed();
    return this.update();
  }

  /** Shows the chosen code in both books. */
  async update() {
    const { state, data } = this.page;
    $('#code').value = state.code;
    for (const name of data.variants) this.entry(name, state.code);
    await this.merge();
  }

  entry(name, code) {
    const { data, clients } = this.page, { counts, near, images } = data.books[name];
    const card = this.cards[name], { side, stride } = data, total = images * side ** 2;
    this.shelf(name, code);
    $('.detail', card).textContent = counts[code] ?
      `Code ${code}: ${counts[code]} times, ${(counts[code] / total * 100).toFixed(2)} % of all` :
      `Code ${code}: not used in these scenes`;
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
        onclick: () => this.choose(other) }, small, String(other));
    }));
    const codes = new Int32Array(side * side).fill(code);
    clients[name]?.call('decode', { codes }).then((image) => {
      if (this.page.state.code === code) show($('.alone', card), image, data.size);
    }).catch(this.page.failed);
  }

  /** Paints the tile of a code with its upper left pixel at (x, y). */
  tile(context, name, code, x, y, faint = false) {
    const { stride } = this.page.data, shown = context.createImageData(stride, stride);
    for (let i = 0; i < stride * stride; i++) {
      const at = (code * stride * stride + i) * 3;
      shown.data.set([...this.tiles[name].subarray(at, at + 3), faint ? 70 : 255], 4 * i);
    }
    context.putImageData(shown, x, y);
  }

  shelf(name, chosen) {
    const { stride } = this.page.data, shelf = $('.shelf', this.cards[name]);
    const { counts } = this.page.data.books[name], pitch = stride + 1;
    shelf.width = shelf.height = COLUMNS * pitch + 1;
    const context = shelf.getContext('2d');
    counts.forEach((count, code) => this.tile(context, name, code, 1 + (code % COLUMNS) * pitch,
      1 + Math.floor(code / COLUMNS) * pitch, !count));
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
      if (turn === this.turn) show($('canvas', card), image, data.size);
    })).catch(this.page.failed);
  }
}
