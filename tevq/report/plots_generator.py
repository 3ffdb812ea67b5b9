"""Figures of notebook 04: the sequence, causality, learning curves, what the generator makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tevq.report.style import (
    CASE_COLOURS,
    GREY,
    OUTLINE,
    code_colours,
    missing,
    new,
    show,
    styled,
    wrap,
)

SHOWN_WORDS, SHOWN_CODES = 9, 9  # tokens that are drawn of each block
BOUND = 0.5  # Quad2-4 accuracy from which the binding transition counts as reached


@styled
def sequence(words: Sequence[str], codes: np.ndarray, K: int, length: int,
             weight: float) -> Figure:
    """Both directions as rows of tokens: text block (length L) and image block (N codes).

    words: tokens of one caption with specials; codes (N,): its image in raster order; weight: of
    the generated block in the loss.
    """
    figure, axes = new(2, 1, 12.5, 3.6)
    text = (list(words[:SHOWN_WORDS]) + ["…"], length, "words")
    image = (list(codes[:SHOWN_CODES]) + ["…"], len(codes), "codes")
    for axis, direction, blocks in ((axes[0, 0], "text → image", (text, image)),
                                    (axes[1, 0], "image → text", (image, text))):
        x = 0
        for block, (tokens, count, kind) in enumerate(blocks):
            for token in tokens:
                _token(axis, x, token, K)
                x += 1
            task = f"generated, weight {weight:g}" if block else "given, weight 1"
            axis.text(x - len(tokens) / 2, 1.12, f"{count} {kind}: {task}", ha="center",
                      va="bottom", fontweight="bold" if block else "normal", fontsize=11.5)
            x += 0.6
        axis.set(xlim=(-0.1, x), ylim=(-0.1, 1.5))
        axis.set_axis_off()
        axis.set_title(direction, fontweight="bold")
    return figure


def _token(axis: Axes, x: float, token, K: int) -> None:
    """A word in a box, or a code as a coloured cell with its number."""
    is_code = not isinstance(token, str)
    colour = code_colours(K)(int(token)) if is_code else ("none" if token == "…" else "#EEF3F8")
    axis.add_patch(FancyBboxPatch((x + 0.06, 0.1), 0.88, 0.8, boxstyle="round,pad=0.02",
                                  facecolor=colour, edgecolor="none" if token == "…" else GREY))
    axis.text(x + 0.5, 0.5, str(token), ha="center", va="center", fontsize=11,
              path_effects=OUTLINE if is_code else None)


@styled
def influence(changes: np.ndarray, blocks: tuple[int, int], names: tuple[str, str]) -> Figure:
    """Which token moves which prediction: (T tokens, T - 1 predictions), largest logit change.

    blocks: lengths of the two blocks, which are called `names`. Prediction t is about token t + 1.
    """
    figure, axes = new(1, 1, 6.2, 5.2)
    axis = axes[0, 0]
    strength = np.log10(np.maximum(changes, 1e-6))
    mesh = axis.imshow(np.where(changes > 0, strength, np.nan), cmap="viridis", aspect="equal")
    axis.set_facecolor("#EEEEEE")
    axis.axhline(blocks[0] - 0.5, color="black", linewidth=1)
    axis.axvline(blocks[0] - 1.5, color="black", linewidth=1)
    centers = (blocks[0] / 2, blocks[0] + blocks[1] / 2)
    axis.set(xticks=[c - 1 for c in centers], xticklabels=[f"next {n}" for n in names],
             yticks=centers, yticklabels=names, xlabel="prediction", ylabel="changed token")
    axis.set_title("grey: not one bit of change")
    figure.colorbar(mesh, label="largest change of a logit [log10]", shrink=0.8)
    return figure


def binding(sequences: np.ndarray, cases: dict[str, np.ndarray]) -> float | None:
    """Sequences seen when Quad2 ... Quad4 accuracy first reaches BOUND, on average; else None.

    With several items the generator must bind every word to its place: accuracy stays at chance for
    long, then jumps.
    """
    several = [cases[case] for case in ("quad2", "quad3", "quad4") if case in cases]
    if not several:
        return None
    reached = np.flatnonzero(np.mean(several, axis=0) >= BOUND)
    return float(sequences[reached[0]]) if len(reached) else None


@styled
def learning_curves(found: dict[str, tuple[np.ndarray, dict]], title: str = "") -> Figure:
    """Accuracy against sequences seen, a panel per split, a line per case.

    found: panel title -> what `stage2.curve` returned. The binding transition is marked if reached.
    """
    figure, axes = new(1, len(found), 12.5, 4.0, title, sharey=True)
    for axis, (name, (sequences, cases)) in zip(axes[0], found.items(), strict=True):
        if not len(sequences):
            missing(axis, f"{name}: no learning curve was recorded (stage2.probe_scenes = 0)")
            continue
        for case, values in cases.items():
            axis.plot(sequences, values, "o-" if case != "center" else "s--", label=case,
                      color=CASE_COLOURS[case], markersize=5)
        axis.axhline(0.1, color=GREY, linestyle=":", linewidth=1.4)
        axis.annotate("chance", (1, 0.1), (4, 0), xycoords=("axes fraction", "data"), color=GREY,
                      textcoords="offset points", va="center", fontsize=10)
        at = binding(sequences, cases)
        if at is not None:
            axis.axvline(at, color=GREY, linestyle="--", linewidth=1.4)
            axis.text(at, 0.02, " binding reached", color=GREY, rotation=90, va="bottom",
                      ha="right", fontsize=10)
        axis.set(title=name, xlabel="training sequences seen", ylim=(-0.03, 1.03))
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(True)
    axes[0, 0].set_ylabel("digit accuracy")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def samples(rows: dict[str, Sequence[torch.Tensor]], captions: Sequence[str],
            wrong: Sequence[Sequence[tuple[int, int]]] = (), title: str = "") -> Figure:
    """Images (3, 64, 64) in labelled rows over the captions that they should show.

    wrong: for every image of the last row, the (row, column) corners of items that the classifier
    reads as something else than the caption says; they are framed.
    """
    count = len(captions)
    figure, axes = new(len(rows), count, 2.45 * count, 2.4 * len(rows) + 1.4, title)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            show(axis, image)
        line[0].set_ylabel(wrap(name, 14), fontsize=12)
    for axis, caption, corners in zip(axes[-1], captions, wrong or [()] * count, strict=True):
        axis.set_xlabel(wrap(caption, 24), fontsize=10)
        for row, column in corners:
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 28, 28, fill=False,
                                     edgecolor="#E69F00", linewidth=2.5, label="misread"))
    return figure


@styled
def descriptions(images: Sequence[torch.Tensor], texts: Sequence[str],
                 notes: Sequence[str], title: str = "") -> Figure:
    """Images (3, 64, 64) beside the captions that a generator wrote, with a note on each."""
    figure, axes = new(len(images), 2, 11, 1.35 * len(images) + 0.4, title, width_ratios=[1, 7])
    for line, image, text, note in zip(axes, images, texts, notes, strict=True):
        show(line[0], image)
        line[1].set_axis_off()
        line[1].text(0, 0.95, wrap(text or "(nothing)", 92), va="top", fontsize=11,
                     transform=line[1].transAxes)
        line[1].text(0, 0.05, note, va="bottom", fontsize=11, color=GREY,
                     transform=line[1].transAxes)
    return figure
