"""Figures of notebook 07: ratios to the peers, and how steps grow."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tevq.bench.timing import OURS
from tevq.report.style import GREY, SERIES, new, styled

OURS_COLOUR, BAR_COLOUR = SERIES[1], "#333333"
TIMES = FuncFormatter(lambda value, _: f"{value:g}×")


@styled
def ratios(summary: pd.DataFrame, title: str = "") -> Figure:
    """How many times faster than each peer: median, range of the turns, the bar we set ourselves.

    summary: rows of `bench.summary`. Beside it, the share of the machine's limit of everybody.
    """
    raced = summary[summary["ratio"].notna()].iloc[::-1]
    limited = summary[summary["share_of_limit"].notna()].iloc[::-1]
    rows = max(len(raced), len(limited))
    figure, axes = new(1, 2, width=15, height=1.4 + 0.42 * rows, title=title)
    left, right = axes[0]
    places = np.arange(len(raced))
    left.barh(places, raced["ratio"] - 1, left=1, color=OURS_COLOUR, height=0.6)
    left.hlines(places, raced["ratio_low"], raced["ratio_high"], color=BAR_COLOUR, linewidth=1.5)
    for place, row in zip(places, raced.itertuples(), strict=True):
        left.annotate(f"{row.ratio:.2f}", (max(row.ratio_high, 1), place), (6, 0), va="center",
                      textcoords="offset points", fontsize=10)
        if row.measure == "ratio":
            left.plot(row.bar, place, "|", color=BAR_COLOUR, markersize=16, markeredgewidth=2)
    left.axvline(1, color=GREY, linewidth=1)
    left.set_xscale("log")
    left.xaxis.set_major_formatter(TIMES)
    left.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    left.margins(x=0.15)
    left.set(yticks=places, yticklabels=[f"{row.work}\nagainst {row.contender}"
                                         for row in raced.itertuples()])
    left.tick_params(axis="y", labelsize=9)
    left.set_title("our speed / theirs   (line: range, tick: bar)")
    _limits(right, limited)
    return figure


def _limits(axis, limited: pd.DataFrame) -> None:
    """Share of the measured rate of matrix products or convolutions that everybody reaches."""
    places = np.arange(len(limited))
    colours = [OURS_COLOUR if name == OURS else "#BBBBBB" for name in limited["contender"]]
    axis.barh(places, limited["share_of_limit"], color=colours, height=0.6)
    for place, share in zip(places, limited["share_of_limit"], strict=True):
        axis.annotate(f"{share:.0%}", (share, place), (5, 0), textcoords="offset points",
                      va="center", fontsize=10)
    axis.set(yticks=places, yticklabels=[f"{row.work}\n{row.contender}"
                                         for row in limited.itertuples()], xlim=(0, 1.05))
    axis.tick_params(axis="y", labelsize=9)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axis.set_title("share of the measured limit")


@styled
def growth(table: pd.DataFrame, tokens: pd.DataFrame) -> Figure:
    """Time and memory per sample against the batch, and time of every sampling step."""
    figure, axes = new(1, 3, width=14, height=3.8)
    time, memory, step = axes[0]
    for number, (name, rows) in enumerate(table.groupby("step")):
        for axis, column in ((time, "ms_per_sample"), (memory, "mb_per_sample")):
            axis.plot(rows["batch"], rows[column], "o-", color=SERIES[number], label=name)
    for axis, text in ((time, "ms per sample"), (memory, "peak MB per sample")):
        axis.set(xlabel="batch", ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_title(text)
        axis.legend()
    step.plot(tokens["token"], 1e3 * tokens["seconds"], color=SERIES[2])
    step.set(xlabel="image token", ylim=(0, 1e3 * tokens["seconds"].quantile(0.99) * 1.2))
    step.set_title("sampling: ms per step")
    return figure
