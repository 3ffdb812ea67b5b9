"""What is said while the run graph is executed, and after it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from tevq import execute

if TYPE_CHECKING:
    from tevq.graph import Node
    from tevq.pipeline import Plan

UNFINISHED = ("stopped", "not started")  # outcomes with which the same command goes on


def heartbeat(made: Plan, running: dict[Future, tuple[Node, float]]) -> str:
    """Running nodes with their last words, one line each."""
    lines = [
        f"  ... {node.label}, {duration(time.monotonic() - since)}: "
        f"{execute.last_line(made.log(node.label))[:100]}" for node, since in running.values()]
    return "\n".join(lines)


def summary(made: Plan, outcomes: dict[str, execute.Outcome], seconds: float) -> str:
    """What happened, every failure with its log, and where the results are."""
    states = [outcome.status for outcome in outcomes.values()]
    counts = [f"{states.count('done')} done", f"{len(made.nodes) - len(made.to_run)} unchanged"]
    counts += [f"{states.count(s)} {s}" for s in ("failed", "left out", *UNFINISHED)
               if s in states]
    lines = [f"{', '.join(counts)} in {duration(seconds)}"]
    for label, outcome in outcomes.items():
        if outcome.status == "failed":
            log = made.log(label)
            lines += [f"failed: {label}: {outcome.error}",
                      f"    log {shorten(log)}, notebook {shorten(log.with_suffix('.ipynb'))}"]
    if left := [label for label, outcome in outcomes.items() if outcome.status == "left out"]:
        lines.append(f"left out, because they need a failed one: {', '.join(left)}")
    if set(states) & set(UNFINISHED):
        lines.append("stopped by the budget; the same command goes on")
    home = shorten(made.grid.folder)
    return "\n".join([*lines, f"notebooks  {home}/notebooks/*.html (and .ipynb)",
                      f"tables     {home}/tables/*.csv", f"figures    {home}/figures/*.png"])


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 03 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def shorten(path: Path) -> str:
    """A path as seen from the current folder, if it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
