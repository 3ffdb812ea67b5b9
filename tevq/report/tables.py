"""The tables of the study, rebuilt from run files only.

A cell is one finished run, found by the digest of its settings, so a table never mixes runs made
with different settings. Cells that are missing stay in the table, with an empty value.

Long format, one row per number: `preset, variant, seed, task, case, metric, value, n`, then what
the number depends on. Values are shares (0..1) unless the metric says otherwise; `l1` is in [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tevq.config import Settings, SettingsError
from tevq.data.scenes import CASES
from tevq.evaluate.metrics import CAPTION_METRICS, DECODINGS, IMAGE_METRICS, SPLITS
from tevq.grid import FRACTION, OTHER_SOURCE, Grid
from tevq.report.stats import Counts
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import write_atomically

PAPER = devices.ROOT / "results" / "paper.csv"
QUADS = CASES[:4]
WHOLE = {"n", "correct", "codes", "codes_used"}  # columns of counts, empty where a cell is missing
TEXTS = {"split", "decoding", "cells"}
FIRST = ["preset", "variant", "seed", "task", "case", "metric", "value", "n"]
REST = ["source", "size", "training_scenes", "stride", "classifier_accuracy", "perceptual", "run",
        "state", "split", "decoding", "cells"]  # those of an empty table
AS_PUBLISHED = {"t2i": ("sampled", "digit"), "i2t": ("sampled", "official_digit")}  # Table 1 counts
MEASURES = ("official", "grid", "subgrid", "context")
CELLS = ("all", "foreground")
_WEIGHTS = {"quantizer": ("classifier", "stage1"), "evaluation": ("classifier", "stage1", "stage2")}


class Cell(NamedTuple):
    """One run of `evaluation`, and the results folder it lies in."""

    settings: Settings
    kind: str  # quantizer or evaluation
    size: str  # training scenes of Stage 2: full or third
    results: str | None

    def run(self, kind: str = "") -> Run:
        """Its run, or another kind of run with the same settings."""
        return open_run(self.settings, kind or self.kind, self.results)

    def lacks(self) -> str:
        """Notebook that must be run before this cell can be evaluated; empty when there is none."""
        if self.run().done:
            return ""
        kinds = [kind for kind in _WEIGHTS[self.kind] if not self.run(kind).has_weights]
        if not kinds:
            return ""
        s = self.settings
        notebook = "04" if kinds == ["stage2"] else "03"
        size = " on a third of the scenes" if notebook == "04" and self.size == "third" else ""
        at = f" at {s.suffix}" if s.suffix else ""
        return f"notebook {notebook} for {s.variant}, seed {s.seed}, {s.data.source}{size}{at}"


def cells(grid: Grid) -> list[Cell]:
    """Every cell of all tables, whether it exists or not: Table 1 first, then Tables 2 to 4."""
    results = grid.results or None
    found = [Cell(s, kind, "full", results) for s in grid.cells for kind in _WEIGHTS]
    for seed, variant in itertools.product(grid.seeds, grid.compared):
        third = grid.cell(variant, seed, "", FRACTION)
        found.append(Cell(third, "evaluation", "third", results))
        if grid.settings.data.source == "mnist":
            other = grid.cell(variant, seed, OTHER_SOURCE)
            found.append(Cell(other, "quantizer", "full", results))
        if grid.other_stride:
            coarse = grid.cell(variant, seed, stride=grid.other_stride)
            found += [Cell(coarse, kind, "full", results) for kind in _WEIGHTS]
    return found


def build(grid: Grid) -> dict[str, pd.DataFrame]:
    """All five tables by name."""
    stride = grid.settings.stage1.stride
    coarse = [c for c in cells(grid) if c.settings.stage1.stride != stride]
    every = [c for c in cells(grid) if c.settings.stage1.stride == stride]
    own = [c for c in every if c.settings.data.source == grid.settings.data.source]
    compared = [c for c in every if c.settings.variant in grid.compared]
    return {
        "table1": _frame(row for c in own if c.size == "full" for row in _accuracy(c)),
        "table2": _frame(row for c in compared if c.kind == "evaluation" for row in _accuracy(c)
                         if (row["task"], row["decoding"], row["metric"])
                         == ("t2i", *AS_PUBLISHED["t2i"])),
        "table3": _frame(row for c in every if c.kind == "quantizer" for row in _reconstruction(c)),
        "equivariance": _frame(row for c in every if c.kind == "quantizer"
                               for row in _equivariance(c)),
        "stride": _frame(row for c in coarse for row in (
            _accuracy(c) if c.kind == "evaluation" else
            [*_accuracy(c), *_reconstruction(c), *_equivariance(c)])),
    }


def write(grid: Grid, tables: dict[str, pd.DataFrame]) -> list[Path]:
    """Writes the tables as CSV into `results/<preset>/tables`; returns their paths."""
    paths = []
    for name, table in tables.items():
        paths.append(grid.table_folder / f"{name}.csv")
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        write_atomically(paths[-1], text.encode())
    return paths


def read(grid: Grid, name: str) -> pd.DataFrame:
    """A written table. Raises SettingsError when there is none."""
    path = grid.table_folder / f"{name}.csv"
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
    for settings in grid.cells:
        summary = open_run(settings, "quantizer", grid.results or None).summary()
        for row in [*summary["equivariance"], *summary["merged"]] if summary else ():
            if row["cells"] == "foreground":
                rows.append({"variant": settings.variant, "seed": settings.seed, "groups": 0} | row)
    columns = ["variant", "seed", "measure", "groups", "codes_used", "kappa", "feature_error"]
    return pd.DataFrame(rows, columns=columns).astype({"kappa": float})


def at_equal_size(found: pd.DataFrame, baseline: str = "sc", ours: str = "te") -> pd.DataFrame:
    """How far merging the baseline's codes down to our number of codes takes its kappa to ours.

    found: as from `vocabularies`. One row per seed and measure: `baseline` and `ours` as trained,
    `merged` (read off the baseline's line between two sizes, linear in the logarithm of the number
    of codes), and `codes`, ours. Left out: seeds that lack a variant, sizes beyond the line.
    """
    rows = []
    for (seed, measure), part in found.dropna(subset="kappa").groupby(["seed", "measure"],
                                                                      sort=False):
        line = part[part.variant == baseline].sort_values("codes_used")
        own = part[(part.variant == ours) & (part.groups == 0)]
        for codes, kappa in zip(own.codes_used, own.kappa, strict=True):
            if line.codes_used.min() <= codes <= line.codes_used.max():
                rows.append({"seed": seed, "measure": measure, "codes": codes,
                             "baseline": line[line.groups == 0].kappa.iloc[0], "ours": kappa,
                             "merged": np.interp(np.log(codes), np.log(line.codes_used),
                                                 line.kappa)})
    return pd.DataFrame(rows, columns=["seed", "measure", "codes", "baseline", "merged", "ours"])


def learning(grid: Grid, task: str = "t2i") -> pd.DataFrame:
    """Learning curves of all Stage-2 runs of Tables 1, 2 and 4, on validation scenes.

    Columns scenes (full, third), stride, variant, seed, split (val: held-out combinations,
    val_seen: seen ones), sequences, quad1 ... center.
    """
    frames = []
    for cell in cells(grid):
        s = cell.settings
        lines = cell.run("stage2").metrics() if cell.kind == "evaluation" else []
        found = pd.DataFrame([line for line in lines if line.get("task") == task])
        if len(found):
            frames.append(found.rename(columns={"probe": "split"}).assign(
                scenes=cell.size, stride=s.stage1.stride, variant=s.variant, seed=s.seed))
    columns = ["scenes", "stride", "variant", "seed", "split", "sequences", *CASES]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(
        columns=columns)


def scene_counts(grid: Grid, variants: Iterable[str], column: str, split: str = "test"
                 ) -> tuple[dict[str, Counts], np.ndarray] | None:
    """Right and counted digits per seed and scene for each variant, and the case of every scene.

    column: of `scenes.csv.gz` without its ending, e.g. `t2i_sampled_digit`. None when a run lacks.
    """
    found, case = {}, None
    for variant in variants:
        correct, n = [], []
        for seed in grid.seeds:
            run = open_run(grid.cell(variant, seed), "evaluation", grid.results or None)
            path = run.folder / "scenes.csv.gz"
            if not run.done or not path.exists():
                return None
            lines = pd.read_csv(path)
            lines = lines[lines.split == split]
            if f"{column}_n" not in lines:
                return None
            correct.append(lines[f"{column}_correct"].to_numpy())
            n.append(lines[f"{column}_n"].to_numpy())
            case = lines["case"].to_numpy()
        found[variant] = Counts(np.stack(correct), np.stack(n))
    return (found, case) if found else None


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows))
    if table.empty:  # no variant of this table was chosen
        return pd.DataFrame(columns=[*FIRST, *REST]).astype({"value": float})
    table["value"] = table["value"].astype(float)
    for column in WHOLE & set(table):
        table[column] = table[column].astype("Int64")
    for column in TEXTS & set(table):  # rows of several kinds
        table[column] = table[column].fillna("")
    return table[FIRST + [c for c in table if c not in FIRST]]


def _labels(cell: Cell) -> dict[str, Any]:
    """What every row of a cell begins with; the accuracy of the classifier that judged it."""
    s, run = cell.settings, cell.run()
    evaluator = cell.run("classifier").summary() or {}
    return {
        "preset": s.preset, "variant": s.variant, "seed": s.seed, "source": s.data.source,
        "size": cell.size, "training_scenes": round(s.data.train * s.stage2.fraction),
        "stride": s.stage1.stride,
        "classifier_accuracy": evaluator.get("label_accuracy"),
        "perceptual": s.stage1.perceptual, "run": run.name,
        "state": "done" if run.done else "missing",
    }


def _filled(cell: Cell, expected: Iterable[dict], found: list[dict], keep: tuple[str, ...] = ()
            ) -> list[dict[str, Any]]:
    """A row for every expected combination, with `value`, `n` and `keep` where the run has them."""
    labels, rows = _labels(cell), []
    values: dict[tuple, dict] | None = None
    for want in expected:
        if values is None:
            values = {tuple(row.get(key) for key in want): row for row in found}
        row = values.get(tuple(want.values()), {})
        rows.append(labels | want | {key: row.get(key) for key in ("value", "n", *keep)})
    return rows


def _accuracy(cell: Cell) -> list[dict[str, Any]]:
    """Rows of Table 1: ceilings of a quantizer cell, both directions of an evaluation cell."""
    if cell.kind == "quantizer":
        tasks = [("ceiling-real", "", IMAGE_METRICS), ("ceiling-reconstruction", "", IMAGE_METRICS)]
    else:
        directions = cell.settings.stage2.directions
        tasks = [(task, decoding, metrics) for task, metrics in (("t2i", IMAGE_METRICS),
                                                                 ("i2t", CAPTION_METRICS))
                 if directions in ("both", task) for decoding in DECODINGS]
    expected = [
        {"task": task, "split": split, "decoding": decoding, "case": case, "metric": metric}
        for task, decoding, metrics in tasks for split in SPLITS for case in CASES
        for metric in metrics if (case, metric) != ("quad4", "empty")]  # no quadrant is empty
    summary = cell.run().summary() or {"rows": []}
    return _filled(cell, expected, summary["rows"], ("correct",))


def _reconstruction(cell: Cell) -> list[dict[str, Any]]:
    """Rows of Table 3; `codes` is K, `perceptual` names the perceptual distance."""
    lines = (cell.run().summary() or {"reconstruction": []})["reconstruction"]
    metrics = ("codes_used", "perplexity", "l1", "perceptual")
    found = [{"task": "reconstruction", "case": "all", "split": line["split"], "metric": metric,
              "value": line[metric], "n": line["n"]} for line in lines for metric in metrics]
    expected = [{"task": "reconstruction", "case": "all", "split": split, "metric": metric}
                for split in SPLITS for metric in metrics]
    return [row | {"codes": cell.settings.stage1.codes}
            for row in _filled(cell, expected, found)]


def _equivariance(cell: Cell) -> list[dict[str, Any]]:
    """Rows of equation 2. Task `measure`: case = the measure; task `sweep`: case = shift in px.

    `n` counts compared grid cells. An empty kappa in a finished run means that one code covers
    everything: a collapsed codebook.
    """
    summary = cell.run().summary() or {"equivariance": [], "sweep": []}
    lines = [("measure", row["measure"], row) for row in summary["equivariance"]]
    lines += [("sweep", str(row["shift"]), row) for row in summary["sweep"]]
    metrics = ("agreement", "kappa", "feature_error")
    found = [{"task": task, "case": case, "cells": row["cells"], "metric": metric,
              "value": row[metric], "n": row["n"], "codes_used": row["codes_used"]}
             for task, case, row in lines for metric in metrics]
    cases = [("measure", name) for name in MEASURES] + [("sweep", str(d)) for d in range(17)]
    expected = [{"task": task, "case": case, "cells": kind, "metric": metric}
                for task, case in cases for kind in CELLS for metric in metrics]
    return _filled(cell, expected, found, ("codes_used",))
