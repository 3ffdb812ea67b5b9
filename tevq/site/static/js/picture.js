// Pictures: Float32Array (3, S, S) in [-1, 1], black is -1; and how they come onto canvases.

/** Numbers that data.json holds as base64 of bytes. */
export const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

export const blank = (S) => new Float32Array(3 * S * S).fill(-1);

/** Draws an item (s x s bytes) with its upper left pixel at (row, column); brighter wins. */
export function drawItem(picture, S, item, s, rgb, row, column) {
  for (let i = 0; i < s; i++) {
    for (let j = 0; j < s; j++) {
      const y = row + i, x = column + j;
      if (y < 0 || x < 0 || y >= S || x >= S) continue;
      const ink = Math.fround(Math.fround(item[i * s + j] * Math.fround(2 / 255)) - 1);
      rgb.forEach((on, channel) => {
        const at = (channel * S + y) * S + x;
        if (on) picture[at] = Math.max(picture[at], ink);
      });
    }
  }
  return picture;
}

/** Shows a picture on a canvas, whose own size becomes S x S. */
export function show(canvas, picture, S) {
  if (canvas.width !== S || canvas.height !== S) canvas.width = canvas.height = S;
  const context = canvas.getContext('2d'), shown = context.createImageData(S, S);
  for (let i = 0; i < S * S; i++) {
    for (let channel = 0; channel < 3; channel++) {
      shown.data[4 * i + channel] = (picture[channel * S * S + i] + 1) * 127.5;
    }
    shown.data[4 * i + 3] = 255;
  }
  context.putImageData(shown, 0, 0);
}

/** A picture from anything a canvas can draw, cut to its middle square. */
export function fromImage(image, S) {
  const canvas = Object.assign(document.createElement('canvas'), { width: S, height: S });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const side = Math.min(image.width, image.height);
  context.fillStyle = '#000'; // what is transparent becomes background
  context.fillRect(0, 0, S, S);
  context.imageSmoothingQuality = 'high';
  context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side,
                    0, 0, S, S);
  const { data } = context.getImageData(0, 0, S, S), picture = blank(S);
  for (let i = 0; i < S * S; i++) {
    for (let channel = 0; channel < 3; channel++) {
      picture[channel * S * S + i] = data[4 * i + channel] / 127.5 - 1;
    }
  }
  return picture;
}

/** A picture from a file of the reader. Throws an Error with one plain line. */
export async function fromFile(file, S) {
  if (file.size > 20e6) throw new Error(`${file.name} is larger than 20 MB; choose a smaller one.`);
  try {
    return fromImage(await createImageBitmap(file), S);
  } catch {
    throw new Error(`${file.name} is not an image that this browser reads; choose a PNG or JPEG.`);
  }
}

/** The picture that codes make of tiles (stride x stride x 3 bytes each); -1: not known yet. */
export function mosaic(codes, tiles, S, stride) {
  const picture = blank(S), side = S / stride;
  codes.forEach((code, cell) => {
    if (code < 0) return;
    const top = Math.floor(cell / side) * stride, left = (cell % side) * stride;
    for (let i = 0; i < stride * stride * 3; i++) {
      const pixel = Math.floor(i / 3), channel = i % 3;
      const at = (channel * S + top + Math.floor(pixel / stride)) * S + left + (pixel % stride);
      picture[at] = tiles[code * stride * stride * 3 + i] / 127.5 - 1;
    }
  });
  return picture;
}

/** A colour for a code: neighbours in number are far apart in hue. */
export const colourOf = (code) =>
  `hsl(${(code * 137.508) % 360} ${55 + (code % 3) * 15}% ${42 + (code % 5) * 8}%)`;

/** Draws codes as coloured cells. marked: cells to be framed; frame: {row, column, n}, a window. */
export function showCodes(canvas, codes, side, { marked = [], frame = null } = {}) {
  const cell = 14, context = canvas.getContext('2d');
  canvas.width = canvas.height = side * cell;
  codes.forEach((code, i) => {
    context.fillStyle = code < 0 ? '#8883' : colourOf(code);
    context.fillRect((i % side) * cell, Math.floor(i / side) * cell, cell, cell);
  });
  if (frame) {
    context.lineWidth = 2;
    context.strokeStyle = '#fff';
    context.setLineDash([5, 4]);
    context.strokeRect(frame.column * cell + 1, frame.row * cell + 1, frame.n * cell - 2,
                       frame.n * cell - 2);
    context.setLineDash([]);
  }
  for (const i of marked) {
    const x = (i % side) * cell, y = Math.floor(i / side) * cell;
    context.lineWidth = 3.5;
    context.strokeStyle = '#000';
    context.strokeRect(x + 2, y + 2, cell - 4, cell - 4);
    context.lineWidth = 1.5;
    context.strokeStyle = '#fff';
    context.strokeRect(x + 2, y + 2, cell - 4, cell - 4);
  }
}
