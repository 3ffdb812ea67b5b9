// Small helpers for the page.

export const $ = (selector, within = document) => within.querySelector(selector);

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role' || name === 'for') made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** A card a variant in a pair: {sc: element, te: element}, each with what `fill` gives. */
export function cards(name, variants, fill) {
  const pair = $(`[data-cards=${name}]`);
  return Object.fromEntries(variants.map((variant) => {
    const card = make('article', { className: `card ${variant}` }, make('h3', {}, variant, ' ',
      make('small', {}, variant === 'te' ? 'orthogonal codes' : 'plain codes')), ...fill(variant));
    pair.append(card);
    return [variant, card];
  }));
}

/** A group of buttons of which one is chosen. onChoose(index). */
export function choices(parent, contents, label, onChoose) {
  const buttons = contents.map((content, i) => make('button', { type: 'button',
    'aria-label': label(i), 'aria-pressed': 'false', onclick: () => onChoose(i) }, content));
  parent.replaceChildren(...buttons);
  return (chosen) => buttons.forEach((button, i) =>
    button.setAttribute('aria-pressed', String(i === chosen)));
}

export const percent = (share) => `${Math.round(share * 100)} %`;
