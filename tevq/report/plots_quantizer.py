"""Figures about codes: aliasing in one dimension, Figure 1 with real codes, the sweep over shifts.

For notebooks 02 and 03. A variant is drawn in its colour everywhere (`plots.COLOURS_OF`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from tevq.report.style import (
    COLOURS_OF,
    GREY,
    NAMES_OF,
    SERIES,
    code_map,
    differing,
    line_of,
    missing,
    new,
    pixels,
    show,
    styled,
)

NO_QUANTIZER = "no trained quantizer; run notebook 03 first"
MEASURES = {"official": "official\n16 and 32 px", "grid": "grid\nwhole strides",
            "subgrid": "subgrid\nparts of a stride", "context": "context\nneighbours added"}


@styled
def aliasing(before: dict[str, np.ndarray], after: dict[str, np.ndarray], stride: int, shift: int,
             errors: dict[str, np.ndarray]) -> Figure:
    """Signals (n,) before and after a shift, and what is left of them when subsampled.

    before, after: two filters -> signal; errors: filters -> error per shift in pixels 0, 1, ...
    """
    figure, axes = new(1, 3, 13, 3.6, width_ratios=[1, 1, 1.1])
    for axis, name in zip(axes[0], before, strict=False):
        _samples(axis, before[name], after[name], stride, shift, name)
    axis = axes[0, 2]
    for number, (name, values) in enumerate(errors.items()):
        axis.plot(values, "o-", color=SERIES[number], label=name)
    axis.set(title="Alias: what a shift adds to the samples", xlabel="shift [px]",
             ylabel="error / size of the samples", xticks=range(0, len(values), stride))
    axis.grid(True)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, fontsize=10,
                columnspacing=1, handlelength=1.4)
    return figure


def _samples(axis: Axes, before: np.ndarray, after: np.ndarray, stride: int, shift: int,
             name: str) -> None:
    """One signal, the same one shifted back into place, and the pixels that subsampling keeps."""
    n = np.arange(len(before))
    kept = n[::stride]
    axis.plot(n, before, color="#BBBBBB", linewidth=6, solid_capstyle="round")
    axis.plot(kept, before[kept], "o-", color=SERIES[0], label="samples")
    # sample k of the shifted signal shows pixel k - shift of the unshifted one
    axis.plot(kept - shift, after[kept], "s--", color=SERIES[1], label=f"after {shift} px")
    axis.set(title=f"Every {stride}nd pixel, {name}" if stride == 2 else name,
             xlabel="pixel of the item", ylabel="brightness", xlim=(0, len(before)))
    axis.legend(loc="upper left", fontsize=10)


@styled
def toy_cells(codes: dict[str, np.ndarray], z1: np.ndarray, z2: np.ndarray) -> Figure:
    """Figure 1 in two dimensions: cells of codebooks (K, 2), a feature z1, and z2 = z1 + eps."""
    figure, axes = new(1, len(codes), 10, 4.4)
    edge = 1.6
    points = np.stack(np.meshgrid(*[np.linspace(-edge, edge, 300)] * 2), -1)  # (300, 300, 2)
    for axis, (name, codebook) in zip(axes[0], codes.items(), strict=True):
        cells = np.square(points[:, :, None] - codebook).sum(-1).argmin(-1)
        pale = ListedColormap(["#DCE9F5", "#FBE3D6", "#DDF0E8", "#F6E6F0", "#FFF3D6", "#E8E8E8",
                               "#E3F3FB", "#F3F0C4"])
        axis.imshow(cells, cmap=pale, vmin=0, vmax=7, extent=(-edge, edge) * 2, origin="lower")
        for number, (x, y) in enumerate(codebook, 1):
            axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": GREY})
            axis.text(x * 1.13, y * 1.13, f"$e_{number}$", ha="center", va="center", fontsize=13)
        same = len({int(np.square(z - codebook).sum(1).argmin()) for z in (z1, z2)}) == 1
        axis.plot(*np.stack([z1, z2]).T, "-", color="black", linewidth=1.2)
        for word, z, color in (("$z_1$", z1, SERIES[0]), ("$z_2$", z2, SERIES[1])):
            axis.plot(*z, "o", color=color, markersize=9, zorder=5)
            axis.annotate(word, z, (9, -8) if color == SERIES[0] else (-8, 9), color=color,
                          fontsize=14, textcoords="offset points")
        axis.set(xticks=[], yticks=[], xlim=(-edge, edge), ylim=(-edge, edge))
        fate = "$z_1$, $z_2$ get the same code" if same else "$z_1$, $z_2$ get two codes"
        axis.set_title(f"{name}: {fate}", loc="center")
    return figure


@styled
def code_maps(images: Sequence[torch.Tensor], titles: Sequence[str],
              maps: dict[str, Sequence[torch.Tensor]], K: dict[str, int]) -> Figure:
    """Figure 1 with real codes: an item at several places, and its codes for every variant.

    images (3, n, n) in [-1, 1], the window around the item; maps: variant -> codes (h, w) of the
    same windows. Cells that differ from the first window are marked.
    """
    figure, axes = new(len(maps) + 1, len(images), 3.4 * len(images) + 1.0, 3.3 * len(maps) + 2.0,
                       height_ratios=[0.6] + [1] * len(maps))
    for axis, image, title in zip(axes[0], images, titles, strict=True):
        show(axis, image, title)
    for line, (variant, codes) in zip(axes[1:], maps.items(), strict=True):
        for axis, moved in zip(line, codes, strict=True):
            marked = differing(codes[0], moved)
            text = f"{len(marked)} of {moved.numel()} cells differ"
            code_map(axis, moved, K[variant], "reference" if axis is line[0] else text, marked,
                     numbers=True)
        line[0].set_ylabel(NAMES_OF[variant].replace("  ", "\n", 1), color=COLOURS_OF[variant],
                           fontsize=13, fontweight="bold" if variant == "te" else "normal")
    return figure


@styled
def sweep(rows: dict[str, list[dict]], stride: int, images: Sequence[torch.Tensor] = (),
          cells: str = "foreground", absent: Sequence[str] = ()) -> Figure:
    """What a shift of 0 ... 16 px does to features (eps of equation 4) and to codes.

    rows: variant -> rows of `equivariance.sweep`; images: scenes (3, 64, 64), evenly spread over
    the shifts; absent: variants that have no quantizer yet.
    """
    figure, axes = new(3, 1, 11, 9.6, "An item moves to the right; do its features and its codes "
                       "move with it?", sharex=True, height_ratios=[0.56, 1, 1])
    strip, *axes = axes[:, 0]
    strip.set(ylim=(0, 1))
    strip.set_axis_off()
    for shift, image in zip(np.linspace(0, 16, len(images)), images, strict=True):
        strip.imshow(pixels(image), extent=(shift - 1.6, shift + 1.6, 0, 1), aspect="auto",
                     clip_on=False)
    for axis, key, title in (
        (axes[0], "feature_error", "Features before quantization: change $\\epsilon$ relative to "
                                   "their size (0 = moves along exactly)"),
        (axes[1], "agreement", "Codes: share of the item's cells that keep their code "
                               "(1 = moves along exactly)"),
    ):
        _sweep_lines(axis, rows, key, cells)
        for shift in range(0, 17, stride):
            axis.axvline(shift, color="#BBBBBB", linewidth=1, zorder=0)
        axis.set(title=title, xlim=(-1.7, 17.7), xticks=range(17))
    axes[0].set(ylabel="feature error $\\epsilon$")
    axes[1].set(ylabel="code agreement", ylim=(-0.03, 1.06),
                xlabel=f"shift [px]; grey lines: whole steps of the code grid ({stride} px)")
    if rows:
        axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1.07), ncols=5, fontsize=10.5)
    if absent:
        figure.text(0.01, -0.01, f"missing, not trained yet: {', '.join(absent)}", va="top",
                    color=GREY)
    return figure


def _sweep_lines(axis: Axes, rows: dict[str, list[dict]], key: str, cells: str) -> None:
    if not rows:
        missing(axis, NO_QUANTIZER)
        return
    for variant, found in rows.items():
        points = [(row["shift"], row[key]) for row in found if row["cells"] == cells]
        axis.plot(*zip(*points, strict=True), **line_of(variant))
    axis.set_ylim(bottom=0 if key == "feature_error" else None)


@styled
def measures(rows: dict[str, list[dict]], cells: str = "foreground") -> Figure:
    """The four measures per variant: agreement (bars) and kappa (black marks).

    rows: variant -> rows of `equivariance.measure`. A variant without kappa (a collapsed codebook)
    gets the word `collapsed`.
    """
    figure, axes = new(1, 1, 11, 4.4)
    axis = axes[0, 0]
    if not rows:
        missing(axis, NO_QUANTIZER)
        return figure
    width = 0.8 / len(rows)
    for number, (variant, found) in enumerate(rows.items()):
        chosen = {row["measure"]: row for row in found if row["cells"] == cells}
        for place, name in enumerate(MEASURES):
            x = place + (number - (len(rows) - 1) / 2) * width
            row = chosen[name]
            axis.bar(x, row["agreement"], 0.92 * width, color=COLOURS_OF[variant],
                     label=NAMES_OF[variant] if place == 0 else None)
            if row["kappa"] is None:
                axis.text(x, 0.03, "collapsed", rotation=90, ha="center", color="white")
            else:
                axis.plot([x - 0.4 * width, x + 0.4 * width], [row["kappa"]] * 2, color="black",
                          linewidth=2.5, solid_capstyle="butt")
    axis.plot([], [], "_", color="black", markersize=12, markeredgewidth=2.5,
              label="kappa: beyond chance")
    axis.set(xticks=range(len(MEASURES)), xticklabels=MEASURES.values(),
             ylabel="share of the item's cells\nthat keep their code")
    axis.set_ylim(min(0, axis.get_ylim()[0]), 1.02)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def margins(found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Noise against room for it: variant -> (|eps|, margin, code kept) per cell, each (n,).

    The margin is the distance to the border of the code's cell; above the diagonal a code cannot
    change.
    """
    figure, axes = new(1, max(len(found), 1), 5.0 * max(len(found), 1), 4.6, sharex=True,
                       sharey=True)
    if not found:
        missing(axes[0, 0], NO_QUANTIZER)
        return figure
    low = min(min(np.quantile(a, 0.01) for a in pair[:2]) for pair in found.values())
    high = max(max(a.max() for a in pair[:2]) for pair in found.values()) * 1.3
    low = max(low, high / 1e4)
    for axis, (variant, (noise, margin, kept)) in zip(axes[0], found.items(), strict=True):
        axis.fill_between([low, high], [low, high], high, color="#EFEFEF", zorder=0)
        for mask, color, mark, word in ((kept, SERIES[0], "o", "code kept"),
                                        (~kept, SERIES[1], "x", "code changed")):
            axis.loglog(noise[mask].clip(low), margin[mask].clip(low), mark, color=color,
                        markersize=4, alpha=0.6, label=f"{word} ({mask.mean():.0%})")
        axis.loglog([low, high], [low, high], color="black", linewidth=1)
        axis.set(xlim=(low, high), ylim=(low, high), xlabel="noise $|\\epsilon|$ of a cell")
        axis.set_title(NAMES_OF[variant], color=COLOURS_OF[variant], fontweight="bold")
        axis.legend(loc="lower left", markerscale=1.8)
        axis.text(0.04, 0.95, "safe: noise < margin", va="top", transform=axis.transAxes)
    axes[0, 0].set_ylabel("margin: distance to the border\nof the code's cell")
    return figure


@styled
def code_usage(counts: np.ndarray, title: str = "") -> Figure:
    """How often each code (K,) was chosen, most frequent first."""
    figure, axes = new(1, 1, 10, 3.4, title)
    axis, order = axes[0, 0], np.sort(counts)[::-1]
    used = int((order > 0).sum())
    axis.bar(np.arange(1, used + 1), order[:used] / order.sum(), width=1.0, color=SERIES[0],
             edgecolor="white", linewidth=0.3)
    axis.axvspan(used + 0.5, len(order) + 0.5, color="#EFEFEF")
    if used < len(order):
        axis.text(len(order), 0.95, f"{len(order) - used} of {len(order)} codes never chosen",
                  ha="right", va="top", color=GREY, transform=axis.get_xaxis_transform())
    axis.set(yscale="log", xlabel="codes, most frequent first", ylabel="share of cells",
             xlim=(0.5, len(order) + 0.5))
    return figure
