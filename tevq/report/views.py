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
from tevq.config import Stage1Config
from tevq.grid import Grid
from tevq.report import tables
from tevq.report.stats import mean_sd
from tevq.report.tables import AS_PUBLISHED, CELLS, MEASURES, QUADS, by_case, published, select
from tevq.runs.run import label

MISSING = "missing"
_DIGITS = {"codes_used": 0, "perplexity": 1, "l1": 4, "perceptual": 4}
_HEADS = {"codes_used": "codes used", "l1": "L1 in [0, 1]", "perceptual": "perceptual distance"}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean (SD) of the values that are there; says so when some are not."""
    every = list(map(float, values))
    found = [value for value in every if value == value]
    if not found:
        return MISSING
    mean, sd = mean_sd(found)
    notes = [] if sd is None else [f"{sd:.{digits}f}"]
    notes += [f"n = {len(found)}"] if len(found) < len(every) else []
    return f"{mean:.{digits}f}" + (f" ({', '.join(notes)})" if notes else "")


def each(values: pd.Series, digits: int = 3) -> str:
    """The value of every seed up to the last that has one, in the order of the seeds."""
    found = values[values.notna()[::-1].cummax()[::-1]]
    return "  ".join(f"{v:.{digits}f}" if v == v else MISSING for v in found)


def difference(values: Iterable[float], paper: float | None, digits: int = 3) -> str:
    """Our mean minus the paper's value; a dash where either is missing."""
    found = [value for value in map(float, values) if value == value]
    if not found or paper is None:
        return "–"
    return f"{mean_sd(found)[0] - paper:+.{digits}f}"


def published_text(rows: pd.DataFrame, digits: int = 3) -> str:
    """A published value with its SD, or a dash."""
    if rows.empty:
        return "–"
    row = rows.iloc[0]
    return f"{row.value:.{digits}f}" + ("" if row.sd != row.sd else f" ({row.sd:.{digits}f})")


def accuracy(table: pd.DataFrame, task: str, split: str = "test", decoding: str = "",
             metric: str = "") -> pd.DataFrame:
    """Table 1 for one task (t2i, i2t): rows (variant, what), columns Quad1-4, their mean, center.

    Without decoding and metric: what the paper counts, with its numbers (held-out combinations).
    Text->image also gets two ceilings: the same metric of real images and of reconstructions.
    """
    decoding, metric = decoding or AS_PUBLISHED[task][0], metric or AS_PUBLISHED[task][1]
    where = {"split": split, "metric": metric}
    ours = by_case(table, task=task, decoding=decoding, **where)
    comparable = split == "test" and (decoding, metric) == AS_PUBLISHED[task]
    theirs = published(1) if comparable else published(1)[:0]
    ceilings = {name: by_case(table, task=task_name, **where)
                for name, task_name in (("ceiling: reconstructions", "ceiling-reconstruction"),
                                        ("ceiling: real images", "ceiling-real"))
                if task == "t2i"}
    lines = {}
    for variant in ours.index.unique("variant"):
        values = ours.loc[variant]
        lines[variant, "ours"] = [spread(values[c]) for c in ours]
        if _several(values):
            lines[variant, "each seed"] = [each(values[c]) for c in ours]
        own = select(theirs, variant=variant, task=task)
        if comparable:
            mean = pd.DataFrame({"value": [own.value.mean()], "sd": [math.nan]})
            paper = {c: mean if c == "mean" else select(own, case=c) for c in ours}
            lines[variant, "paper"] = [published_text(rows) for rows in paper.values()]
            lines[variant, "ours − paper"] = [
                difference(values[c], float(rows.value.iloc[0]) if len(rows) else None)
                for c, rows in paper.items()]
        lines |= {(variant, name): [spread(ceiling.loc[variant][c]) for c in ours]
                  for name, ceiling in ceilings.items()}
    heads = [c.capitalize() for c in QUADS] + ["mean of Quad1–4", "center"]
    return _table(lines, heads)


def metrics(table: pd.DataFrame, task: str, decoding: str) -> pd.DataFrame:
    """Every metric of one task on both splits: mean over Quad1-4, rows (variant, split)."""
    rows = select(table[table.case.isin(QUADS)], task=task, decoding=decoding)
    names, lines = list(dict.fromkeys(rows.metric)), {}
    for variant in dict.fromkeys(rows.variant):
        for split, text in (("test", "held out"), ("test_seen", "seen")):
            part = select(rows, variant=variant, split=split)
            lines[variant, text] = [
                spread(select(part, metric=m).groupby("seed").value.apply(
                    lambda values: values.mean(skipna=False))) for m in names]
    return _table(lines, names)


def sample_efficiency(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2: text->image digit accuracy in Quad1, of the seeds that have both, if any has."""
    rows = {size: by_case(table, split="test", size=size) for size in ("full", "third")}
    theirs, lines = published(2), {}
    for variant in rows["full"].index.unique("variant"):
        full, third = (rows[size].loc[variant]["quad1"] for size in rows)
        full = full.where(third.notna()) if third.notna().any() else full
        ours = [full, third, full - third]
        paper = [select(theirs, variant=variant, size=size) for size in rows]
        values = [float(rows.value.iloc[0]) for rows in paper]
        values.append(values[0] - values[1])
        lines[variant, "ours"] = [*map(spread, ours)]
        if _several(pd.concat(ours[:2], axis=1)):
            lines[variant, "each seed"] = [*map(each, ours)]
        lines[variant, "paper"] = [*map(published_text, paper), f"{values[2]:.3f}"]
        lines[variant, "ours − paper"] = [*map(difference, ours, values)]
    scenes = {size: select(table, size=size).training_scenes.max() for size in rows}
    return _table(lines, [*(f"{size}: {count:,} scenes" for size, count in scenes.items()),
                          "difference"])


def reconstruction(table: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Table 3: codes used, perplexity, L1 and perceptual distance per source and variant.

    The perceptual distances compare only when ours is LPIPS-VGG like the paper's. Items that the
    paper did not use stand beside its MNIST numbers; of mb, mp and cb it prints none.
    """
    theirs, lines = published(3), {}
    for (source, variant), rows in select(table, split=split).groupby(["source", "variant"],
                                                                     sort=False):
        ours = {m: select(rows, metric=m).value for m in _DIGITS}
        same = source if source in set(theirs.source) else "mnist"
        paper = {m: select(theirs, source=same, variant=variant, metric=m) for m in _DIGITS}
        lines[source, variant, "ours"] = [spread(ours[m], _DIGITS[m]) for m in _DIGITS]
        if rows.dropna(subset="value").seed.nunique() > 1:
            lines[source, variant, "each seed"] = [each(ours[m], _DIGITS[m]) for m in _DIGITS]
        name = "paper" if same == source else f"paper, {same}"
        if paper["l1"].empty:
            continue
        lines[source, variant, name] = [published_text(paper[m], _DIGITS[m]) for m in _DIGITS]
        lpips = set(rows.perceptual) == {"lpips-vgg"}
        lines[source, variant, "ours − paper"] = [
            difference(ours[m], float(paper[m].value.iloc[0])
                       if len(paper[m]) and (m != "perceptual" or lpips) else None, _DIGITS[m])
            for m in _DIGITS]
    ours = "/".join(dict.fromkeys(table.perceptual))
    heads = [_HEADS.get(m, m) + (f" ({ours}; paper lpips-vgg)" if m == "perceptual" else "")
             for m in _DIGITS]
    return _table(lines, heads)


def equivariance(table: pd.DataFrame, metric: str = "kappa") -> pd.DataFrame:
    """Equation 2: one metric of the four measures, over all and over foreground cells."""
    rows = select(table, task="measure", metric=metric)
    lines = {key: [spread(select(found, case=case, cells=kind).value)
                   for kind in CELLS for case in MEASURES]
             for key, found in rows.groupby(["source", "variant"], sort=False)}
    return _table(lines, [f"{case}, {kind}" for kind in CELLS for case in MEASURES])


_OVERVIEW = {  # the numbers that say most about a variant
    "text→image": {"task": "t2i", "decoding": "sampled", "metric": "digit"},
    "text→image, greedy": {"task": "t2i", "decoding": "greedy", "metric": "digit"},
    "image→text": {"task": "i2t", "decoding": "sampled", "metric": "official_digit"},
    "ceiling: reconstructions": {"task": "ceiling-reconstruction", "metric": "digit"},
    "codes used": {"task": "reconstruction", "metric": "codes_used"},
    "kappa, grid": {"task": "measure", "case": "grid", "metric": "kappa", "cells": "foreground"},
    "kappa, context": {"task": "measure", "case": "context", "metric": "kappa",
                       "cells": "foreground"},
}


def overview(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per variant: accuracies (means over Quad1-4, held out), codes, equivariance."""
    every = _usual(built, built["table1"].source.iloc[0])
    return _table({(variant,): [spread(values, digits) for values, digits in _means(rows)]
                   for variant, rows in every.groupby("variant", sort=False)}, list(_OVERVIEW))


def strides(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: sc and te at both strides. Accuracies are means over Quad1-4, held out.

    The networks differ too (a coarser stride has one more level), and so do the shifts of `grid`
    (multiples of the stride): compare the variants of one stride.
    """
    other = built["stride"]
    if other.empty:
        return _table({}, list(_OVERVIEW), "stride")
    usual = _usual(built, other.source.iloc[0])
    every, lines = pd.concat([usual[usual.variant.isin(other.variant)], other]), {}
    for (stride, variant), rows in every.groupby(["stride", "variant"]):
        key, means = (str(stride), variant), _means(rows)
        lines[(*key, "ours")] = [spread(values, digits) for values, digits in means]
        if _several(pd.concat([values for values, _ in means], axis=1)):
            lines[(*key, "each seed")] = [each(values, digits) for values, digits in means]
    return _table(lines, list(_OVERVIEW), "stride")


def _usual(built: dict[str, pd.DataFrame], source: str) -> pd.DataFrame:
    """Tables 1, 3 and equivariance in one, of one source."""
    every = pd.concat([built[name] for name in ("table1", "table3", "equivariance")])
    return select(every, source=source)


def _means(rows: pd.DataFrame) -> list[tuple[pd.Series, int]]:
    """For each head of the overview: its value by seed (mean over cases), and digits to show."""
    rows = rows[((rows.split == "test") | (rows.task == "measure")) & (rows.case != "center")]
    return [(select(rows, **where).groupby("seed").value.apply(
        lambda found: found.mean(skipna=False)), _DIGITS.get(where["metric"], 3))
        for where in _OVERVIEW.values()]


def _several(values: pd.DataFrame) -> bool:
    """Whether more than one seed (row) has a value: the mean of one says all that there is."""
    return values.notna().any(axis=1).sum() > 1


def caption(grid: Grid, table: pd.DataFrame) -> str:
    """What stands over every table: preset, size beside the paper's, overrides, classifier."""
    s, full, seeds = grid.settings, presets.paper(), ", ".join(map(str, grid.seeds))
    parts = [f"preset {grid.preset}"]
    if grid.preset != "paper" or grid.overrides:
        parts.append("scaled down: " + ", ".join((
            f"{s.data.train:,} of the paper's {full.data.train:,} training scenes",
            f"{_images(s.stage1):,} of {_images(full.stage1):,} Stage-1 images",
            f"{s.stage2.steps * s.stage2.batch:,} of {full.stage2.steps * full.stage2.batch:,} "
            "Stage-2 sequences")))
    changed = [f"{name} = {value}" for name, value in grid.overrides.items()]
    parts += [_few(changed), f"mean (SD) over seeds {seeds}, or over n of them"
              if len(grid.seeds) > 1 else f"one seed: {seeds}"]
    known = table.dropna(subset="classifier_accuracy").drop_duplicates("source")
    parts += [f"classifier right on {row.classifier_accuracy:.2%} of real {row.source} test items"
              for row in known.itertuples()]
    return "; ".join(filter(None, [*parts, _precisions(grid)]))


def _precisions(grid: Grid) -> str:
    """Names the cells that were trained in another precision than most; empty when there are none.

    (`auto` is bfloat16 where the processor has it, so a grid filled on two machines may differ.)
    """
    found: dict[str, dict[str, None]] = {}
    for cell, kind in itertools.product(tables.cells(grid), ("stage1", "stage2")):
        run = cell.run(kind)
        if run.done and run.made_on:
            name = label(cell.settings, kind)
            found.setdefault(run.made_on["precision"], {})[name] = None
    usual, *others = sorted(found, key=lambda precision: -len(found[precision])) or [""]
    return "; ".join(f"trained in {other} instead of {usual}: {_few(list(found[other]))}"
                     for other in others)


def _few(words: list[str], most: int = 4) -> str:
    """The first words, and how many more."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _images(s: Stage1Config) -> int:
    """Images of a Stage-1 training, warm-up included."""
    return (s.warmup_steps + s.steps) * s.batch


def differences(grid: Grid) -> pd.DataFrame:
    """Settings of this study that differ from preset `paper`: name, here, paper."""
    s = grid.settings
    here = s.as_dict(neutral=True)
    paper = presets.load("paper", s.variant, s.seed).as_dict(neutral=True)
    return pd.DataFrame([
        {"setting": f"{group}.{name}", "here": str(value), "paper": str(paper[group][name])}
        for group, values in here.items() if isinstance(values, dict)
        for name, value in values.items() if value != paper[group][name]],
        columns=["setting", "here", "paper"])


def show(view: pd.DataFrame, title: str, name: str) -> Styler:
    """The view with its caption, for display; `name` keeps the HTML the same on every run."""
    bold = [isinstance(row, tuple) and row[-1] == "ours" for row in view.index]

    def look(column: pd.Series) -> list[str]:
        return ["color: #B00020" if str(text).startswith(MISSING) else
                "font-weight: bold" if ours else ""
                for text, ours in zip(column, bold, strict=True)]

    return view.style.apply(look).set_uuid(name).set_caption(title)


def _table(lines: dict[tuple[str, ...], list[str]], heads: list[str], first: str = "source"
           ) -> pd.DataFrame:
    names = [first, "variant", "of"] if lines and len(next(iter(lines))) == 3 else None
    index = pd.MultiIndex.from_tuples(lines, names=names) if lines else None
    return pd.DataFrame(list(lines.values()), index=index, columns=heads)
