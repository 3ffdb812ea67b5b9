"""Wide tables for reading: ours beside the paper's and the difference. See `tables` for the data.

Entries: `0.931 (0.033)` is mean (SD over seeds), `0.931 (n = 1)` one seed of many, `missing` none.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from tevq import presets
from tevq.config import Settings
from tevq.grid import Grid
from tevq.report import tables
from tevq.report.tables import AS_PUBLISHED, CELLS, MEASURES, QUADS, by_case, published, select
from tevq.runs.run import label

MISSING, UNPLANNED = "missing", "not planned"
CASES = {case: case.capitalize() for case in QUADS} | {"mean": "mean of Quad1–4"}
TABLE3 = {"codes_used": "codes used", "perplexity": "perplexity", "l1": "L1 in [0, 1]",
          "perceptual": "perceptual distance"}
DIGITS = {"codes used": 0, "perplexity": 1, "L1 in [0, 1]": 4, "perceptual distance": 4}  # else 3


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean (SD) of the values that are there; says so when some are not."""
    found = pd.Series(values, dtype=float)
    n = int(found.count())
    notes = [f"{found.std():.{digits}f}"] * (n > 1) + [f"n = {n}"] * (n < len(found))
    return f"{found.mean():.{digits}f}" + f" ({', '.join(notes)})" * bool(notes) if n else MISSING


def each(values: pd.Series, digits: int = 3) -> str:
    """The value of every seed up to the last that has one, in the order of the seeds."""
    found = values[values.notna()[::-1].cummax()[::-1]]
    return "  ".join(f"{v:.{digits}f}" if v == v else MISSING for v in found)


def plain(ours: pd.DataFrame, summary=spread) -> pd.DataFrame:
    """Means and SDs over seeds as text. ours: index (key ..., seed), columns heads."""
    groups = ours.groupby(level=ours.index.names[:-1], sort=False)
    return pd.DataFrame({head: groups[head].agg(summary, digits=_digits(head)) for head in ours})


def beside(ours: pd.DataFrame, paper: pd.DataFrame | None = None,
           more: Mapping[str, pd.DataFrame] = {}) -> pd.DataFrame:
    """Rows `ours`, `each seed`, the paper's, the difference, and `more`, for every key.

    ours: index (key ..., seed), columns heads. paper: index (key ...), columns (`value` or `sd`,
    head). more: other rows as from `plain`.
    """
    keys = ours.index.names[:-1]
    ran = ours.notna().any(axis=1).groupby(level=keys, sort=False).sum()
    rows = {"ours": plain(ours), "each seed": plain(ours, each)[ran > 1]}
    if paper is not None and len(theirs := paper[paper.index.isin(rows["ours"].index)]):
        value, sd = (theirs[of].reindex(columns=ours.columns) for of in ("value", "sd"))
        means = ours.groupby(level=keys).mean().reindex(value.index)
        rows["paper"] = _numbers(value) + (" (" + _numbers(sd) + ")").where(sd.notna(), "")
        rows["ours − paper"] = _numbers(means - value, "+")
    found = pd.concat(rows | more, names=["of"]).reorder_levels([*keys, "of"])
    place = rows["ours"].index.get_indexer(found.index.droplevel("of"))
    return found.iloc[np.argsort(place, kind="stable")]


def _digits(head: str) -> int:
    return next((digits for name, digits in DIGITS.items() if head.startswith(name)), 3)


def _numbers(values: pd.DataFrame, sign: str = "") -> pd.DataFrame:
    """Numbers as text, with a dash for those that are not there."""
    return values.apply(lambda column: column.map(
        lambda x: f"{x:{sign}.{_digits(column.name)}f}" if x == x else "–").astype(object))


def accuracy(table: pd.DataFrame, task: str, split: str = "test", decoding: str = "",
             metric: str = "") -> pd.DataFrame:
    """Table 1 for one task (t2i, i2t): rows (variant, of), columns Quad1-4, their mean, center.

    Without decoding and metric: what the paper counts, with its numbers (held-out combinations).
    Text->image also gets two ceilings: the same metric of real images and of reconstructions.
    """
    decoding, metric = decoding or AS_PUBLISHED[task][0], metric or AS_PUBLISHED[task][1]
    where, paper = {"split": split, "metric": metric}, None
    if split == "test" and (decoding, metric) == AS_PUBLISHED[task]:
        paper = select(published(1), task=task).replace({"case": CASES}).pivot(
            index="variant", columns="case", values=["value", "sd"])
        paper["value", CASES["mean"]] = paper["value"].mean(axis=1)
    ceilings = {f"ceiling: {name}": plain(by_case(table, task=f"ceiling-{of}", **where)
                                          .rename(columns=CASES))
                for name, of in (("reconstructions", "reconstruction"),
                                 ("real images", "real")) if task == "t2i"}
    ours = by_case(table, task=task, decoding=decoding, **where).rename(columns=CASES)
    return beside(ours, paper, ceilings if len(ours) else {})


def metrics(table: pd.DataFrame, task: str, decoding: str) -> pd.DataFrame:
    """Every metric of one task on both splits: mean over Quad1-4, rows (variant, split)."""
    rows = select(table[table.case.isin(QUADS)], task=task, decoding=decoding)
    rows = rows.replace({"split": {"test": "held out", "test_seen": "seen"}})
    return plain(tables.wide(rows, ["variant", "split"], list(dict.fromkeys(rows.metric))))


def sample_efficiency(table: pd.DataFrame) -> pd.DataFrame:
    """Table 2: text->image digit accuracy in Quad1, of the seeds that have both, if any has."""
    heads = {size: f"{size}: {select(table, size=size).training_scenes.max():,} scenes"
             for size in ("full", "third")}
    full, third = heads.values()
    ours = pd.DataFrame({head: by_case(table, split="test", size=size).quad1
                         for size, head in heads.items()})
    both = ours[third].notna()
    ours[full] = ours[full].where(both | ~both.groupby("variant").transform("any"))
    ours["difference"] = ours[full] - ours[third]
    paper = published(2).replace({"size": heads}).pivot(
        index="variant", columns="size", values=["value", "sd"])
    paper["value", "difference"] = paper["value"][full] - paper["value"][third]
    return beside(ours, paper)


def reconstruction(table: pd.DataFrame) -> pd.DataFrame:
    """Table 3: codes used, perplexity, L1 and perceptual distance per source and variant.

    The paper's perceptual distance is LPIPS-VGG, and is left out where ours is another one.
    """
    distance = "/".join(dict.fromkeys(table.perceptual))
    heads = TABLE3 | {"perceptual": f"perceptual distance ({distance})"}
    ours = tables.wide(select(table, split="test"), ["source", "variant"], list(heads))
    paper = published(3).pivot(index=["source", "variant"], columns="metric",
                               values=["value", "sd"])
    if distance != "lpips-vgg":
        paper = paper.drop(columns="perceptual", level=1)
    return beside(ours.rename(columns=heads), paper.rename(columns=heads, level=1))


def equivariance(table: pd.DataFrame) -> pd.DataFrame:
    """Equation 2: kappa of the four measures, over all and over foreground cells."""
    rows = select(table, task="measure", metric="kappa")
    return plain(tables.wide(rows.assign(metric=rows.case + ", " + rows.cells), [
        "source", "variant"], [f"{case}, {kind}" for kind in CELLS for case in MEASURES]))


def caption(grid: Grid, table: pd.DataFrame) -> str:
    """What stands over every table: preset, size beside the paper's, overrides, classifier."""
    s, full, seeds = grid.settings, presets.paper(), ", ".join(map(str, grid.seeds))
    parts = [f"preset {grid.preset}"]
    if grid.preset != "paper" or grid.overrides:
        parts.append(f"scaled down: {s.data.train:,} of the paper's {full.data.train:,} training "
                     f"scenes, {samples(s)[0]:,} of {samples(full)[0]:,} Stage-1 images, "
                     f"{samples(s)[1]:,} of {samples(full)[1]:,} Stage-2 sequences")
    parts += [f"{name} = {value}" for name, value in grid.overrides.items()]
    parts += [f"mean (SD) over seeds {seeds}, or over n of them"
              if len(grid.seeds) > 1 else f"one seed: {seeds}"]
    known = table.dropna(subset="classifier_accuracy").drop_duplicates("source")
    parts += [f"classifier right on {row.classifier_accuracy:.2%} of real {row.source} test items"
              for row in known.itertuples()]
    made = pd.Series({  # `auto` is bfloat16 only where the processor has it
        label(cell.settings, kind): run.made_on.get("precision") for cell in tables.cells(grid)
        for kind in ("stage1", "stage2") if (run := cell.run(kind)).done}, dtype=object).dropna()
    usual, *others = made.value_counts().index if len(made) else [""]
    parts += [f"trained in {other} instead of {usual}: {', '.join(made.index[made == other])}"
              for other in others]
    return "; ".join(parts)


def samples(s: Settings) -> tuple[int, int]:
    """Images of a Stage-1 training, warm-up included, and sequences of a Stage-2 training."""
    first, second = s.stage1, s.stage2
    return (first.warmup_steps + first.steps) * first.batch, second.steps * second.batch


def show(view: pd.DataFrame, title: str, name: str, planned: bool = True) -> Styler:
    """The view with its caption, for display; `name` keeps the HTML the same on every run.

    planned: False for a table that nobody asked for; what it lacks is not missing then.
    """
    bold = [row for row in view.index if isinstance(row, tuple) and row[-1] == "ours"]
    view = view if planned else view.replace(MISSING, UNPLANNED, regex=True)
    colours = {MISSING: "color: #8A5A00", UNPLANNED: "color: #999999"}
    return (view.style.set_properties(subset=(bold, slice(None)), **{"font-weight": "bold"})
            .map(lambda text: next((colour for word, colour in colours.items()
                                    if str(text).startswith(word)), ""))
            .set_uuid(name).set_caption(title))
