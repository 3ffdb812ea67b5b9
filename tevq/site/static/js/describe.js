// "Describe": what each model says of a picture.

import { $, cards, make } from './dom.js';
import { blank, bytesOf, drawItem, fromFile, show } from './picture.js';
import { uniform } from './random.js';

export class Describe {
  constructor(page) {
    this.page = page;
    this.cards = cards('describe', page.data.variants, (name) => [
      make('canvas', { className: 'pixels', role: 'img', width: page.data.size,
        height: page.data.size, 'aria-label': `The picture as the codes of ${name} keep it` }),
      make('p', { className: 'hint' }, 'What the codes keep of it'),
      make('p', { className: 'says', 'aria-live': 'polite' }, '–')]);
    for (const button of document.querySelectorAll('[data-take]')) {
      button.onclick = () => {
        if (button.dataset.take === 'scene') page.state.scene += page.state.take === 'scene' ? 1 : 0;
        this.take(button.dataset.take);
      };
    }
    $('#file').onchange = (event) => event.target.files[0] && this.open(event.target.files[0]);
    const panel = $('#describe');
    panel.ondragover = (event) => event.preventDefault();
    panel.ondrop = (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.open(event.dataTransfer.files[0]);
    };
  }

  /** Takes a scene, or the picture that another part of the page shows. */
  async take(from) {
    const { drag, type, state, data, changed } = this.page;
    state.take = from;
    changed();
    this.press(from);
    if (from === 'scene') return this.look(...this.scene(state.scene));
    if (from === 'drag') return this.look(drag.picture(state.right, state.down));
    if (!type.painted[from]) await type.paint();
    const painted = type.painted[from];
    if (painted) return this.look(painted.image, painted.clauses);
    $('#refused').textContent = this.page.waits() ||
      `There is no painting of ${from} yet: paint one under “Type a caption” first.`;
    return null;
  }

  press(from) {
    $('#refused').textContent = '';
    for (const button of document.querySelectorAll('[data-take]')) {
      button.setAttribute('aria-pressed', String(button.dataset.take === from));
    }
  }

  /** A picture with one to four digits, drawn at random from a seed, and what it shows. */
  scene(seed) {
    const { data } = this.page, pixels = bytesOf(data.digits.pixels), n = data.item ** 2;
    let step = 0;
    const any = (count) => Math.floor(uniform(seed * 2 ** 32, step++) * count);
    const picture = blank(data.size), places = [0, 1, 2, 3], clauses = [];
    for (let count = 1 + any(4); count; count--) {
      const [place] = places.splice(any(places.length), 1), colour = any(data.rgb.length);
      const digit = any(data.digits.labels.length);
      drawItem(picture, data.size, pixels.subarray(digit * n, (digit + 1) * n), data.item,
               data.rgb[colour], ...data.offsets[place]);
      clauses.push({ place, colour, label: data.digits.labels[digit] });
    }
    return [picture, clauses];
  }

  /** A file of the reader; what is no image is refused, and the last picture stays. */
  async open(file) {
    try {
      const picture = await fromFile(file, this.page.data.size);
      this.press('');
      await this.look(picture);
    } catch (error) {
      $('#refused').textContent = error.message;
    }
    $('#file').value = '';
  }

  /** Shows a picture and lets both models describe it. clauses: what it shows, if known. */
  async look(picture, clauses = null) {
    const { page } = this, { data, grammar, clients } = page;
    const turn = this.turn = (this.turn ?? 0) + 1;
    this.picture = picture;
    show($('#picture'), picture, data.size);
    const say = ({ place, colour, label }) =>
      `${grammar.places[place]} ${grammar.colours[colour]} ${grammar.names[label]}`;
    $('#truth').textContent = clauses ? `It shows: ${clauses.map(say).join(', ')}.` : '';
    if (page.waits()) $('#refused').textContent = page.waits();
    await Promise.all(Object.entries(clients).map(async ([name, client]) => {
      const card = this.cards[name], says = $('.says', card);
      says.textContent = '…';
      const codes = await client.call('encode', { image: picture });
      const seen = await client.call('decode', { codes });
      if (turn !== this.turn) return;
      show($('canvas', card), seen, data.size);
      const ids = await client.call('describe', { codes, options: { greedy: true, seed: 0 } });
      if (turn !== this.turn) return;
      const text = grammar.decode(ids);
      says.replaceChildren(`“${text}”`, ...this.verdict(text, clauses));
    })).catch(page.failed);
  }

  /** How many of the digits are told right, where it is known what there is. */
  verdict(text, clauses) {
    if (!clauses) return [];
    const told = this.page.grammar.parse(text).clauses;
    const right = clauses.filter((c) => told.some((t) => t.place === c.place &&
      t.colour === c.colour && t.label === c.label)).length;
    const all = right === clauses.length && told.length === clauses.length;
    return [make('small', { className: all ? 'yes' : 'no' },
                 ` ${all ? '✓' : '✗'} ${right} of ${clauses.length} right`)];
  }
}
