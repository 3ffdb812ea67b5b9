"""Figures of notebook 01: places, examples (Figure 2a) and the held-out rule (Figure 2b)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tevq.data.captions import CENTER, COLOURS, PLACES
from tevq.data.render import CELL, IMAGE_SIZE, OFFSETS
from tevq.data.scenes import HELD_OUT, Scenes
from tevq.data.source import ITEM_SIZE
from tevq.report.style import GREY, INK, new, show, styled, wrap

QUADRANTS = PLACES[:CENTER]
HELD_OUT_MARK = "held out"  # label of the chart's marked cells


def combinations(scenes: Scenes) -> np.ndarray:
    """How many items of each (quadrant, colour, class) scenes show: int (4, 4, 10)."""
    inside = scenes.place < CENTER  # neither center nor unused
    counts = np.zeros((CENTER, len(COLOURS), 10), dtype=np.int64)
    np.add.at(counts, (scenes.place[inside], scenes.colour[inside], scenes.label[inside]), 1)
    return counts


@styled
def layout(images: Sequence[torch.Tensor], titles: Sequence[str]) -> Figure:
    """Where items may stand, in pixels, beside one scene (3, 64, 64) of every case."""
    figure, axes = new(1, len(images) + 1, 12.5, 2.9, width_ratios=[1.35] + [1] * len(images))
    axis = axes[0, 0]
    axis.set(xlim=(0, IMAGE_SIZE), ylim=(IMAGE_SIZE, 0), aspect="equal",
             xticks=[0, CELL, IMAGE_SIZE], yticks=[0, CELL, IMAGE_SIZE])
    axis.set_title("places, in pixels", loc="center", fontsize=11)
    for spine in axis.spines.values():
        spine.set_visible(True)
    axis.axhline(CELL, color=GREY, linewidth=1)
    axis.axvline(CELL, color=GREY, linewidth=1)
    for place, (row, column) in enumerate(OFFSETS):
        center = place == CENTER
        axis.add_patch(Rectangle((column, row), ITEM_SIZE, ITEM_SIZE, fill=not center,
                                 facecolor="#DCE9F5", edgecolor="#D55E00" if center else "#0072B2",
                                 linestyle="--" if center else "-", linewidth=1.8))
        x, y = (column + 1 if column < CELL else column + ITEM_SIZE - 1,
                row + 5 if row < CELL else row + ITEM_SIZE - 2)
        side = "left" if column < CELL else "right"
        if center:
            x, y, side = IMAGE_SIZE / 2, IMAGE_SIZE / 2 - 2, "center"
        axis.text(x, y, PLACES[place], fontsize=9, ha=side, color="#D55E00" if center else "black")
    for axis, image, title in zip(axes[0, 1:], images, titles, strict=True):
        show(axis, image, title)
    return figure


@styled
def examples(images: Sequence[torch.Tensor], captions: Sequence[str], columns: int = 5,
             title: str = "") -> Figure:
    """Figure 2a: scenes (3, 64, 64) with their captions underneath."""
    rows = -(-len(images) // columns)
    figure, axes = new(rows, columns, 2.5 * columns, 3.6 * rows + 0.3, title)
    for axis in axes.flat[len(images):]:
        axis.set_axis_off()
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        show(axis, image)
        axis.set_xlabel(wrap(caption, 24), fontsize=10.5, va="top")
    return figure


@styled
def held_out_chart(names: Sequence[str], counts: np.ndarray | None = None, rule=HELD_OUT) -> Figure:
    """Figure 2b: per quadrant, which (colour, class) training never shows.

    names: the ten classes; rule: class -> (colour, quadrant), as `scenes.HELD_OUT`; counts: items
    per (quadrant, colour, class) of the built training scenes, written into the cells.
    """
    figure, axes = new(2, 2, 12.5, 6.4, "Held-out combinations (framed): never in training, the "
                       "only ones in validation and test")
    for place, axis in enumerate(axes.flat):
        _quadrant(axis, place, names, rule, None if counts is None else counts[place])
    return figure


def _quadrant(axis: Axes, place: int, names: Sequence[str], rule, counts) -> None:
    """One quadrant's colours x classes."""
    axis.set(xlim=(-0.5, 9.5), ylim=(3.5, -0.5), xticks=range(10), yticks=range(4))
    axis.set_xticklabels(names, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticklabels(COLOURS)
    axis.set_title(QUADRANTS[place], loc="center", fontweight="bold")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for colour, word in enumerate(COLOURS):
        for label in range(10):
            held = tuple(rule[label]) == (colour, place)
            axis.add_patch(Rectangle(
                (label - 0.46, colour - 0.42), 0.92, 0.84, facecolor=INK[word],
                alpha=1.0 if held else 0.22, linewidth=0))
            if held:
                axis.add_patch(Rectangle(
                    (label - 0.46, colour - 0.42), 0.92, 0.84, fill=False, edgecolor="black",
                    linewidth=3, label=HELD_OUT_MARK))
            text = "" if counts is None else f"{counts[colour, label]:,}"
            axis.text(label, colour, text or ("no" if held else ""), ha="center", va="center",
                      fontsize=9, color="white" if held else "black",
                      fontweight="bold" if held else "normal")


@styled
def one_scene(image: torch.Tensor, captions: Sequence[str], title: str = "") -> Figure:
    """A scene (3, 64, 64) beside some captions of it."""
    figure, axes = new(1, 2, 11, 3.4, width_ratios=[1, 2.2])
    show(axes[0, 0], image, title)
    axes[0, 1].set_axis_off()
    lines = [wrap(f"{number}.  {text}", 76) for number, text in enumerate(captions, 1)]
    axes[0, 1].text(0, 0.5, "\n\n".join(lines), va="center", fontsize=11.5,
                    transform=axes[0, 1].transAxes)
    return figure
