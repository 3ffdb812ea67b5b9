// The curve of the agreement over the last moves.

const KEPT = 120;

export class Curve {
  constructor(canvas, variants) {
    this.canvas = canvas;
    this.values = Object.fromEntries(variants.map((name) => [name, []]));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').onchange = () => this.draw();
  }

  clear() {
    for (const name of Object.keys(this.values)) this.values[name] = [];
    this.draw();
  }

  /** Adds the value after a move (counted); older moves than the last KEPT go. */
  add(name, move, value) {
    this.values[name] = [...this.values[name].filter((point) => point.move > move - KEPT),
                         { move, value }];
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      this.draw();
    });
  }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext('2d'), style = getComputedStyle(canvas);
    context.scale(ratio, ratio);
    const left = 44, y = (value) => 10 + (1 - value) * (height - 20);
    context.font = '12px system-ui, sans-serif';
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const value of [0, 0.5, 1]) {
      context.fillStyle = context.strokeStyle = style.color;
      context.fillText(`${value * 100} %`, left - 8, y(value));
      context.globalAlpha = 0.25;
      context.lineWidth = 1;
      context.strokeRect(left, y(value), width - left, 0);
      context.globalAlpha = 1;
    }
    const moves = Object.values(this.values).flat().map(({ move }) => move);
    const first = Math.min(...moves), span = Math.max(30, Math.max(...moves) - first);
    const x = (move) => left + 6 + (move - first) / span * (width - left - 12);
    for (const [name, list] of Object.entries(this.values)) {
      context.strokeStyle = style.getPropertyValue(`--${name}`);
      context.lineWidth = 2.5;
      context.setLineDash(name === 'sc' ? [6, 3] : []);
      context.beginPath();
      for (const { move, value } of list) context.lineTo(x(move), y(value));
      context.stroke();
      if (list.length) { // a dot where it stands now; alone after the first move
        const { move, value } = list.at(-1);
        context.setLineDash([]);
        context.fillStyle = context.strokeStyle;
        context.beginPath();
        context.arc(x(move), y(value), 4, 0, 7);
        context.fill();
      }
      context.setLineDash([]);
    }
  }
}
