"""What the generators paint and write for the fixed scenes of `examples`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tevq.data.captions import CONNECTORS, Clause, Tokenizer, parse
from tevq.data.render import CELL, IMAGE_SIZE, OFFSETS, render
from tevq.data.scenes import CASES, COLOURS, PLACES, Scenes
from tevq.data.source import class_names
from tevq.evaluate import examples
from tevq.evaluate.evaluator import split_of
from tevq.evaluate.examples import Painted
from tevq.grid import Grid
from tevq.report.style import GREY, NAMES_OF, missing, new, show, stamp, styled, wrap
from tevq.runs.run import open_run

RIGHT, WRONG = "#0072B2", "#D55E00"
MOST_LINES = 5  # clauses shown of a caption that goes on and on


def chosen(found: dict[str, Any], per_case: int = 1) -> list[int]:
    """Positions in the example lists: the first `per_case` of every case."""
    return [i for i in range(len(found["scene"])) if i % examples.PER_CASE < per_case]


def unpictured(grid: Grid) -> list[str]:
    """Finished evaluations of the compared variants that kept no pictures (they are older)."""
    results = grid.results or None
    cells = [grid.cell(variant, seed) for variant in grid.compared for seed in grid.seeds]
    return [open_run(cell, "evaluation", results).name for cell in cells
            if examples.load(cell, "test", results)
            and not examples.load_painted(cell, "test", results, [0])]


@styled
def text_to_image(grid: Grid, split: str = "test", decoding: str = "sampled", per_case: int = 1,
                  seeds: Sequence[int] = (), variants: Sequence[str] = ()) -> Figure:
    """Rows: the real scene, then what each run painted for its caption (under the columns).

    The runs: by default all variants with the first seed.
    A tick marks every digit that the classifier reads as asked; otherwise what it reads.
    """
    results, seeds = grid.results or None, list(seeds or grid.seeds[:1])
    runs = [(v, s, grid.cell(v, s)) for v in variants or grid.variants for s in seeds]
    found = next((e for _, _, c in runs if (e := examples.load(c, split, results))), None)
    index = chosen(found, per_case) if found else []
    rows = {f"{v}\nseed {s}": examples.load_painted(c, split, results, index, decoding)
            for v, s, c in runs}
    absent = [name.replace("\n", " ") for name, painted in rows.items() if painted is None]
    if len(absent) == len(rows):
        return _nothing("No finished evaluation yet: run notebook 04 first.")
    rows = {name: painted for name, painted in rows.items() if painted}
    scenes, items = split_of(grid.settings, split)
    scenes = scenes.take(np.array(found["scene"])[index])
    figure, axes = new(len(rows) + 1, len(index), 2.1 * len(index) + 1.6, 2.1 * len(rows) + 4.2,
                       f"Text → image, {decoding}: the first scene of every case, {_split(split)}")
    for axis, image in zip(axes[0], render(scenes, items), strict=True):
        show(axis, image)
    _name(axes[0, 0], "asked for\n(real items)")
    names = class_names(grid.settings.data.source)
    for line, (name, painted) in zip(axes[1:], rows.items(), strict=True):
        _name(line[0], name)
        for i, axis in enumerate(line):
            show(axis, painted.images[i])
            _tick(axis, scenes, i, painted, names)
    for i, axis in enumerate(axes[0]):
        axis.set_title(CASES[scenes.case[i]], loc="center", fontsize=12)
        axes[-1, i].text(0.5, -0.06, wrap(sentence(scenes, i, names), 23), ha="center", va="top",
                         fontsize=10, transform=axes[-1, i].transAxes)
    missed = f" · missing: {', '.join(absent)}" if absent else ""
    return stamp(figure, f"preset {grid.preset} · {grid.settings.data.source}{missed}")


@styled
def image_to_text(grid: Grid, split: str = "test", decoding: str = "greedy", per_case: int = 1,
                  seed: int | None = None, variants: Sequence[str] = ()) -> Figure:
    """Real scenes and the captions written for them, clause by clause: right or wrong."""
    results, seed = grid.results or None, grid.seeds[0] if seed is None else seed
    runs = {v: examples.load(grid.cell(v, seed), split, results)
            for v in variants or grid.compared or grid.variants[:2]}
    key = f"i2t_{decoding}"
    found = next((e for e in runs.values() if e and key in e), None)
    if found is None:
        return _nothing("No finished evaluation yet: run notebook 04 first.")
    index = chosen(found, per_case)
    scenes, items = split_of(grid.settings, split)
    scenes = scenes.take(np.array(found["scene"])[index])
    names = class_names(grid.settings.data.source)
    figure, axes = new(len(index), len(runs) + 1, 2.0 + 4.6 * len(runs), 2.0 * len(index) + 0.8,
                       f"Image → text: {decoding} captions, {_split(split)}",
                       width_ratios=[1.0] + [2.4] * len(runs))
    for line, i in zip(axes, range(len(index)), strict=True):
        show(line[0], render(scenes, items)[i])
        for axis, (variant, own) in zip(line[1:], runs.items(), strict=True):
            if not own or key not in own:
                missing(axis, f"{variant}: missing")
                continue
            axis.set_axis_off()
            written = marked(own[key][index[i]], scenes.clauses(i), names)
            for k, (text, right) in enumerate(written[:MOST_LINES]):
                more = " …" if k == MOST_LINES - 1 and len(written) > MOST_LINES else ""
                short = text if len(text) <= 42 else f"{text[:41]}…"
                axis.text(0, 0.9 - 0.2 * k, f"{'✓' if right else '✗'} {short}{more}",
                          color=RIGHT if right else WRONG, transform=axis.transAxes, va="center")
    for axis, variant in zip(axes[0, 1:], runs, strict=True):
        axis.set_title(f"{NAMES_OF[variant]}, seed {seed}")
    return stamp(figure, f"preset {grid.preset} · {grid.settings.data.source}")


def marked(text: str, truth: Iterable[Clause], names: tuple[str, ...]) -> list[tuple[str, bool]]:
    """The comma-separated units of a caption, and whether each is a clause of the truth.

    A unit about a place that an earlier unit has named is wrong: only the first counts.

    >>> marked("the top left is red two, and the top left is red two.", [Clause(0, 1, 2)], NUMBERS)
    [('the top left is red two', True), ('the top left is red two', False)]
    """
    truth, places, found = set(truth), set(), []
    for k, unit in enumerate(text.removesuffix(".").split(",")):
        links = sorted((link[1:] + " " for link in CONNECTORS), key=len, reverse=True)
        link = next((x for x in links if unit.startswith(x)), "") if k else ""
        plain = unit[len(link):]
        clauses = parse(f"{plain}.", names).clauses
        right = bool(clauses & truth) and not {c.place for c in clauses} & places
        places |= {clause.place for clause in clauses}
        found.append((plain.strip(), right))
    return found


def sentence(scenes: Scenes, i: int, names: tuple[str, ...]) -> str:
    """The caption of a scene."""
    return Tokenizer(names).decode(scenes.caption[i].tolist())


def _tick(axis: Axes, scenes: Scenes, i: int, painted: Painted, names: tuple[str, ...]) -> None:
    """Marks every named place of an image: a tick, or what the classifier reads instead."""
    for slot, clause in enumerate(scenes.clauses(i)):
        row, col = OFFSETS[clause.place]
        right = painted.label[i, slot] == clause.label
        same_colour = painted.colour[i, slot] == clause.colour
        read = [] if right else [names[painted.label[i, slot]]]
        read = ([] if same_colour else [COLOURS[painted.colour[i, slot]]]) + read
        low = clause.place >= PLACES.index("lower left") and row + CELL >= IMAGE_SIZE
        text = axis.text(col + CELL / 2 - 2, row + 28 if low else row - 1,
                         " ".join(["✓" if right else "✗", *read]), ha="center",
                         va="bottom" if low else "top", fontsize=9, fontweight="bold",
                         color="#7FD0FF" if right else "#FFB27F")
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])


def _name(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, rotation=0, ha="right", va="center")


def _split(split: str) -> str:
    return "held-out combinations" if split == "test" else "seen combinations"


def _nothing(text: str) -> Figure:
    figure, axes = new(height=1.2)
    missing(axes[0, 0], text)
    axes[0, 0].texts[0].set_color(GREY)
    return figure
