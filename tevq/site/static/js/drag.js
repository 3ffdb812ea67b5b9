// "Drag a digit": the picture, its codes in both variants, and how far they agree.

import { $, cards, choices, make, percent } from './dom.js';
import { agreement, inkOf, nearestCell, windowOf } from './measures.js';
import { blank, bytesOf, drawItem, show, showCodes } from './picture.js';
import { pack, unpack } from './state.js';
import { Curve } from './curve.js';

export class Drag {
  /** page: {data, state, clients, changed(), failed(error)}. */
  constructor(page) {
    Object.assign(this, { page, latest: {}, reference: {}, move: 0 });
    const { data } = page, n = data.item ** 2, pixels = bytesOf(data.digits.pixels);
    this.items = data.digits.labels.map((_, i) => pixels.subarray(i * n, (i + 1) * n));
    this.cards = cards('drag', data.variants, () => [
      make('canvas', { className: 'codes', role: 'img', 'aria-label': 'Codes' }),
      make('p', { className: 'number' }, make('b', {}, '–'), ' agreement'),
      make('p', { className: 'hint detail' })]);
    this.curve = new Curve($('#curve'), data.variants);
    this.controls();
    this.hand();
    this.pad();
  }

  /** The bytes of the chosen or drawn digit. */
  get item() {
    const { state } = this.page;
    return state.drawn ? unpack(state.drawn) : this.items[state.digit % this.items.length];
  }

  controls() {
    const { data, state } = this.page, { labels } = data.digits, { names, colours } = data.grammar;
    const thumbs = this.items.map((item) => {
      const canvas = make('canvas', { className: 'pixels' });
      const picture = drawItem(blank(data.item), data.item, item, data.item, [1, 1, 1], 0, 0);
      show(canvas, picture, data.item);
      return canvas;
    });
    this.pressDigit = choices($('#digits'), thumbs, (i) => `${names[labels[i]]}, sample ${i + 1}`,
      (i) => this.set({ digit: i, drawn: null }));
    const dots = data.rgb.map((rgb, i) => make('span', { className: `dot ${colours[i]}` }));
    this.pressColour = choices($('#colours'), dots, (i) => colours[i], (i) =>
      this.set({ colour: i }));
    for (const name of ['right', 'down']) {
      $(`#${name}`).oninput = (event) => this.set({ [name]: Number(event.target.value) });
    }
    $('#home').onclick = () => this.set({ right: 0, down: 0 });
    $('#sweep').onclick = () => this.sweep();
    this.pressDigit(state.digit);
  }

  /** Mouse, finger and arrow keys on the picture. */
  hand() {
    const scene = $('#scene');
    let from = null;
    scene.onpointerdown = (event) => {
      const { right, down } = this.page.state;
      from = { x: event.clientX, y: event.clientY, right, down };
      scene.setPointerCapture(event.pointerId);
    };
    scene.onpointermove = (event) => {
      if (!from) return;
      const scale = this.page.data.size / scene.getBoundingClientRect().width;
      this.set({ right: from.right + Math.round((event.clientX - from.x) * scale),
                 down: from.down + Math.round((event.clientY - from.y) * scale) });
    };
    scene.onpointerup = scene.onpointercancel = () => { from = null; };
    scene.onkeydown = (event) => {
      const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1],
                     ArrowUp: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const { right, down } = this.page.state, by = event.shiftKey ? this.page.data.stride : 1;
      this.set({ right: right + by * step[0], down: down + by * step[1] });
    };
  }

  /** The pad on which a digit is drawn, with a soft pen as thick as the digits'. */
  pad() {
    const pad = $('#pad'), { item: s } = this.page.data, context = pad.getContext('2d', { willReadFrequently: true });
    const ready = () => {
      context.fillStyle = '#000';
      context.fillRect(0, 0, s, s);
    };
    let last = null, item = new Uint8Array(s * s);
    const at = (event) => {
      const box = pad.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width * s, (event.clientY - box.top) / box.height * s];
    };
    const stroke = (event) => {
      const to = at(event);
      Object.assign(context, { strokeStyle: '#fff', lineWidth: 2.6, lineCap: 'round' });
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(to[0] + 0.01, to[1]);
      context.stroke();
      last = to;
      const { data } = context.getImageData(0, 0, s, s);
      item = item.map((_, i) => data[4 * i]);
      this.set({ drawn: pack(item) });
    };
    pad.onpointerdown = (event) => {
      pad.setPointerCapture(event.pointerId);
      last = at(event);
      stroke(event);
    };
    pad.onpointermove = (event) => last && stroke(event);
    pad.onpointerup = pad.onpointercancel = () => { last = null; };
    $('#wipe').onclick = () => {
      ready();
      this.set({ drawn: null });
    };
    ready();
  }

  /** Changes the state within its limits, and shows it. */
  set(change) {
    const { state } = this.page;
    Object.assign(state, change);
    for (const name of ['right', 'down']) state[name] = Math.max(0, Math.min(32, state[name]));
    this.page.changed();
    return this.update();
  }

  /** The picture with the digit moved so far from the upper left. */
  picture(right, down) {
    const { data, state } = this.page, [top, left] = data.offsets[0];
    return drawItem(blank(data.size), data.size, this.item, data.item, data.rgb[state.colour],
                    top + down, left + right);
  }

  /** Draws the picture at once, the codes as soon as they are known. */
  async update() {
    const { data, state } = this.page, { right, down } = state;
    const picture = this.now = this.picture(right, down);
    show($('#scene'), picture, data.size);
    $('#where').textContent = `Moved by ${right} px to the right and ${down} px down`;
    for (const name of ['right', 'down']) {
      $(`#${name}`).value = state[name];
      $(`#${name}`).nextElementSibling.textContent = `${state[name]} px`;
    }
    this.pressDigit(state.drawn ? -1 : state.digit);
    this.pressColour(state.colour);
    const key = `${state.drawn ?? state.digit}/${state.colour}`, move = this.move += 1;
    await Promise.all(data.variants.map((name) =>
      this.measure(name, key, picture, right, down, move))).catch(this.page.failed);
    clearTimeout(this.saying); // for screen readers: once the digit rests
    this.saying = setTimeout(() => this.say(), 500);
  }

  /** Codes of one variant for a picture, against those of the same digit at the start. */
  async measure(name, key, picture, right, down, move) {
    const { clients, data } = this.page, client = clients[name];
    if (!client) return;
    if (this.reference[name]?.key !== key) {
      const start = this.picture(0, 0);
      const mine = this.reference[name] = { key, ink: inkOf(start, data.size, data.stride) };
      mine.codes = client.call('encode', { image: start });
      mine.codes.catch(() => { delete this.reference[name]; });
      this.curve.clear();
    }
    const reference = this.reference[name], first = await reference.codes;
    const codes = await client.newest(picture);
    if (!codes || this.reference[name] !== reference) return;
    const found = this.compare(first, reference.ink, codes, picture, right, down);
    this.latest[name] = { codes, first, ...found };
    this.draw(name);
    this.curve.add(name, move, found.agreement);
  }

  /** Agreement on the digit, optionally with merged codes: groups[code]. */
  compare(first, firstInk, codes, picture, right, down, groups = null) {
    const { side, size, stride } = this.page.data, n = side / 2;
    const row = nearestCell(down, stride), column = nearestCell(right, stride);
    const merged = (list) => (groups ? list.map((code) => groups[code]) : list);
    const a = merged(windowOf(first, side, 0, 0, n)), b = merged(windowOf(codes, side, row, column, n));
    const inkA = windowOf(firstInk, side, 0, 0, n);
    const inkB = windowOf(inkOf(picture, size, stride), side, row, column, n);
    const mask = inkA.map((ink, i) => ink || inkB[i]);
    const marked = a.flatMap((code, i) => (code === b[i] ? [] :
      [(row + Math.floor(i / n)) * side + column + (i % n)]));
    return { ...agreement(a, b, mask), frame: { row, column, n }, marked };
  }

  draw(name) {
    const card = this.cards[name], { side } = this.page.data, shown = this.latest[name];
    showCodes($('canvas', card), shown.codes, side, shown);
    const { agreement: share, kappa, n, marked } = shown;
    $('b', card).textContent = percent(share);
    $('.detail', card).textContent = `kappa ${kappa === null ? '–' : kappa.toFixed(2)} · ` +
      `${n} squares on the digit · ${marked.length} changed in the window`;
    $('canvas', card).setAttribute('aria-label',
      `Codes of ${name}: ${marked.length} squares changed, agreement ${percent(share)}`);
  }

  say() {
    const told = this.page.data.variants.flatMap((name) =>
      (this.latest[name] ? [`${name} ${percent(this.latest[name].agreement)}`] : []));
    if (told.length) $('#heard').textContent = `${$('#where').textContent}. Agreement: ${told.join(', ')}.`;
  }

  /** Moves the digit pixel by pixel, to the right and then down; says how fast that went. */
  async sweep() {
    if (this.sweeping) {
      this.sweeping = false;
      return;
    }
    this.sweeping = true;
    $('#sweep').textContent = 'Stop';
    this.curve.clear();
    const began = performance.now();
    let moves = 0;
    for (; moves <= 64 && this.sweeping; moves++) {
      await this.set({ right: Math.min(moves, 32), down: Math.max(0, moves - 32) });
      if (!this.page.ready) await new Promise(requestAnimationFrame);
    }
    if (moves > 8 && this.page.ready) {
      $('#rate').textContent = `This machine made ${
        Math.round(moves / (performance.now() - began) * 1000)} moves a second.`;
    }
    this.sweeping = false;
    $('#sweep').textContent = 'Move it step by step';
  }
}
