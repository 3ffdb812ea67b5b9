"""Figures of the discussion: code norms, merged codes, learning curves of all runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tevq.grid import Grid
from tevq.report.plots_generator import binding
from tevq.report.plots_results import legend
from tevq.report.style import COLOURS_OF, MARKERS_OF, label_ends, missing, new, styled
from tevq.report.tables import MEASURES, QUADS, cells
from tevq.runs.run import open_run
from tevq.train import stage2


def health(grid: Grid) -> pd.DataFrame:
    """Logged codebook health of every Stage-1 run: one row per logged step.

    `norm_unused` is the mean length of the codes that were not chosen since the line before, from
    the logged means over all and over used codes; NaN when all were chosen.
    """
    frames = []
    for settings in grid.cells:
        lines = open_run(settings, "stage1", grid.results or None).metrics()
        if lines:
            frame = pd.DataFrame(lines).assign(variant=settings.variant, seed=settings.seed)
            K, used = settings.stage1.codes, frame.codes_used
            total = K * frame.norm_mean - used * frame.norm_used
            frame["norm_unused"] = (total / (K - used).where(used < K)).astype(float)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@styled
def norms(grid: Grid) -> Figure:
    """Code lengths (used, unused), codes in use, and equation 5's penalty over training."""
    figure, axes = new(1, 3, height=4.6, title="What happens to the codes while Stage 1 learns")
    found = health(grid)
    panels = ("codes used\nbetween two log lines",
              "mean length of a code\nsolid used, dotted unused",
              "penalty of equation 5\nwithout λ")
    for axis, title in zip(axes[0], panels, strict=True):
        axis.set(title=title, xlabel="Stage-1 step")
        axis.title.set_fontsize(11)
        if found.empty:
            missing(axis, "no Stage-1 runs")
    if not found.empty:
        for (variant, _), run in found.groupby(["variant", "seed"], sort=False):
            width = 2.6 if variant == "te" else 1.6
            line = {"color": COLOURS_OF[variant], "linewidth": width}
            axes[0, 0].plot(run.step, run.codes_used, **line)
            axes[0, 1].plot(run.step, run.norm_used, **line)
            axes[0, 1].plot(run.step, run.norm_unused, linestyle=":", **line)
            axes[0, 2].plot(run.step, run.orthogonality, **line)
        axes[0, 0].set_ylim(0)
        axes[0, 2].set_yscale("log")
    return legend(figure, grid, _variants(found))


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
    for (seed, measure), part in found.groupby(["seed", "measure"], sort=False):
        line = part[part.variant == baseline].dropna(subset="kappa").sort_values("codes_used")
        own = part[(part.variant == ours) & (part.groups == 0)].dropna(subset="kappa")
        if len(own) and len(line) and line.codes_used.min() <= own.codes_used.iloc[0] <= (
                line.codes_used.max()):
            codes = own.codes_used.iloc[0]
            merged = np.interp(np.log(codes), np.log(line.codes_used), line.kappa)
            rows.append({"seed": seed, "measure": measure, "codes": codes,
                         "baseline": line[line.groups == 0].kappa.iloc[0], "merged": merged,
                         "ours": own.kappa.iloc[0]})
    return pd.DataFrame(rows, columns=["seed", "measure", "codes", "baseline", "merged", "ours"])


@styled
def merging(grid: Grid) -> Figure:
    """Kappa against the number of codes, from each quantizer's own (large mark) to four."""
    figure, axes = new(1, len(MEASURES), height=4.2, sharex=True,
                       title="Codes merged after training (Ward): kappa on foreground cells")
    found = vocabularies(grid)
    for axis, measure in zip(axes[0], MEASURES, strict=True):
        axis.set(title=measure, xlabel="codes used")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        part = found[found.measure == measure]
        if part.empty:
            missing(axis, "no evaluated quantizers")
        for (variant, _), run in part.groupby(["variant", "seed"], sort=False):
            line = run.sort_values("codes_used")
            own = run[run.groups == 0]
            axis.plot(line.codes_used, line.kappa, color=COLOURS_OF[variant], linewidth=1.4)
            axis.plot(own.codes_used, own.kappa, color=COLOURS_OF[variant],
                      marker=MARKERS_OF[variant], markersize=12 if variant == "te" else 8)
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("kappa")
    return legend(figure, grid, _variants(found))


def learning(grid: Grid, task: str = "t2i") -> pd.DataFrame:
    """Learning curves of all Stage-2 runs of Tables 1, 2 and 4.

    Columns scenes (full, third), stride, variant, seed, split, sequences, quad1 ... center.
    """
    frames = []
    for cell in cells(grid):
        s = cell.settings
        lines = cell.run("stage2").metrics() if cell.kind == "evaluation" else []
        for split in stage2.PROBES if lines else ():
            sequences, curves = stage2.curve(lines, split, task)
            frames.append(pd.DataFrame({"scenes": cell.size, "stride": s.stage1.stride,
                                        "variant": s.variant, "seed": s.seed, "split": split,
                                        "sequences": sequences} | curves))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def of_table1(found: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """The rows of `learning` or `transitions` that are about Table 1."""
    if found.empty:
        return found
    return found[(found.scenes == "full") & (found.stride == grid.settings.stage1.stride)]


def transitions(curves: pd.DataFrame) -> pd.DataFrame:
    """Sequences at which each run passes its binding transition (`plots_generator.binding`).

    Columns scenes, stride, variant, seed, split, sequences (NaN: not passed), of (all sequences
    seen), last (accuracy of Quad2-4 at the end).
    """
    rows, names = [], ["scenes", "stride", "variant", "seed", "split"]
    for key, run in curves.groupby(names, sort=False):
        passed = binding(run.sequences.to_numpy(), {case: run[case].to_numpy() for case in QUADS})
        rows.append(dict(zip(names, key, strict=True)) | {
            "sequences": np.nan if passed is None else passed,
            "of": run.sequences.max(), "last": run[list(QUADS[1:])].iloc[-1].mean()})
    return pd.DataFrame(rows)


@styled
def curves(grid: Grid) -> Figure:
    """Validation accuracy against sequences seen, runs of Table 1: Quad1, and the mean of Quad2-4.

    Means over seeds; of held-out combinations each run, too, thin.
    """
    figure, axes = new(1, 2, height=4.6, sharey=True,
                       title="Learning curves, text → image (solid held out, dotted seen)")
    found = of_table1(learning(grid), grid)
    for axis, (title, cases) in zip(axes[0], (("Quad1", QUADS[:1]),
                                              ("mean of Quad2–4: binding", QUADS[1:])),
                                    strict=True):
        axis.set(title=title, xlabel="training sequences [thousands]", ylim=(0, 1.04))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        if found.empty:
            missing(axis, "no Stage-2 runs")
            continue
        ends = {}
        every = found.assign(y=found[list(cases)].mean(axis=1))
        for (variant, split), runs in every.groupby(["variant", "split"], sort=False):
            mean = runs.groupby("sequences").y.mean()
            line = {"color": COLOURS_OF[variant], "linestyle": "-" if split == "val" else ":"}
            axis.plot(mean.index, mean, linewidth=2.8 if variant == "te" else 2, **line)
            if split == "val":
                ends[variant] = (mean.index[-1], mean.iloc[-1])
                for _, run in runs.groupby("seed"):
                    axis.plot(run.sequences, run.y, linewidth=0.8, alpha=0.35, **line)
        axis.grid(axis="y")
        label_ends(axis, ends)
    axes[0, 0].set_ylabel("digit accuracy")
    return legend(figure, grid, _variants(found))


def _variants(found: pd.DataFrame) -> list[str]:
    """Those that were drawn."""
    return [] if found.empty else list(dict.fromkeys(found.variant))
