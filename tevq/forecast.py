"""How long notebooks will take, and how much memory, by the records of earlier ones."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tevq import config
from tevq.config import Settings
from tevq.execute import Outcome
from tevq.grid import Grid
from tevq.runs.budget import in_words
from tevq.runs.storage import read_json

KINDS = {"03_stage1": ("classifier", "stage1", "quantizer"), "04_stage2": ("stage2",),
         "05_evaluation": ("evaluation", "measures")}  # the long work in a notebook


@dataclass(frozen=True)
class Cost:
    """What a notebook took before."""

    seconds: float
    memory: float  # MB; 0 = not recorded
    where: str  # it is known from


def expected(made: Any) -> dict[str, Cost | None]:
    """What each notebook of a plan that has to run will take; None where no record tells."""
    return {node.label: _expected(made.grid, node) for node in made.to_run}


def _expected(grid: Grid, node: Any) -> Cost | None:
    """What a notebook will take, by records of this preset; None where they do not tell.

    As long as its last executed copy took, else copies of the same notebook in other folders, else
    the published one. But at least as long as the trainings and evaluations it lacks took on
    average: on GPUs, if there is one here.
    """
    root, notebook = config.results_root(grid.results), node.notebook
    like = f"{grid.preset}*/notebooks/{notebook}*.ipynb"
    places = ((grid.folder, f"notebooks/{node.label}.ipynb", "this machine"),
              (root, like, "this machine"), (config.PUBLISHED, like, "published copies"))
    found = [(copied, where) for place, name, where in places
             if (copied := _copied(place.glob(name)))]
    lacking = [_record(grid, s, kind) for s in node.settings for kind in KINDS.get(notebook, ())]
    if not found or None in lacking:
        return None
    ((seconds, memory), where), more = found[0], sum(part for part, _ in lacking)
    names = dict.fromkeys(name for part, name in lacking if part)
    return Cost(max(seconds, more), memory, ", ".join(names) if more > seconds else where)


def table(made: Any) -> str:
    """What would run and why, a line each, and how long it would take."""
    lines, costs = [], expected(made)
    for label, reason in made.reasons.items():
        line = f"{'run ' if reason else 'skip'}  {label:27}  {reason or 'finished and unchanged'}"
        if cost := costs.get(label):
            line += f"; about {in_words(cost.seconds)}" + (
                f", {cost.memory / 1000:.1f} GB" if cost.memory else "") + f" ({cost.where})"
        lines.append(line + "; no record of its time" * (label in costs and not cost))
    known = [cost.seconds for cost in costs.values() if cost]
    lines += [f"about {in_words(sum(known))} for {len(known)} of {len(costs)} notebooks, one after "
              "the other"] * bool(known)
    if len(known) < len(costs) and (times := config.PUBLISHED / "times.csv").exists():
        rows = csv.DictReader(times.read_text(encoding="utf-8").splitlines())
        lines += [f"all of preset {row['preset']} took {in_words(60 * float(row['minutes']))} on "
                  f"{float(row['cores']):g} cores of {row['device_name']} (results/{times.name})"
                  for row in rows if row["preset"] == made.grid.preset]
    return "\n".join(lines)


def _copied(paths: Iterable[Path]) -> tuple[float, float] | None:
    """Mean seconds and most memory of executed copies."""
    told = [read_json(path).get("metadata", {}).get("tevq", {}) for path in paths]
    seconds = [record["seconds"] for record in told if "seconds" in record]
    return (sum(seconds) / len(seconds), max(record.get("memory_mb", 0) for record in told)) \
        if seconds else None


def _record(grid: Grid, settings: Settings, kind: str) -> tuple[float, str] | None:
    """Seconds that a run will take, 0 if it is at hand, and the machine that says so."""
    import torch

    from tevq.runs.run import Run, open_run

    run, trained = (open_run(settings, name, grid.results) for name in (kind, "stage2"))
    idle = kind == "measures" and (settings not in grid.cells or trained.done > trained.has_weights)
    if idle or run.has_weights or run.done and kind in ("quantizer", "evaluation", "measures"):
        return 0.0, ""
    like = [Run(path.parent, {}) for folder in (run.own, config.PUBLISHED / settings.preset / "runs"
            / kind / "x") for path in folder.parent.glob("*/summary.json")]
    told = [(run.summary(), run.made_on) for run in like if run.made_on]
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    told = [pair for pair in told if pair[1]["device"] == wanted] or told
    steps = getattr(getattr(settings, kind, None), "steps", 0)
    seconds = [summary["seconds"] * (steps / summary["steps"] if "steps" in summary else 1)
               for summary, _ in told]
    return (sum(seconds) / len(seconds), told[0][1]["device_name"]) if seconds else None


def left(costs: dict[str, Cost | None], outcomes: dict[str, Outcome], jobs: int) -> str:
    """How long the rest will take: by records, times how much longer the notebooks so far took."""
    rest = [costs[label] for label in costs if label not in outcomes]
    held = [(outcome.seconds, costs[label].seconds) for label, outcome in outcomes.items()
            if costs[label] and outcome.status == "done" and outcome.seconds]
    if not rest or None in rest:
        return ""
    pace = sum(own for own, _ in held) / max(1, sum(told for _, told in held)) if held else 1
    return f", about {in_words(pace * sum(cost.seconds for cost in rest) / max(1, jobs))} left"
