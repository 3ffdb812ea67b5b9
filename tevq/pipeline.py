"""All notebooks of a grid, in order, each in a process of its own on a worker of Dask.

    01 -> 03 and then 04 per (variant, seed) -> 02, 05 -> 06

Table 2 adds 04 on a third of the training set, Table 3 adds 03 on the other item source, Table 4
adds both at the other stride. 07 stands alone and runs only when it is asked for.

Beside every executed notebook lies a record of what it was made from (`logs/<label>.json`). What is
finished and unchanged is left alone, and a failure stays with what needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from os.path import relpath
from pathlib import Path
from typing import Any

from tevq import cluster, config, execute
from tevq.config import Settings, SettingsError, digest
from tevq.execute import Job, Outcome
from tevq.grid import FRACTION, Grid
from tevq.runs import budget
from tevq.runs.storage import read_json

FOLDER = config.ROOT / "notebooks"
_ALL = {"preset": "smoke", "overrides": "", "results": ""}
_LISTS = _ALL | {"variants": "", "seeds": "", "tables": ""}
_ONE = _ALL | {"variant": "te", "seed": 0}
# Parameters of every notebook with the defaults that its parameters cell holds
NOTEBOOKS: dict[str, dict[str, Any]] = {
    "01_dataset": _ALL,
    "02_aliasing": _LISTS,
    "03_stage1": _ONE | {"source": ""},
    "04_stage2": _ONE | {"fraction": 1.0},
    "05_evaluation": _LISTS,
    "06_discussion": _LISTS,
    "07_benchmarks": _ALL,
}
ON_REQUEST = "07_benchmarks"  # needs the machine to itself
_TRAINING = ("data", "classifier", "stage1", "precision", "variant", "seed")
# Settings that decide the outcome of a notebook, where these are not all of them
DECIDING = {"01_dataset": ("data",), "03_stage1": _TRAINING, "04_stage2": (*_TRAINING, "stage2")}


@dataclass(frozen=True)
class Node:
    """One execution of one notebook."""

    label: str  # names the executed copy, e.g. 03_stage1-te-s0
    notebook: str
    parameters: dict[str, Any]
    settings: tuple[Settings, ...]  # what it depends on
    needs: tuple[str, ...] = ()  # labels


@dataclass(frozen=True)
class Plan:
    """What has to run, and where."""

    grid: Grid
    nodes: list[Node]  # the chosen ones
    jobs: dict[str, Job]  # of all nodes, by label
    reasons: dict[str, str]  # why each has to run; empty: it need not
    widths: dict[str, int]

    @property
    def to_run(self) -> list[Node]:
        """Nodes that have a reason to run."""
        return [node for node in self.nodes if self.reasons[node.label]]


def build(grid: Grid) -> list[Node]:
    """All nodes of a grid, every node after those that it needs."""
    nodes = [_node(grid, "01_dataset", "01_dataset", {}, (grid.settings,))]
    for seed in grid.seeds:
        for variant in grid.variants:
            nodes += _trainings(grid, variant, seed)
    first = [node.label for node in nodes if node.notebook == "03_stage1"]
    for seed in grid.seeds:
        for variant in grid.compared:
            if grid.second_source:
                nodes.append(_trainings(grid, variant, seed, source=grid.second_source)[0])
                first.append(nodes[-1].label)
            if 2 in grid.tables:
                nodes.append(_trainings(grid, variant, seed, fraction=FRACTION)[1])
            if 4 in grid.tables and grid.other_stride:
                nodes += _trainings(grid, variant, seed, stride=grid.other_stride)
    lists = {name: ",".join(map(str, getattr(grid, name)))
             for name in ("variants", "seeds", "tables")}
    for notebook, needs in (("02_aliasing", first),
                            ("05_evaluation", [node.label for node in nodes[1:]]),
                            ("06_discussion", ["02_aliasing", "05_evaluation"])):
        nodes.append(_node(grid, notebook, notebook, lists, tuple(grid.cells), *needs))
    return [*nodes, _node(grid, ON_REQUEST, ON_REQUEST, {}, (grid.settings,))]


def _trainings(grid: Grid, variant: str, seed: int, source: str = "", fraction: float = 1.0,
               stride: int = 0) -> list[Node]:
    """Notebooks 03 and 04 of one cell; `source`, `fraction` and `stride` as in Tables 2 to 4."""
    at = {"overrides": grid.overrides | {"stage1.stride": stride}} if stride else {}
    own = {"variant": variant, "seed": seed} | at
    words = "-".join(filter(None, (variant, f"s{seed}", source)))
    tail = f"-stride{stride}" if stride else ""
    third = f"-{fraction:.2f}" if fraction != 1 else ""
    first = _node(grid, "03_stage1", f"03_stage1-{words}{tail}", own | {"source": source},
                  (grid.cell(variant, seed, source, 1.0, stride),), "01_dataset")
    return [first, _node(grid, "04_stage2", f"04_stage2-{words}{third}{tail}",
                         own | {"fraction": fraction},
                         (grid.cell(variant, seed, source, fraction, stride),), first.label)]


def _node(grid: Grid, notebook: str, label: str, own: dict[str, Any],
          settings: tuple[Settings, ...], *needs: str) -> Node:
    common = {"preset": grid.preset, "overrides": grid.overrides or "", "results": grid.results}
    return Node(label, notebook, common | own, settings, needs)


def select(nodes: list[Node], wanted: str) -> list[Node]:
    """The nodes of some notebooks, e.g. `"03,04"`; all but ON_REQUEST for an empty choice."""
    found = set() if wanted else set(NOTEBOOKS) - {ON_REQUEST}
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        matches = [n for n in NOTEBOOKS if word in (n, n[:2]) or word.zfill(2) == n[:2]]
        if not matches:
            raise config.unknown("notebook", word, [name[:2] for name in NOTEBOOKS])
        found.update(matches)
    return [node for node in nodes if node.notebook in found]


def width(nodes: list[Node]) -> dict[str, int]:
    """How many nodes can run side by side with each node: those at its depth in the graph.

    A property of the graph alone, so that a node always gets the same number of threads, whatever
    is skipped. (The last bits of a training depend on the number of threads.)
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.label] = 1 + max((depth[need] for need in node.needs), default=0)
    counts = [depth[node.label] for node in nodes if node.notebook != ON_REQUEST]
    return {node.label: 1 if node.notebook == ON_REQUEST else counts.count(depth[node.label])
            for node in nodes}


def plan(grid: Grid, notebooks: str = "", force: bool = False, folder: Path = FOLDER) -> Plan:
    """Decides what has to run, without touching anything.

    notebooks: e.g. `"03,04"`, empty for all; folder: of the stored ones. Raises SettingsError for a
    bad choice and for a notebook that is missing or cannot be read.
    """
    nodes, code, now = build(grid), cluster.code_digest(), time.time()
    made = Plan(grid, select(nodes, notebooks), {}, {}, width(nodes))
    for node in nodes:
        decide = [{key: tree[key] for key in DECIDING.get(node.notebook, tree)}
                  for tree in (settings.as_dict() for settings in node.settings)]
        source = folder / f"{node.notebook}.ipynb"
        made.jobs[node.label] = Job(node.label, str(source), str(grid.folder), node.parameters, {
            "notebook": digest(_sources(source)),
            "parameters": {k: v for k, v in node.parameters.items()
                           if k not in ("results", "overrides")},
            "settings": digest(decide),
            "code": code,
            "notebooks before it": {n: digest(made.jobs[n].made_from) for n in node.needs},
        }, now)
    for node in made.nodes:
        made.reasons[node.label] = "forced" if force else _reason(made, node)
    return made


def _sources(path: Path) -> list[str]:
    """Kind and text of all cells. (Importing nbformat takes a second.)"""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell["cell_type"] + "".join(cell["source"]) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "not a notebook of format 4"
        raise SettingsError(f"notebook {path}: {reason}") from None


def _reason(made: Plan, node: Node) -> str:
    """Why a node has to run, or nothing."""
    job = made.jobs[node.label]
    if not (record := read_json(job.record)):
        return "not run yet"
    found = record["made_from"]
    if changed := [part for part, wanted in job.made_from.items() if found.get(part) != wanted]:
        return f"changed: {', '.join(changed)}"
    for file in (job.copy, job.copy.with_suffix(".html"), *record["files"]):
        if not (path := Path(job.home, file)).exists():
            return f"{relpath(path)} is missing"
    for need in node.needs:
        if made.reasons.get(need):
            return f"after {need}"
        if read_json(made.jobs[need].record).get("finished", 0) > record["finished"]:
            return f"older than {need}"
    return ""


def run(made: Plan, jobs: int = 0, until: float = math.inf, scheduler: str = "",
        slurm: str = "") -> int:
    """Executes what has to run and reports.

    Returns 0, 1 if a notebook failed, budget.EXIT_CODE if time was up first. until: when to be
    through, by `time.monotonic`. jobs, scheduler, slurm: see `cluster.workers`. Raises
    SettingsError for workers that could not work, KeyboardInterrupt after stopping what ran.
    """
    began, count, outcomes = time.monotonic(), len(made.to_run), {}
    home = made.grid.folder
    print(f"{home.name}: {count} notebooks to run, {len(made.nodes) - count} unchanged")
    if count:
        signal = home / "logs" / f".signal-{uuid.uuid4().hex}"
        try:
            signal.parent.mkdir(parents=True, exist_ok=True)
            signal.touch()
        except OSError as error:
            raise SettingsError(f"results folder {home}: {error.strerror}; give another with "
                                "--results") from None
        try:
            with cluster.workers(jobs, scheduler, slurm) as pool:
                if not pool.jobs:
                    cluster.check(pool.client, signal, Path(made.jobs["01_dataset"].source).parent)
                outcomes = _follow(made, pool, signal, until)
        finally:
            signal.unlink(missing_ok=True)
    print(summary(made, outcomes, time.monotonic() - began))
    states = {outcome.status for outcome in outcomes.values()}
    return 1 if "failed" in states else budget.EXIT_CODE if states & set(execute.UNFINISHED) else 0


def _follow(made: Plan, pool: cluster.Pool, signal: Path, until: float) -> dict[str, Outcome]:
    """Hands all nodes to Dask as futures that need each other; tells what becomes of them."""
    from distributed import TimeoutError, as_completed, wait

    client, outcomes, futures = pool.client, {}, {}
    client.subscribe_topic(str(signal), lambda event: print(
        f"started {event[1]}, log {relpath(made.jobs[event[1]].log)}"))
    for node in made.to_run:
        job = replace(made.jobs[node.label], variables=_variables(made, node, pool, until),
                      gpus=pool.gpus, signal=str(signal))
        futures[node.label] = client.submit(
            cluster.work, job, *(futures[need] for need in node.needs if need in futures),
            pure=False, key=f"{node.label}/{signal.name}", priority=-len(futures),
            resources=pool.resources)
    limit = min(max(1, until - time.monotonic()), 1e8)  # Dask takes no infinity
    try:
        with contextlib.suppress(TimeoutError):
            for future in as_completed(futures.values(), timeout=limit):
                label = future.key.split("/")[0]
                outcomes[label] = found = _outcome(future)
                print(f"{found.status} {label}"
                      + f" after {timedelta(seconds=round(found.seconds))}" * (found.seconds > 0)
                      + f": {found.text}" * bool(found.text)
                      + f"; {len(outcomes)} of {len(futures)}")
    finally:  # after Ctrl-C, too
        signal.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            wait(list(futures.values()), timeout=execute.GRACE_SECONDS + 2)
    return {label: outcomes.get(label, Outcome("stopped")) for label in futures}


def _outcome(future: Any) -> Outcome:
    """What a worker returned, or why there is no worker any more."""
    try:
        return future.result()
    except (Exception, asyncio.CancelledError) as error:
        own = getattr(error, "task", future.key) == future.key  # else that of one that it needs
        return Outcome("failed", text=execute.describe(error)) if own else Outcome("left out")


def _variables(made: Plan, node: Node, pool: cluster.Pool, until: float) -> dict[str, str]:
    """What the kernel of a node finds in its environment."""
    found = {"TEVQ_RESULTS": str(config.results_root(made.grid.results)),
             config.FOLDER_VARIABLE: str(made.grid.folder)}
    if until < math.inf:
        found[budget.VARIABLE] = budget.deadline(
            until - time.monotonic() - cluster.CLOSING_SECONDS)
    if pool.jobs and "OMP_NUM_THREADS" not in os.environ:  # of torch and NumPy
        found["OMP_NUM_THREADS"] = str(
            max(1, pool.cores // min(pool.jobs, made.widths[node.label])))
    return found


def summary(made: Plan, outcomes: dict[str, Outcome], seconds: float) -> str:
    """What happened, every failure with its log, and where the results are."""
    states = [outcome.status for outcome in outcomes.values()]
    counts = [f"{states.count('done')} done", f"{len(made.nodes) - len(states)} unchanged"] + [
        f"{states.count(s)} {s}" for s in dict.fromkeys(states) if s != "done"]
    lines = [f"{', '.join(counts)} in {timedelta(seconds=round(seconds))}"]
    lines += [f"failed: {label}: {outcome.text}; log {relpath(made.jobs[label].log)}"
              for label, outcome in outcomes.items() if outcome.status == "failed"]
    if left := [label for label, outcome in outcomes.items() if outcome.status == "left out"]:
        lines.append(f"left out, because they need a failed one: {', '.join(left)}")
    if set(states) & set(execute.UNFINISHED):
        lines.append("stopped before the end; the same command goes on")
    own, theirs = made.grid.folder, config.PUBLISHED / made.grid.preset
    lines.append(f"results: {relpath(own)}/notebooks/*.html, tables/*.csv, figures/*.png")
    if own != theirs and any(own.glob("tables/*.csv")) and any(theirs.glob("tables/*.csv")):
        lines.append(f"compare: {relpath(own)}/tables with the published {relpath(theirs)}/tables")
    return "\n".join(lines)
