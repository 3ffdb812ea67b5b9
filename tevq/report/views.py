"""Wide tables for reading: ours beside the paper's and the difference. See `tables` for the data.

Entries: `0.931 (0.033)` is mean (SD over seeds), `0.931 (n = 1)` one seed of many, `missing` none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pandas as pd
from pandas.io.formats.style import Styler

from tevq import presets
from tevq.config import Settings
from tevq.grid import Grid
from tevq.report import tables
from tevq.report.stats import mean_sd
from tevq.report.tables import AS_PUBLISHED, CELLS, MEASURES, QUADS, by_case, published, select
from tevq.runs.run import label

MISSING = "missing"
_TABLE3 = {"codes_used": "codes used", "perplexity": "perplexity", "l1": "L1 in [0, 1]",
           "perceptual": "perceptual distance"}
_DIGITS = dict(zip(_TABLE3.values(), (0, 1, 4, 4), strict=True))  # three for the other heads
_CASES = {case: case.capitalize() for case in QUADS} | {"mean": "mean of Quad1–4"}
_KAPPA = {"task": "measure", "metric": "kappa", "cells": "foreground"}
_OVERVIEW = {  # the numbers that say most about a variant
    "text→image": {"task": "t2i", "decoding": "sampled", "metric": "digit"},
    "text→image, greedy": {"task": "t2i", "decoding": "greedy", "metric": "digit"},
    "image→text": {"task": "i2t", "decoding": "sampled", "metric": "official_digit"},
    "ceiling: reconstructions": {"task": "ceiling-reconstruction", "metric": "digit"},
    "codes used": {"task": "reconstruction", "metric": "codes_used"},
    "kappa, grid": {"case": "grid"} | _KAPPA, "kappa, context": {"case": "context"} | _KAPPA,
}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean (SD) of the values that are there; says so when some are not."""
    every = pd.Series(values, dtype=float)
    found = every.dropna()
    if found.empty:
        return MISSING
    mean, sd = mean_sd(found)
    notes = [] if sd is None else [f"{sd:.{digits}f}"]
    notes += [f"n = {len(found)}"] if len(found) < len(every) else []
    return f"{mean:.{digits}f}" + (f" ({', '.join(notes)})" if notes else "")


def each(values: pd.Series, digits: int = 3) -> str:
    """The value of every seed up to the last that has one, in the order of the seeds."""
    found = values[values.notna()[::-1].cummax()[::-1]]
    return "  ".join(f"{v:.{digits}f}" if v == v else MISSING for v in found)


def plain(ours: pd.DataFrame) -> pd.DataFrame:
    """Means and SDs over seeds as text. ours: index (key ..., seed), columns heads."""
    return pd.DataFrame({head: ours[head].groupby(level=ours.index.names[:-1], sort=False).agg(
        spread, digits=_digits(head)) for head in ours})


def beside(ours: pd.DataFrame, paper: dict[tuple, dict] | None = None,
           more: dict[str, pd.DataFrame] | None = None) -> pd.DataFrame:
    """Rows `ours`, `each seed`, the paper's, the difference, and `more`, for every key.

    ours: index (key ..., seed), columns heads. paper: {key: {head: (value, SD or NaN)}}. more:
    other rows as from `plain`.
    """
    lines, keys = {}, ours.index.names[:-1]
    for key, values in ours.groupby(level=keys, sort=False):
        key = key if isinstance(key, tuple) else (key,)
        heads = [(head, _digits(head)) for head in values]
        rows = {"ours": [spread(values[h], digits) for h, digits in heads]}
        if values.notna().any(axis=1).sum() > 1:  # the mean of one seed says all that there is
            rows["each seed"] = [each(values[h], digits) for h, digits in heads]
        if theirs := (paper or {}).get(key):
            pairs = [theirs.get(h, (math.nan, math.nan)) for h, _ in heads]
            rows["paper"] = [_number(*pair, digits)
                             for pair, (_, digits) in zip(pairs, heads, strict=True)]
            rows["ours − paper"] = [_number(values[h].mean() - value, math.nan, digits, "+")
                                    for (value, _), (h, digits) in zip(pairs, heads, strict=True)]
        rows |= {title: list(other.loc[key if len(key) > 1 else key[0]])
                 for title, other in (more or {}).items()}
        lines |= {(*key, row): cells for row, cells in rows.items()}
    index = pd.MultiIndex.from_tuples(lines, names=[*keys, "of"]) if lines else None
    return pd.DataFrame(list(lines.values()), index=index, columns=list(ours))


def _digits(head: str) -> int:
    return next((digits for name, digits in _DIGITS.items() if head.startswith(name)), 3)


def _number(value: float, sd: float, digits: int, sign: str = "") -> str:
    """A value with its SD, or a dash."""
    return "–" if value != value else f"{value:{sign}.{digits}f}" + (
        f" ({sd:.{digits}f})" if sd == sd else "")


def accuracy(table: pd.DataFrame, task: str, split: str = "test", decoding: str = "",
             metric: str = "") -> pd.DataFrame:
    """Table 1 for one task (t2i, i2t): rows (variant, of), columns Quad1-4, their mean, center.

    Without decoding and metric: what the paper counts, with its numbers (held-out combinations).
    Text->image also gets two ceilings: the same metric of real images and of reconstructions.
    """
    decoding, metric = decoding or AS_PUBLISHED[task][0], metric or AS_PUBLISHED[task][1]
    where, paper = {"split": split, "metric": metric}, {}
    if split == "test" and (decoding, metric) == AS_PUBLISHED[task]:
        for variant, rows in select(published(1), task=task).groupby("variant"):
            pairs = {_CASES[row.case]: (row.value, row.sd) for row in rows.itertuples()}
            paper[variant,] = pairs | {_CASES["mean"]: (rows.value.mean(), math.nan)}
    ceilings = {f"ceiling: {name}": plain(by_case(table, task=f"ceiling-{of}", **where))
                for name, of in (("reconstructions", "reconstruction"),
                                         ("real images", "real")) if task == "t2i"}
    ours = by_case(table, task=task, decoding=decoding, **where).rename(columns=_CASES)
    return beside(ours, paper, ceilings)


def metrics(table: pd.DataFrame, task: str, decoding: str) -> pd.DataFrame:
    """Every metric of one task on both splits: mean over Quad1-4, rows (variant, split)."""
    rows = select(table[table.case.isin(QUADS)], task=task, decoding=decoding)
    rows = rows.assign(split=rows.split.map({"test": "held out", "test_seen": "seen"}))
    return plain(tables.wide(rows, ["variant", "split"], list(dict.fromkeys(rows.metric))))


def sample_efficiency(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2: text->image digit accuracy in Quad1, of the seeds that have both, if any has."""
    sizes = {size: f"{size}: {select(table, size=size).training_scenes.max():,} scenes"
             for size in ("full", "third")}
    ours = pd.DataFrame({head: by_case(table, split="test", size=size).quad1
                         for size, head in sizes.items()})
    full, third = sizes.values()
    both = ours[third].notna()
    ours[full] = ours[full].where(both | ~both.groupby("variant").transform("any"))
    ours["difference"], paper = ours[full] - ours[third], {}
    for variant, rows in published(2).groupby("variant"):
        pairs = {sizes[row.size_]: (row.value, row.sd)
                 for row in rows.rename(columns={"size": "size_"}).itertuples()}
        paper[variant,] = pairs | {"difference": (pairs[full][0] - pairs[third][0], math.nan)}
    return beside(ours, paper)


def reconstruction(table: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Table 3: codes used, perplexity, L1 and perceptual distance per source and variant.

    The paper's perceptual distance is LPIPS-VGG, and is left out where ours is another one.
    """
    distance = "/".join(dict.fromkeys(table.perceptual))
    heads = _TABLE3 | {"perceptual": f"perceptual distance ({distance})"}
    ours = tables.wide(select(table, split=split), ["source", "variant"], list(heads))
    paper: dict[tuple, dict] = {}
    for row in published(3).itertuples():
        if row.metric != "perceptual" or distance == "lpips-vgg":
            paper.setdefault((row.source, row.variant), {})[heads[row.metric]] = row.value, math.nan
    return beside(ours.rename(columns=heads), paper)


def equivariance(table: pd.DataFrame, metric: str = "kappa") -> pd.DataFrame:
    """Equation 2: one metric of the four measures, over all and over foreground cells."""
    rows = select(table, task="measure", metric=metric)
    return plain(tables.wide(rows.assign(metric=rows.case + ", " + rows.cells), [
        "source", "variant"], [f"{case}, {kind}" for kind in CELLS for case in MEASURES]))


def overview(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per variant: accuracies (means over Quad1-4, held out), codes, equivariance."""
    return plain(_means(_usual(built, built["table1"].source.iloc[0]), ["variant"]))


def strides(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: sc and te at both strides. Accuracies are means over Quad1-4, held out.

    The networks differ too (a coarser stride has one more level), and so do the shifts of `grid`
    (multiples of the stride): compare the variants of one stride.
    """
    other = built["stride"]
    usual = _usual(built, other.source.iloc[0]) if len(other) else other
    parts = [usual[usual.variant.isin(other.variant)], other]
    rows = pd.concat(sorted(parts, key=lambda part: part.stride.min())).astype({"stride": str})
    return beside(_means(rows, ["stride", "variant"]))


def _usual(built: dict[str, pd.DataFrame], source: str) -> pd.DataFrame:
    """Tables 1, 3 and equivariance in one, of one source."""
    return select(pd.concat([built[name] for name in ("table1", "table3", "equivariance")]),
                  source=source)


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The heads of the overview by key and seed; means over the cases Quad1-4."""
    rows = rows[((rows.split == "test") | (rows.task == "measure")) & (rows.case != "center")]
    return tables.wide(pd.concat([select(rows, **where).assign(metric=head)
                                  for head, where in _OVERVIEW.items()]), keys, list(_OVERVIEW))


def caption(grid: Grid, table: pd.DataFrame) -> str:
    """What stands over every table: preset, size beside the paper's, overrides, classifier."""
    s, full, seeds = grid.settings, presets.paper(), ", ".join(map(str, grid.seeds))
    parts = [f"preset {grid.preset}"]
    if grid.preset != "paper" or grid.overrides:
        parts.append(f"scaled down: {s.data.train:,} of the paper's {full.data.train:,} training "
                     f"scenes, {samples(s)[0]:,} of {samples(full)[0]:,} Stage-1 images, "
                     f"{samples(s)[1]:,} of {samples(full)[1]:,} Stage-2 sequences")
    parts += [_few([f"{name} = {value}" for name, value in grid.overrides.items()]),
              f"mean (SD) over seeds {seeds}, or over n of them"
              if len(grid.seeds) > 1 else f"one seed: {seeds}"]
    known = table.dropna(subset="classifier_accuracy").drop_duplicates("source")
    parts += [f"classifier right on {row.classifier_accuracy:.2%} of real {row.source} test items"
              for row in known.itertuples()]
    return "; ".join(filter(None, [*parts, _precisions(grid)]))


def _precisions(grid: Grid) -> str:
    """Names the trainings in another precision than most; empty when there are none.

    (`auto` is bfloat16 where the processor has it, so a grid filled on two machines may differ.)
    """
    runs = [(label(cell.settings, kind), cell.run(kind))
            for cell, kind in itertools.product(tables.cells(grid), ("stage1", "stage2"))]
    made = pd.Series({name: run.made_on["precision"] for name, run in runs
                      if run.done and run.made_on}, dtype=object)
    usual, *others = made.value_counts().index if len(made) else [""]
    return "; ".join(f"trained in {other} instead of {usual}: "
                     + _few(list(made.index[made == other])) for other in others)


def _few(words: list[str], most: int = 4) -> str:
    """The first words, and how many more."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def samples(s: Settings) -> tuple[int, int]:
    """Images of a Stage-1 training, warm-up included, and sequences of a Stage-2 training."""
    first, second = s.stage1, s.stage2
    return (first.warmup_steps + first.steps) * first.batch, second.steps * second.batch


def differences(grid: Grid) -> pd.DataFrame:
    """Settings of this study that differ from preset `paper`: name, here, paper."""
    s = grid.settings
    here, paper = (pd.json_normalize(x.as_dict(neutral=True)).T[0].astype(str)
                   for x in (s, presets.load("paper", s.variant, s.seed)))
    found = pd.DataFrame({"here": here, "paper": paper}).rename_axis("setting").reset_index()
    return found[(found.here != found.paper) & found.setting.str.contains(".", regex=False)]


def show(view: pd.DataFrame, title: str, name: str) -> Styler:
    """The view with its caption, for display; `name` keeps the HTML the same on every run."""
    bold = [row for row in view.index if isinstance(row, tuple) and row[-1] == "ours"]
    return (view.style.set_properties(subset=(bold, slice(None)), **{"font-weight": "bold"})
            .map(lambda text: "color: #B00020" if str(text).startswith(MISSING) else "")
            .set_uuid(name).set_caption(title))
