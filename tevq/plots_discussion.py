"""Figures of the discussion: code norms, use of codes, learning curves of all runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tevq import stage2
from tevq.plots import COLOURS_OF, label_ends, missing, new, styled
from tevq.plots_generator import binding
from tevq.plots_results import legend
from tevq.runs import open_run
from tevq.study import Study
from tevq.tables import QUADS


def health(study: Study) -> pd.DataFrame:
    """Logged codebook health of every Stage-1 run: one row per logged step.

    `norm_unused` is the mean length of the codes that were not chosen since the line before, from
    the logged means over all and over used codes; NaN when all were chosen.
    """
    frames = []
    for settings in study.cells:
        lines = open_run(settings, "stage1", study.results or None).metrics()
        if lines:
            frame = pd.DataFrame(lines).assign(variant=settings.variant, seed=settings.seed)
            K, used = settings.stage1.codes, frame.codes_used
            total = K * frame.norm_mean - used * frame.norm_used
            frame["norm_unused"] = (total / (K - used).where(used < K)).astype(float)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


@styled
def norms(study: Study) -> Figure:
    """Code lengths (used, unused), codes in use, and equation 5's penalty over training."""
    figure, axes = new(1, 3, height=4.6, title="What happens to the codes while Stage 1 learns")
    found = health(study)
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
    return legend(figure, study, study.variants)


def learning(study: Study, task: str = "t2i") -> pd.DataFrame:
    """Learning curves of all Stage-2 runs: variant, seed, split, sequences, quad1 ... center."""
    frames = []
    for settings in study.cells:
        lines = open_run(settings, "stage2", study.results or None).metrics()
        for split in stage2.PROBES:
            sequences, curves = stage2.curve(lines, split, task)
            frames.append(pd.DataFrame({"variant": settings.variant, "seed": settings.seed,
                                        "split": split, "sequences": sequences} | curves))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def transitions(curves: pd.DataFrame) -> pd.DataFrame:
    """Sequences at which each run passes its binding transition (`plots_generator.binding`).

    Columns variant, seed, split, sequences (NaN: not passed), of (all sequences seen), last
    (accuracy of Quad2-4 at the end).
    """
    rows = []
    for (variant, seed, split), run in curves.groupby(["variant", "seed", "split"], sort=False):
        passed = binding(run.sequences.to_numpy(), {case: run[case].to_numpy() for case in QUADS})
        rows.append({"variant": variant, "seed": seed, "split": split,
                     "sequences": np.nan if passed is None else passed,
                     "of": run.sequences.max(), "last": run[list(QUADS[1:])].iloc[-1].mean()})
    return pd.DataFrame(rows)


@styled
def curves(study: Study) -> Figure:
    """Validation accuracy against sequences seen: Quad1, and the mean of Quad2-4."""
    figure, axes = new(1, 2, height=4.6, sharey=True,
                       title="Learning curves, text → image (solid held out, dotted seen)")
    found = learning(study)
    for axis, (title, cases) in zip(axes[0], (("Quad1", QUADS[:1]),
                                              ("mean of Quad2–4: binding", QUADS[1:])),
                                    strict=True):
        axis.set(title=title, xlabel="training sequences [thousands]", ylim=(0, 1.04))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}")
        if found.empty:
            missing(axis, "no Stage-2 runs")
            continue
        ends = {}
        for (variant, _, split), run in found.groupby(["variant", "seed", "split"], sort=False):
            held_out, y = split == "val", run[list(cases)].mean(axis=1)
            axis.plot(run.sequences, y, color=COLOURS_OF[variant],
                      linestyle="-" if held_out else ":",
                      linewidth=2.6 if variant == "te" else 1.6)
            if held_out:
                ends[variant] = (run.sequences.iloc[-1], y.iloc[-1])
        axis.grid(axis="y")
        label_ends(axis, ends)
    axes[0, 0].set_ylabel("digit accuracy")
    return legend(figure, study, study.variants)
