// "Describe": what each model says of a picture.

import { $, cards, make } from './dom.js';
import { blank, bytesOf, drawItem, fromFile, show } from './picture.js';

export class Describe {
  constructor(page) {
    this.page = page;
    this.cards = cards('describe', page.data.variants, (name) => [
      make('p', { className: 'says', 'aria-live': 'polite' }, '–'),
      make('figure', {}, make('canvas', { className: 'pixels', role: 'img',
        'aria-label': `The picture as the codes of ${name} show it` }),
      make('figcaption', {}, 'What the codes keep of it'))]);
    for (const button of document.querySelectorAll('[data-take]')) {
      button.onclick = () => this.take(button.dataset.take);
    }
    $('#file').onchange = (event) => event.target.files[0] && this.open(event.target.files[0]);
    const panel = $('#describe');
    panel.ondragover = (event) => event.preventDefault();
    panel.ondrop = (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.open(event.dataTransfer.files[0]);
    };
  }

  /** Takes the picture that another part of the page shows. */
  take(from) {
    const { drag, type, data } = this.page;
    if (from === 'scene') return this.look(...this.scene());
    if (from === 'drag') return this.look(drag.picture(drag.page.state.right, drag.page.state.down));
    const painted = type.painted[from];
    if (!painted) {
      $('#truth').textContent = `${from} has painted nothing yet: go to “Type a caption” first.`;
      return null;
    }
    return this.look(painted.image, painted.clauses, data.variants);
  }

  /** A picture with one to four digits, drawn at random, and what it shows. */
  scene() {
    const { data } = this.page, any = (n) => Math.floor(Math.random() * n);
    const pixels = bytesOf(data.digits.pixels), n = data.item ** 2, picture = blank(data.size);
    const places = [0, 1, 2, 3].sort(() => Math.random() - 0.5).slice(0, 1 + any(4));
    const clauses = places.map((place) => {
      const digit = any(data.digits.labels.length), colour = any(data.rgb.length);
      drawItem(picture, data.size, pixels.subarray(digit * n, (digit + 1) * n), data.item,
               data.rgb[colour], ...data.offsets[place]);
      return { place, colour, label: data.digits.labels[digit] };
    });
    return [picture, clauses];
  }

  async open(file) {
    try {
      await this.look(await fromFile(file, this.page.data.size));
    } catch (error) {
      $('#truth').textContent = error.message;
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
      `${data.grammar.places[place]} ${grammar.colours[colour]} ${grammar.names[label]}`;
    $('#truth').textContent = clauses ? `It shows: ${clauses.map(say).join(', ')}.` : '';
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
