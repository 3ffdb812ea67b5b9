"""The tables of the study, rebuilt from run files only.

A cell is one finished run, found by the digest of its settings, so a table never mixes runs made
with different settings. Cells that are missing stay in the table, with an empty value.

Long format, one row per number: `preset, variant, seed, task, case, metric, value, n`, then what
the number depends on. Values are shares (0..1) unless the metric says otherwise; `l1` is in [0, 1].
"""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit

from tevq.config import Settings, SettingsError
from tevq.data.scenes import CASES
from tevq.evaluate.metrics import CAPTION_METRICS, DECODINGS, IMAGE_METRICS, SPLITS
from tevq.grid import FRACTION, OTHER_SOURCE, Grid
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import write_atomically

PAPER = devices.ROOT / "results" / "paper.csv"
NAMES = ("table1", "table2", "table3", "equivariance", "stride")
QUADS = CASES[:4]
WHOLE = {"n", "correct", "codes", "codes_used"}  # columns of counts, empty where a cell is missing
TEXTS = {"split", "decoding", "cells"}
FIRST = ["preset", "variant", "seed", "task", "case", "metric", "value", "n"]
REST = ["source", "size", "training_scenes", "stride", "classifier_accuracy", "perceptual", "run",
        "state", "split", "decoding", "cells"]  # those of an empty table
AS_PUBLISHED = {"t2i": ("sampled", "digit"), "i2t": ("sampled", "official_digit")}  # Table 1 counts
MEASURES = ("official", "grid", "subgrid", "context")
CELLS = ("all", "foreground")
KINDS = ("quantizer", "evaluation")  # of cells


class Cell(NamedTuple):
    """One run of `evaluation`, and the results folder it lies in."""

    settings: Settings
    kind: str  # quantizer or evaluation
    size: str  # training scenes of Stage 2: full or third
    results: str | None

    def run(self, kind: str = "") -> Run:
        """Its run, or another kind of run with the same settings."""
        return open_run(self.settings, kind or self.kind, self.results)


def cells(grid: Grid) -> list[Cell]:
    """Every cell of all tables, whether it exists or not: Table 1 first, then Tables 2 to 4."""
    found = [(settings, kind, "full") for settings in grid.cells for kind in KINDS]
    for seed, variant in itertools.product(grid.seeds, grid.compared):
        found.append((grid.cell(variant, seed, fraction=FRACTION), "evaluation", "third"))
        if grid.settings.data.source == "mnist":
            found.append((grid.cell(variant, seed, OTHER_SOURCE), "quantizer", "full"))
        if grid.other_stride:
            coarse = grid.cell(variant, seed, stride=grid.other_stride)
            found += [(coarse, kind, "full") for kind in KINDS]
    return [Cell(*cell, grid.results or None) for cell in found]


def build(grid: Grid) -> dict[str, pd.DataFrame]:
    """All five tables by name."""
    usual, parts = grid.settings, {name: [] for name in NAMES}
    for cell in cells(grid):
        s, quantizer = cell.settings, cell.kind == "quantizer"
        accuracy = _accuracy(cell)
        more = {"table3": _reconstruction(cell), "equivariance": _equivariance(cell)
                } if quantizer else {}
        if s.stage1.stride != usual.stage1.stride:
            parts["stride"] += [accuracy, *more.values()]
            continue
        if s.data.source == usual.data.source and cell.size == "full":
            parts["table1"].append(accuracy)
        if s.variant in grid.compared and not quantizer:
            decoding, metric = AS_PUBLISHED["t2i"]
            parts["table2"].append(select(accuracy, task="t2i", decoding=decoding, metric=metric))
        for name, rows in more.items():
            parts[name].append(rows)
    return {name: _table(frames) for name, frames in parts.items()}


def write(grid: Grid, tables: dict[str, pd.DataFrame]) -> list[Path]:
    """Writes the tables as CSV into `results/<preset>/tables`; returns their paths."""
    paths = {name: grid.folder / "tables" / f"{name}.csv" for name in tables}
    for name, table in tables.items():
        write_atomically(paths[name], table.to_csv(
            index=False, lineterminator="\n", float_format="%.6g").encode())
    return list(paths.values())


def read(grid: Grid, name: str) -> pd.DataFrame:
    """A written table. Raises SettingsError when there is none."""
    path = grid.folder / "tables" / f"{name}.csv"
    if not path.exists():
        raise SettingsError(f"no table {path}; run notebook 05 first")
    numbers = ("value", "classifier_accuracy", *WHOLE)
    return pd.read_csv(path, dtype={column: "Int64" for column in WHOLE},
                       keep_default_na=False, na_values={column: [""] for column in numbers})


def published(table: int) -> pd.DataFrame:
    """The paper's Table 1, 2 or 3, from `results/paper.csv`: value and SD, three runs each."""
    found = pd.read_csv(PAPER)
    return found[found.table == table].drop(columns="table").reset_index(drop=True)


def select(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows whose columns have these values, e.g. `select(table1, task="t2i", split="test")`."""
    chosen = np.ones(len(table), dtype=bool)
    for column, value in where.items():
        chosen &= (table[column] == value).to_numpy(dtype=bool)
    return table[chosen]


def wide(rows: pd.DataFrame, keys: list[str], heads: list[str], column: str = "metric"
         ) -> pd.DataFrame:
    """Rows as a matrix: index (keys ..., seed) in the order of the rows, columns heads.

    Values of one place, e.g. of several cases, are averaged; NaN unless all of them are there.
    """
    index = [*keys, "seed"]
    values = rows.groupby([*index, column]).value
    means = values.mean().where(values.count() == values.size())
    order = rows.set_index(index).index.unique()
    return means.unstack(column).reindex(index=order, columns=heads).astype(float)


def by_case(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Values of some rows as a matrix: rows (variant, seed), columns QUADS, `mean`, `center`.

    `mean` is the unweighted mean over Quad1-4, NaN unless all four are there. `where` must leave
    one value per (variant, seed, case): ValueError otherwise.
    """
    rows = select(table, **where)
    if rows.duplicated(["variant", "seed", "case"]).any():
        raise ValueError(f"{where} leaves several values for a variant, seed and case")
    matrix = wide(rows, ["variant"], list(CASES), "case")
    matrix.insert(len(QUADS), "mean", matrix[list(QUADS)].mean(axis=1, skipna=False))
    return matrix


def vocabularies(grid: Grid) -> pd.DataFrame:
    """Kappa of every quantizer with its own codes and with merged ones, on foreground cells.

    Columns variant, seed, measure, groups (0: its own codes), codes_used, kappa, feature_error.
    """
    rows = []
    for s in grid.cells:
        summary = open_run(s, "quantizer", grid.results or None).summary() or {}
        rows += [{"variant": s.variant, "seed": s.seed, "groups": 0} | row
                 for name in ("equivariance", "merged") for row in summary.get(name, ())
                 if row["cells"] == "foreground"]
    columns = ["variant", "seed", "measure", "groups", "codes_used", "kappa", "feature_error"]
    return pd.DataFrame(rows, columns=columns).astype({"kappa": float})


def at_equal_size(found: pd.DataFrame) -> pd.DataFrame:
    """How far merging the codes of sc down to as many as te has takes its kappa to that of te.

    found: as from `vocabularies`. One row per seed and measure: `baseline` (sc) and `ours` (te) as
    trained, `merged` (read off the line of sc between two sizes, linear in the logarithm of the
    number of codes), and `codes` of te. Left out: seeds that lack a variant, sizes beyond the line.
    """
    rows = []
    for (seed, measure), part in found.dropna(subset="kappa").groupby(["seed", "measure"],
                                                                      sort=False):
        line = select(part, variant="sc").sort_values("codes_used")
        for own in select(part, variant="te", groups=0).itertuples():
            if line.codes_used.min() <= own.codes_used <= line.codes_used.max():
                merged = np.interp(np.log(own.codes_used), np.log(line.codes_used), line.kappa)
                rows.append((seed, measure, own.codes_used, select(line, groups=0).kappa.iloc[0],
                             merged, own.kappa))
    return pd.DataFrame(rows, columns=["seed", "measure", "codes", "baseline", "merged", "ours"])


def learning(grid: Grid) -> pd.DataFrame:
    """Learning curves, text->image, of all Stage-2 runs of Tables 1, 2 and 4, on validation scenes.

    Columns scenes (full, third), stride, variant, seed, split (val: held-out combinations,
    val_seen: seen ones), sequences, quad1 ... center.
    """
    rows = []
    for cell in cells(grid):
        s = cell.settings
        own = {"scenes": cell.size, "stride": s.stage1.stride, "variant": s.variant, "seed": s.seed}
        lines = cell.run("stage2").metrics() if cell.kind == "evaluation" else ()
        rows += [line | own | {"split": line["probe"]} for line in lines
                 if line.get("task") == "t2i"]
    return pd.DataFrame(rows, columns=["scenes", "stride", "variant", "seed", "split", "sequences",
                                       *CASES])


def lead(grid: Grid) -> pd.DataFrame:
    """te - sc along the learning curves, text->image, mean of Quad1-4, of the seeds that have both.

    Index split, sequences, seed; columns sc, te, `points` (te - sc), and two that need not shrink
    where both come near 1: `log-odds` (of te minus of sc), `errors of sc / te`. For these an
    accuracy of 0 or 1 counts as 0.001 or 0.999.
    """
    curves = select(learning(grid), scenes="full", stride=grid.settings.stage1.stride)
    found = curves.assign(value=curves[list(QUADS)].astype(float).mean(axis=1)).pivot(
        index=["split", "sequences", "seed"], columns="variant", values="value")
    found = found.reindex(columns=["sc", "te"]).dropna()
    p = found.clip(0.001, 0.999)
    return found.assign(**{"points": found.te - found.sc, "log-odds": logit(p.te) - logit(p.sc),
                           "errors of sc / te": (1 - p.sc) / (1 - p.te)})


def _table(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of several cells; columns FIRST, then the others."""
    frames = [frame for frame in frames if len(frame)] or [pd.DataFrame(columns=[*FIRST, *REST])]
    table = pd.concat(frames, ignore_index=True)
    types = dict.fromkeys(WHOLE, "Int64") | {"value": float}
    table = table.astype({name: kind for name, kind in types.items() if name in table})
    table = table.fillna({name: "" for name in TEXTS if name in table})  # rows of several kinds
    return table[FIRST + [name for name in table if name not in FIRST]]


def _rows(cell: Cell, expected: Iterable[tuple], found: Iterable[dict[str, Any]],
          keys: tuple[str, ...], more: tuple[str, ...] = ()) -> pd.DataFrame:
    """A row for every expected value of the keys, with `value`, `n` and `more` that the run has."""
    index = pd.MultiIndex.from_tuples(list(expected), names=keys)
    values = pd.DataFrame(list(found), columns=[*keys, "value", "n", *more], dtype=object)
    values = values.set_index(list(keys)).reindex(index).reset_index()
    s, run = cell.settings, cell.run()
    classifier = cell.run("classifier").summary() or {}  # the one that judged the run
    labels = {
        "preset": s.preset, "variant": s.variant, "seed": s.seed, "source": s.data.source,
        "size": cell.size, "training_scenes": round(s.data.train * s.stage2.fraction),
        "stride": s.stage1.stride,
        "classifier_accuracy": classifier.get("label_accuracy", np.nan),
        "perceptual": s.stage1.perceptual, "run": run.name,
        "state": "done" if run.done else "missing",
    }
    return pd.DataFrame(labels, index=values.index).join(values)


def _accuracy(cell: Cell) -> pd.DataFrame:
    """Rows of Table 1: ceilings of a quantizer cell, both directions of an evaluation cell."""
    if cell.kind == "quantizer":
        tasks = [(f"ceiling-{of}", "", IMAGE_METRICS) for of in ("real", "reconstruction")]
    else:
        tasks = [(task, decoding, metrics) for task, metrics in (("t2i", IMAGE_METRICS),
                                                                 ("i2t", CAPTION_METRICS))
                 if cell.settings.stage2.directions in ("both", task) for decoding in DECODINGS]
    expected = [
        (task, split, decoding, case, metric) for task, decoding, metrics in tasks
        for split, case, metric in itertools.product(SPLITS, CASES, metrics)
        if (case, metric) != ("quad4", "empty")]  # no quadrant is empty
    return _rows(cell, expected, (cell.run().summary() or {}).get("rows", ()),
                 ("task", "split", "decoding", "case", "metric"), ("correct",))


def _reconstruction(cell: Cell) -> pd.DataFrame:
    """Rows of Table 3; `codes` is K, `perceptual` names the perceptual distance."""
    metrics = ("codes_used", "perplexity", "l1", "perceptual")
    found = [{"task": "reconstruction", "case": "all", "split": line["split"], "metric": metric,
              "value": line[metric], "n": line["n"]} for metric in metrics
             for line in (cell.run().summary() or {}).get("reconstruction", ())]
    expected = itertools.product(["reconstruction"], ["all"], SPLITS, metrics)
    return _rows(cell, expected, found, ("task", "case", "split", "metric")).assign(
        codes=cell.settings.stage1.K)


def _equivariance(cell: Cell) -> pd.DataFrame:
    """Rows of equation 2. Task `measure`: case = the measure; task `sweep`: case = shift in px.

    `n` counts compared grid cells. An empty kappa in a finished run means that one code covers
    everything: a collapsed codebook.
    """
    summary, metrics = cell.run().summary() or {}, ("agreement", "kappa", "feature_error")
    lines = [{"task": "measure", "case": line["measure"]} | line
             for line in summary.get("equivariance", ())]
    lines += [{"task": "sweep", "case": str(line["shift"])} | line
              for line in summary.get("sweep", ())]
    found = [line | {"metric": metric, "value": line[metric]}
             for line in lines for metric in metrics]
    cases = [("measure", name) for name in MEASURES] + [("sweep", str(d)) for d in range(17)]
    expected = [(*case, kind, metric) for case, kind, metric in itertools.product(
        cases, CELLS, metrics)]
    return _rows(cell, expected, found, ("task", "case", "cells", "metric"), ("codes_used",))
