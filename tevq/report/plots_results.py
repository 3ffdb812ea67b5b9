"""Figures of the result tables. One colour and marker per variant, every seed a point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tevq.grid import Grid
from tevq.report.style import (
    COLOURS_OF,
    GREY,
    MARKERS_OF,
    NAMES_OF,
    label_ends,
    missing,
    new,
    styled,
)
from tevq.report.tables import AS_PUBLISHED, MEASURES, QUADS, by_case, published, select

TITLES = {"t2i": "text → image", "i2t": "image → text"}
CASES_DRAWN = (*QUADS, "center")
CHANCE = 0.1
_ACROSS = 0.8  # of the space of a group that its variants fill


@styled
def accuracy(table1: pd.DataFrame, grid: Grid) -> Figure:
    """Table 1 as dots: held-out combinations, per case and variant, with the paper and ceilings."""
    figure, axes = new(2, 1, height=8.2, sharex=True,
                       title="Digit accuracy on held-out combinations (Table 1)")
    for axis, (task, (decoding, metric)) in zip(axes[:, 0], AS_PUBLISHED.items(), strict=True):
        ours = by_case(table1, task=task, split="test", decoding=decoding, metric=metric)
        theirs = select(published(1), task=task)
        paper = {v: [_value(select(theirs, variant=v, case=c)) for c in CASES_DRAWN]
                 for v in grid.variants}
        groups(axis, ours[list(CASES_DRAWN)], grid.variants, paper)
        if task == "t2i":
            ceiling = by_case(table1, task="ceiling-reconstruction", split="test", metric=metric)
            _ceilings(axis, ceiling[list(CASES_DRAWN)], grid.variants)
        axis.axhline(CHANCE, color=GREY, linewidth=1, linestyle=":")
        axis.set(ylim=(0, 1.04), ylabel="digit accuracy", title=TITLES[task])
        axis.set_xticks(range(len(CASES_DRAWN)), [c.capitalize() for c in CASES_DRAWN])
        axis.grid(axis="y")
    return legend(figure, grid, grid.variants,
                  ("seed", "mean", "paper", "ceiling", "chance", "missing"))


@styled
def seen_gap(table1: pd.DataFrame, grid: Grid) -> Figure:
    """Seen against held-out combinations, mean over Quad1-4: one line a run."""
    figure, axes = new(1, 2, height=4.6, sharey=True,
                       title="What is lost on combinations never seen in training")
    for axis, (task, (decoding, metric)) in zip(axes[0], AS_PUBLISHED.items(), strict=True):
        both = [by_case(table1, task=task, split=split, decoding=decoding, metric=metric)["mean"]
                for split in ("test_seen", "test")]
        _slopes(axis, both, grid.variants)
        axis.set_xticks([0, 1], ["seen", "held out"])
        axis.set(title=TITLES[task], ylim=(0, 1.04))
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("digit accuracy, mean of Quad1–4")
    return legend(figure, grid, grid.variants, ("seed",))


@styled
def equivariance(table: pd.DataFrame, grid: Grid) -> Figure:
    """The four measures of equation 2: kappa over foreground cells, and over all cells."""
    figure, axes = new(2, 1, height=7.6, sharex=True,
                       title="Translation equivariance of the codes (equation 2)")
    for axis, cells in zip(axes[:, 0], ("foreground", "all"), strict=True):
        rows = select(table, task="measure", metric="kappa", cells=cells,
                      source=grid.settings.data.source)
        matrix = rows.pivot(index=["variant", "seed"], columns="case", values="value")
        groups(axis, matrix.reindex(columns=list(MEASURES)), grid.variants)
        axis.set(ylim=(min(0, axis.get_ylim()[0]), 1.04), title=f"{cells} cells",
                 ylabel="kappa\n1 same codes, 0 chance")
        axis.set_xticks(range(len(MEASURES)), [
            "official\n16, 32 px", "grid\nmultiples of the stride", "subgrid\n1 … stride − 1 px",
            "context\nother items appear"])
        axis.grid(axis="y")
    return legend(figure, grid, grid.variants, ("seed", "mean", "missing"))


@styled
def accuracy_against_equivariance(table1: pd.DataFrame, table: pd.DataFrame, grid: Grid
                                  ) -> Figure:
    """One point a run: text->image accuracy over three kinds of equivariance; axes fit the points.
    """
    measures = MEASURES[1:]
    figure, axes = new(1, 3, height=4.4, sharey=True,
                       title="Does an equivariant quantizer go with a better generator?")
    decoding, metric = AS_PUBLISHED["t2i"]
    y = by_case(table1, task="t2i", split="test", decoding=decoding, metric=metric)["mean"]
    for axis, measure in zip(axes[0], measures, strict=True):
        rows = select(table, task="measure", metric="kappa", cells="foreground", case=measure,
                      source=grid.settings.data.source)
        x = rows.set_index(["variant", "seed"])["value"]
        for variant, seed in y.index:
            axis.plot(x.get((variant, seed), np.nan), y[variant, seed], MARKERS_OF[variant],
                      color=COLOURS_OF[variant], markersize=13 if variant == "te" else 9,
                      alpha=0.85)
        axis.set(title=measure, xlabel="kappa, foreground cells")
        axis.margins(0.15)
        axis.grid()
    axes[0, 0].set_ylabel("text → image digit accuracy\nheld out, mean of Quad1–4")
    return legend(figure, grid, list(dict.fromkeys(y.dropna().index.get_level_values(0))), ())


@styled
def sample_efficiency(table2: pd.DataFrame, grid: Grid) -> Figure:
    """Table 2: Quad1 after a third and after all of the training scenes, ours and the paper's."""
    figure, axes = new(1, 2, height=4.4, sharey=True,
                       title="Fewer training scenes (Table 2): text → image, Quad1, held out")
    third, full = (by_case(table2, split="test", size=size)["quad1"] for size in ("third", "full"))
    _slopes(axes[0, 0], [third, full.where(third.notna()) if third.notna().any() else full],
            grid.compared)
    for variant in grid.compared:
        y = [_value(select(published(2), variant=variant, size=size)) for size in ("third", "full")]
        axes[0, 1].plot([0, 1], y, color=COLOURS_OF[variant], marker=MARKERS_OF[variant],
                        markersize=9)
    for axis, title in zip(axes[0], ("ours", "paper"), strict=True):
        axis.set_xticks([0, 1], ["a third", "all"])
        axis.set(title=title, xlabel="training scenes", ylim=(0, 1.04),
                 xlim=(-0.15, 1.25))
        axis.grid(axis="y")
    if third.isna().all():
        axes[0, 0].text(0.5, 0.5, "runs on a third are missing", ha="center", color=GREY,
                        transform=axes[0, 0].transAxes)
    axes[0, 0].set_ylabel("digit accuracy")
    return legend(figure, grid, grid.compared, ("seed",))


@styled
def quantizers(table3: pd.DataFrame, grid: Grid) -> Figure:
    """Table 3: codes used and reconstruction L1 per item source, with the paper's values."""
    sources = list(dict.fromkeys(table3.source))
    figure, axes = new(1, 2, height=4.2, title="Few codes, and what they cost (Table 3)")
    for axis, (metric, label) in zip(axes[0], (("codes_used", "codes used"),
                                               ("l1", "reconstruction L1, range [0, 1]")),
                                     strict=True):
        rows = select(table3, metric=metric, split="test")
        matrix = rows.pivot(index=["variant", "seed"], columns="source", values="value")
        theirs = select(published(3), metric=metric)
        same = [s if s in set(theirs.source) else "mnist" for s in sources]
        paper = {v: [_value(select(theirs, source=s, variant=v)) for s in same]
                 for v in grid.compared}
        groups(axis, matrix.reindex(columns=sources), grid.compared, paper)
        axis.set(ylabel=label, ylim=(0, None))
        axis.set_xticks(range(len(sources)), [s if s == t else f"{s}\n(paper: {t})" for s, t in
                                              zip(sources, same, strict=True)])
        axis.grid(axis="y")
    return legend(figure, grid, grid.compared, ("seed", "mean", "paper", "missing"))


def groups(axis: Axes, matrix: pd.DataFrame, variants: Sequence[str],
           paper: dict[str, list[float]] | None = None) -> None:
    """Dots side by side: a group per column, a position per variant, a dot per seed, a dash mean.

    matrix: rows (variant, seed), missing values NaN. A missing cell gets a small grey cross.
    """
    for k, variant in enumerate(variants):
        x = np.arange(matrix.shape[1]) + offset(k, len(variants))
        own = matrix.loc[variant] if variant in matrix.index.unique("variant") else matrix[:0]
        for spot, values in zip(x, (own[c].dropna() for c in own), strict=True):
            if values.empty:
                axis.plot(spot, 0.0, "x", color=GREY, markersize=5, clip_on=False)
                continue
            near = np.linspace(-0.03, 0.03, len(values)) if len(values) > 1 else [0.0]
            axis.hlines(values.mean(), spot - 0.06, spot + 0.06, color=COLOURS_OF[variant],
                        linewidth=4 if variant == "te" else 3)
            axis.plot(spot + np.asarray(near), values, MARKERS_OF[variant], linestyle="none",
                      color=COLOURS_OF[variant], markersize=8 if variant == "te" else 6)
        if paper:
            axis.plot(x, paper[variant], "D", color="black", markerfacecolor="none", markersize=6,
                      linestyle="none")


def offset(k: int, count: int) -> float:
    """Position of the k-th of `count` variants within a group, around 0."""
    return _ACROSS * ((k + 0.5) / count - 0.5)


def _ceilings(axis: Axes, matrix: pd.DataFrame, variants: Sequence[str]) -> None:
    means = matrix.groupby(level="variant").mean()
    for k, variant in enumerate(variants):
        for i, value in enumerate(means.loc[variant]):
            spot = i + offset(k, len(variants))
            axis.hlines(value, spot - 0.07, spot + 0.07, color="black", linewidth=1.4)


def _slopes(axis: Axes, both: Sequence[pd.Series], variants: Sequence[str]) -> None:
    """A line per run from the first to the second value, named at its end."""
    ends = {}
    for variant in variants:
        left, right = (values.get(variant, pd.Series(dtype=float)) for values in both)
        for seed in right.index:
            y = [left.get(seed, np.nan), right[seed]]
            axis.plot([0, 1], y, color=COLOURS_OF[variant], marker=MARKERS_OF[variant],
                      linewidth=2.6 if variant == "te" else 1.6, markersize=7)
        if right.notna().any():
            ends[variant] = (1, right.mean())
    axis.set_xlim(-0.15, 1.25)
    if not ends:
        missing(axis, "no finished runs")
        return
    axis.set_ylim(0, 1.04)
    label_ends(axis, ends)


def legend(figure: Figure, grid: Grid, variants: Sequence[str], extra: Sequence[str] = ()
           ) -> Figure:
    """Variants and marks under the panels, and what the figure was made from."""
    marks = {
        "seed": Line2D([], [], color=GREY, marker="o", linestyle="none", label="one seed"),
        "mean": Line2D([], [], color=GREY, linewidth=4, label="mean over seeds"),
        "paper": Line2D([], [], color="black", marker="D", markerfacecolor="none",
                        linestyle="none", label="paper"),
        "ceiling": Line2D([], [], color="black", linewidth=1.4, label="ceiling: reconstructions"),
        "missing": Line2D([], [], color=GREY, marker="x", linestyle="none", label="missing"),
        "chance": Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="chance"),
    }
    handles = [Line2D([], [], color=COLOURS_OF[v], marker=MARKERS_OF[v], linestyle="none",
                      markersize=9, label=NAMES_OF[v]) for v in variants]
    found = figure.legend(handles=handles + [marks[name] for name in extra], ncols=3,
                          loc="outside lower center", title=of_grid(grid), title_fontsize=10)
    found.get_title().set_color(GREY)
    return figure


def _value(rows: pd.DataFrame) -> float:
    return float(rows.value.iloc[0]) if len(rows) else np.nan


def of_grid(grid: Grid) -> str:
    """Preset, items and seeds, as figures say it."""
    seeds = ", ".join(map(str, grid.seeds))
    return (f"preset {grid.preset} · {grid.settings.data.source} · "
            f"{'seeds' if len(grid.seeds) > 1 else 'seed'} {seeds}")
