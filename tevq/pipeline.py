"""Executes the run graph: what is finished and unchanged is left alone, failures stay local.

Beside every executed notebook lies a record of what it was made from (`logs/<label>.json`), which
decides whether it has to run again.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tevq import execute, graph
from tevq.config import SettingsError
from tevq.graph import Node
from tevq.grid import Grid
from tevq.progress import UNFINISHED, duration, heartbeat, shorten, summary
from tevq.runs import budget, lock
from tevq.runs.storage import write_json

HEARTBEAT_SECONDS = 60
CLOSING_SECONDS = 20  # before the budget ends: trainings have saved, no notebook is started
STOP_SECONDS = execute.GRACE_SECONDS + 2  # before it ends: what still runs is told to stop

Start = Callable[[Node, threading.Event], execute.Outcome]
Launch = Callable[[execute.Request, Path, int, threading.Event], execute.Outcome]


@dataclass(frozen=True)
class Plan:
    """The chosen nodes, why each has to run (empty: it need not), what it would be made from."""

    grid: Grid
    nodes: list[Node]
    reasons: dict[str, str]
    fingerprints: dict[str, dict[str, Any]]
    widths: dict[str, int]
    folder: Path  # of the stored notebooks
    made_at: float = field(default_factory=time.time)

    @property
    def to_run(self) -> list[Node]:
        """Nodes that have a reason to run."""
        return [node for node in self.nodes if self.reasons[node.label]]

    def copy(self, label: str) -> Path:
        """The executed notebook of a node; its web page lies beside it."""
        return self.grid.folder / "notebooks" / f"{label}.ipynb"

    def log(self, label: str) -> Path:
        """What a node printed."""
        return self.grid.folder / "logs" / f"{label}.log"


def plan(grid: Grid, notebooks: str = "", force: bool = False,
         folder: Path = graph.FOLDER) -> Plan:
    """Decides what has to run, without touching anything.

    notebooks: e.g. `"03,04"`, empty for all. Raises SettingsError for a bad choice, a missing
    notebook, or one that would drop a parameter.
    """
    nodes = graph.build(grid)
    chosen = graph.select(nodes, notebooks)
    graph.check_parameters(chosen, folder)
    prints = graph.fingerprints(nodes, folder)
    made = Plan(grid, chosen, {}, prints, graph.width(nodes), folder)
    for node in chosen:
        made.reasons[node.label] = "forced" if force else _reason(made, node)
    return made


def _reason(made: Plan, node: Node) -> str:
    """Why a node has to run, or nothing."""
    record = _record(made, node.label)
    if not record:
        return "not run yet"
    found, wanted = record["made_from"], made.fingerprints[node.label]
    changed = [part for part in wanted if found.get(part) != wanted[part]]
    if changed:
        return f"changed: {', '.join(changed)}"
    copy = made.copy(node.label)
    files = [copy, copy.with_suffix(".html"), *(made.grid.folder / f for f in record["files"])]
    if missing := [file for file in files if not file.exists()]:
        return f"{shorten(missing[0])} is missing"
    for need in node.needs:
        if made.reasons.get(need):
            return f"after {need}"
        if _record(made, need).get("finished", 0) > record["finished"]:
            return f"older than {need}"
    return ""


def _record(made: Plan, label: str) -> dict[str, Any]:
    """What a finished node was made from; empty when it never finished."""
    try:
        return json.loads(made.log(label).with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}


def describe(made: Plan) -> str:
    """The plan in words, one line a node."""
    size = max(len(node.label) for node in made.nodes)
    lines = [
        f"{'run ' if made.reasons[n.label] else 'skip'}  {n.label:{size}}  "
        f"{made.reasons[n.label] or 'finished and unchanged'}" for n in made.nodes]
    return "\n".join(lines)


def run(made: Plan, jobs: int = 0, say: Callable[[str], None] = print,
        start: Start | None = None, until: float = math.inf, launch: Launch | None = None) -> int:
    """Executes what has to run and reports.

    Returns 0, 1 if a notebook failed, budget.EXIT_CODE if time was up first.
    jobs: notebooks side by side; 0 = two on a processor with two or more cores, one with a GPU.
    start: executes one node (for tests). until: when to be through, in seconds since 1970.
    launch: where notebooks are executed instead of on this machine (see cluster.py).
    Raises KeyboardInterrupt after stopping the children.
    """
    began = time.monotonic()
    cores = _cores()
    jobs = jobs or (1 if _has_gpu() else min(2, cores))
    if start is None:
        for folder in ("logs", "notebooks", "tables", "figures"):
            _make(made.grid.folder / folder)

        def start(node: Node, stop: threading.Event) -> execute.Outcome:
            threads = max(1, cores // min(jobs, made.widths[node.label]))
            return _start(made, node, threads, stop, until, launch or execute.launch)

    grid, count = made.grid, len(made.to_run)
    say(f"preset {grid.preset}, variants {','.join(grid.variants)}, seeds "
        f"{','.join(map(str, grid.seeds))}, tables {','.join(map(str, grid.tables))}: "
        f"{count} notebooks to run, {len(made.nodes) - count} unchanged; {jobs} at a time")
    outcomes = _schedule(made, jobs, say, start, until)
    say(summary(made, outcomes, time.monotonic() - began))
    states = {outcome.status for outcome in outcomes.values()}
    if "failed" in states:
        return 1
    return budget.EXIT_CODE if states & set(UNFINISHED) else 0


def _schedule(made: Plan, jobs: int, say: Callable, start: Start,
              until: float) -> dict[str, execute.Outcome]:
    """Starts every node as soon as those that it needs are done, while there is time."""
    waiting, total = made.to_run, len(made.to_run)
    outcomes: dict[str, execute.Outcome] = {}
    running: dict[Future, tuple[Node, float]] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                left = until - time.time()
                for node in list(waiting):
                    verdict = _verdict(made, node, outcomes, left)
                    if verdict in ("left out", "not started"):
                        outcomes[node.label] = execute.Outcome(verdict)
                    elif verdict == "ready" and len(running) < jobs:
                        say(f"started {node.label}, log {shorten(made.log(node.label))}")
                        running[pool.submit(start, node, stop)] = node, time.monotonic()
                    else:
                        continue
                    waiting.remove(node)
                if left < STOP_SECONDS:
                    stop.set()
                pause = math.inf if stop.is_set() else max(0.1, left - STOP_SECONDS)
                done, _ = wait(running, min(HEARTBEAT_SECONDS, pause), FIRST_COMPLETED)
                for future in done:
                    node, _ = running.pop(future)
                    outcomes[node.label] = outcome = _result(future)
                    text = f": {outcome.error}" if outcome.error else ""
                    say(f"[{len(outcomes)}/{total}] {node.label} {outcome.status} after "
                        f"{duration(outcome.seconds)}{text}")
                if running and not done:
                    say(heartbeat(made, running))
        finally:
            stop.set()  # ends what still runs when an exception (Ctrl-C) leaves the loop
    return outcomes


def _verdict(made: Plan, node: Node, outcomes: dict[str, execute.Outcome], left: float) -> str:
    """`ready`, `wait`, or why a node will not be started; `left`: seconds of the budget."""
    needs = [outcomes.get(need) for need in node.needs if made.reasons.get(need)]
    states = {need.status if need else "wait" for need in needs}
    if states & {"failed", "left out"}:
        return "left out"
    if left < CLOSING_SECONDS or states & set(UNFINISHED):
        return "not started"
    return "ready" if states <= {"done"} else "wait"


def _result(future: Future) -> execute.Outcome:
    """A disk that is full must not stop the other notebooks from being reported."""
    try:
        return future.result()
    except OSError as error:
        return execute.Outcome("failed", error=str(error))


def _start(made: Plan, node: Node, threads: int, stop: threading.Event, until: float,
           launch: Launch) -> execute.Outcome:
    """Executes one node, unless another run of the study has just done it."""
    path = made.log(node.label).with_suffix(".lock")
    with lock.hold(path, f"{made.grid.preset}/{node.label}", stop.is_set) as held:
        if not held:
            return execute.Outcome("stopped")
        record = _record(made, node.label)
        if (record.get("finished", 0) > made.made_at
                and record["made_from"] == made.fingerprints[node.label]):
            return execute.Outcome("done", error="by another run of the study")
        return _execute(made, node, threads, stop, until, launch)


def _execute(made: Plan, node: Node, threads: int, stop: threading.Event, until: float,
             launch: Launch) -> execute.Outcome:
    """Executes one node and, if it is done, writes its record."""
    copy, log = made.copy(node.label), made.log(node.label)
    record = log.with_suffix(".json")
    record.unlink(missing_ok=True)
    request = execute.Request(
        source=str(made.folder / f"{node.notebook}.ipynb"),
        target=str(copy),
        failed=str(log.with_suffix(".ipynb")),
        title=f"{node.label} ({made.grid.preset})",
        parameters=node.parameters,
        deadline=0.0 if until == math.inf else until - CLOSING_SECONDS,
    )
    began = time.time()
    outcome = launch(request, log, threads, stop)
    if outcome.status == "done":
        tree = {"made_from": made.fingerprints[node.label], "finished": time.time(),
                "seconds": round(outcome.seconds, 1), "files": _written(made, node, began)}
        write_json(record, tree)
    return outcome


def _written(made: Plan, node: Node, began: float) -> list[str]:
    """Results that appeared while a node ran, and the summary of its run.

    With notebooks side by side this may name a neighbour's file: then one more notebook runs again
    when that file is deleted.
    """
    from tevq.runs.run import open_run

    home = made.grid.folder
    patterns = ("tables/*", "figures/*", "runs/*/*/summary.json")
    # file systems round times; a second is enough for all of them
    found = {file for pattern in patterns for file in home.glob(pattern)
             if file.stat().st_mtime >= began - 1}
    if node.run:
        run_folder = open_run(node.settings[0], node.run, made.grid.results or None).folder
        found.add(run_folder / "summary.json")
    return sorted(str(file.relative_to(home)) for file in found if file.exists())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"results folder {folder}: {error.strerror}; give another with "
                            "--results") from None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _has_gpu() -> bool:
    from tevq.runs.devices import detect

    return detect("float32").device.type != "cpu"
