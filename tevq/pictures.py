"""Pictures from anywhere as the networks want them, and pictures that show and save themselves."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from tevq.config import SettingsError, UserError
from tevq.data.render import item_size

WANTED = "wanted a picture file, a PIL image, or an array or tensor (H, W), (H, W, 3), (N, 3, H, W)"
MOST = 8  # pictures in a figure


class Shown(dict):
    """Name -> Pictures, shown side by side: images above their codes, changed cells framed."""

    def __repr__(self) -> str:
        return "; ".join(f"{name}: {one!r}" for name, one in self.items())

    def figure(self):
        """Black frames: cells that show a part of an item; grey ones: empty cells."""
        style = _style()
        columns = [(name, one, k) for name, one in self.items()
                   for k in range(min(len(one), max(1, MOST // len(self))))]
        figure, axes = style.new(2, len(columns), 2 * len(columns) + 0.4, 5)
        for (above, below), (name, one, k) in zip(axes.T, columns, strict=True):
            kept = "" if one.agreement is None else f"\n{one.agreement:.0%} of codes kept"
            style.show(above, one[k], name + kept)
            one.draw_codes(below, k)
        return figure

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.figure().savefig(drawn, format="png", dpi=80, bbox_inches="tight")
        return drawn.getvalue()

    def show(self) -> None:
        """Shows it in a notebook."""
        from IPython.display import display

        display(self)


class Pictures(torch.Tensor):
    """Images (N, 3, S, S) in [-1, 1] with their codes and words: a tensor to show and to save.

    What is computed from it, a part of it included, is a plain tensor.
    """

    codes: torch.Tensor  # (N, h, w)
    K: int  # codes in the codebook
    words: list[str]  # a caption each, or none
    # after a move, (N, h, w): cells with another code, and cells that show a part of an item;
    # share of the latter with the same code, and the same beyond chance
    changed = ink = agreement = kappa = None
    __torch_function__ = torch._C._disabled_torch_function_impl  # as torch's own Parameter has it

    @classmethod
    def of(cls, images: torch.Tensor, **more: Any) -> Pictures:
        """Images with the other attributes."""
        made = images.as_subclass(cls)
        vars(made).update(more)
        return made

    def __repr__(self) -> str:
        kept = "" if self.agreement is None else f", {self.agreement:.0%} of the item's codes kept"
        return f"<{len(self)} x {self.shape[-2]} x {self.shape[-1]} pixels{kept}>"

    def draw_codes(self, axis, k: int = 0) -> None:
        """Draws the codes of picture k on an axis of matplotlib; cells that changed are framed."""
        from matplotlib.patches import Rectangle

        style = _style()
        colours = style.code_colours(self.K)(self.codes[k].cpu().numpy())[..., :3]  # (h, w, 3)
        style.show(axis, torch.from_numpy(colours * 2 - 1).permute(2, 0, 1),
                   caption=self.words[k] if self.words else "")
        for y, x in self.changed[k].nonzero().tolist() if self.changed is not None else ():
            edge, width = ("black", 1.6) if self.ink[k, y, x] else ("#888888", 0.6)
            axis.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, edgecolor=edge,
                                     linewidth=width))

    def _repr_png_(self) -> bytes:
        return Shown({"": self})._repr_png_()

    def show(self) -> None:
        """Shows images, codes and captions in a notebook, of the first eight."""
        Shown({"": self}).show()

    def save(self, path: str | Path) -> list[Path]:
        """Writes a file, of several pictures x-0.png, x-1.png ...; returns what it wrote."""
        path, written = Path(path), []
        pixels = ((self.detach().cpu() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        for number, one in enumerate(pixels.numpy()):
            written.append(path.with_stem(f"{path.stem}-{number}") if len(self) > 1 else path)
            try:
                Image.fromarray(one).save(written[-1])
            except (OSError, ValueError) as error:  # no such folder; no such format
                raise SettingsError(f"cannot write {written[-1]} ({error}); use a name such as "
                                    "x.png, in a folder that is there") from None
        return written


def _style():
    """The module of the figures' look, which a bare installation lacks packages for."""
    try:
        from tevq.report import style
    except ModuleNotFoundError as error:
        raise UserError(f"figures need {error.name}: pip install 'tevq[notebooks]'") from None
    return style


def as_images(given: Any, size: int) -> torch.Tensor:
    """Images (N, 3, size, size) in [-1, 1] of whatever `WANTED` lists, or of a list of such.

    Says in one line, on stderr, what it assumed and changed. Raises SettingsError for what is no
    picture, empty, out of range, or not finite.
    """
    given, notes = given if isinstance(given, (list, tuple)) else [given], []
    if not given:
        raise SettingsError(f"there is no picture; {WANTED}")
    x = torch.cat([_one(part, size, notes) for part in given])
    if (x.mean((1, 2, 3)) > 0).any():
        notes.append("bright, where the networks know dark backgrounds only")
    if (x.amax((1, 2, 3)) < -0.9).any():
        notes.append("black, with nothing to see")
    if notes:
        print(f"tevq: pictures taken as {'; '.join(dict.fromkeys(notes))}", file=sys.stderr)
    return x


def _one(given: Any, size: int, notes: list[str]) -> torch.Tensor:
    array, is_file = _pixels(given), isinstance(given, (str, Path, Image.Image))
    if array.dtype.kind not in "buif" or not 2 <= array.ndim <= 4 or not array.size:
        what = f"{array.dtype} of shape {array.shape}" if array.ndim else type(given).__name__
        raise SettingsError(f"{what} is no picture; {WANTED}")
    x = torch.from_numpy(np.ascontiguousarray(array, np.float32))
    low, high = float(x.min()), float(x.max())
    # the smallest range that holds all values; whole numbers of a file never mean 0 to 1
    top = next((top for top in (1, 255, 65_535) if high <= top and (top > 1 or not is_file)), 0)
    if not (low >= -1.001 and high <= 1.001 or low >= 0 and top):  # so not for NaN
        raise SettingsError(f"a picture has values from {low:g} to {high:g}; allowed: 0 to 1, 0 to "
                            "255, or -1 (black) to 1")
    if low >= 0 and not isinstance(given, Pictures):
        notes += [f"values from 0 to {top}"] * (not is_file or top != 255)
        x = x / top * 2 - 1
    x = _channels(x, isinstance(given, torch.Tensor))
    if x.shape[1] in (2, 4):
        notes.append("transparent, laid on black")
        x = (x[:, :-1] + 1) * (x[:, -1:] + 1) / 2 - 1
    notes += ["grey"] * (x.shape[1] == 1)
    return _fit(x.expand(-1, 3, -1, -1), size, notes)


def _pixels(given: Any) -> np.ndarray:
    if isinstance(given, (str, Path)):
        try:
            with Image.open(given) as file:
                given = ImageOps.exif_transpose(file)
        except Exception as error:  # Pillow has no common class for what damage raises
            raise SettingsError(f"cannot read the picture {str(given)!r} ({error})") from None
    if isinstance(given, Image.Image) and given.mode[0] not in "IF":  # those have many grey values
        clear = given.mode.lower().endswith("a") or "transparency" in given.info
        given = given.convert("RGBA" if clear else "L" if given.mode in ("1", "L") else "RGB")
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()
    return np.asarray(given)


def _channels(x: torch.Tensor, first: bool) -> torch.Tensor:
    """(H, W), (H, W, C), (C, H, W), (N, H, W) and batches -> (N, C, H, W).

    first: whether C stands in front where it could be either.
    """
    if x.dim() == 2:
        return x[None, None]
    ahead, behind = x.shape[-3] in (1, 3, 4), x.shape[-1] in (1, 2, 3, 4)
    if x.dim() == 3 and not (ahead or behind):
        return x[:, None]
    if not (ahead or behind):
        raise SettingsError(f"a picture has the shape {tuple(x.shape)}; {WANTED}")
    x = x if ahead and (first or not behind) else x.movedim(-1, -3)
    return x if x.dim() == 4 else x[None]


def _fit(x: torch.Tensor, size: int, notes: list[str]) -> torch.Tensor:
    """(N, 3, H, W) in the middle of (N, 3, size, size); resized if larger than an item."""
    H, W = x.shape[2:]
    if (H, W) == (size, size):
        return x.contiguous()
    scale = size / max(H, W) if max(H, W) > item_size(size) else 1
    h, w = (max(1, round(side * scale)) for side in (H, W))
    notes.append(f"{H} x {W} pixels, resized to {h} x {w}" if scale != 1 else
                 f"{H} x {W} pixels, in the middle of {size} x {size}")
    x = interpolate(x, (h, w), mode="bilinear", antialias=True).clamp(-1, 1) if scale != 1 else x
    made, top, left = torch.full((len(x), 3, size, size), -1.0), (size - h) // 2, (size - w) // 2
    made[:, :, top:top + h, left:left + w] = x
    return made
