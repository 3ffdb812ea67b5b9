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

  add(name, value) {
    this.values[name] = [...this.values[name], value].slice(-KEPT);
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
    const longest = Math.max(30, ...Object.values(this.values).map((list) => list.length));
    for (const [name, list] of Object.entries(this.values)) {
      context.strokeStyle = style.getPropertyValue(`--${name}`);
      context.lineWidth = 2.5;
      context.setLineDash(name === 'sc' ? [6, 3] : []);
      context.beginPath();
      list.forEach((value, i) =>
        context.lineTo(left + 4 + i / (longest - 1) * (width - left - 8), y(value)));
      context.stroke();
      context.setLineDash([]);
    }
  }
}
