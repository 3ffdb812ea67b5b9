"""All notebooks of a grid: which must run, in which order, each on a worker of Dask.

    01 -> 03 and then 04 per (variant, seed) -> 02, 05 -> 06, 08

Table 2 adds 04 on a third of the training set, Table 3 adds 03 on the other item source, Table 4
adds both at the other stride. 00, 07 and 09 stand alone and run only when they are asked for.

Beside every executed notebook lies a record of what it was made from (`logs/<label>.json`). What is
finished and unchanged is left alone, and a failure stays with what needs it.
"""

import asyncio
import contextlib
import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from tevq import cluster, config, execute, forecast
from tevq.config import Settings, SettingsError, digest
from tevq.execute import Job, Outcome
from tevq.grid import FRACTION, Grid, words_of
from tevq.runs import budget
from tevq.runs.storage import read_json, writing

FOLDER = config.ROOT / "notebooks"
PAGE = "its web page is missing"  # the only reason that needs no execution
_ALL = {"preset": "smoke", "overrides": "", "results": ""}
_LISTS = _ALL | {"variants": "", "seeds": "", "tables": ""}
_ONE = _ALL | {"variant": "te", "seed": 0}
# Parameters of every notebook with the defaults that its parameters cell holds
NOTEBOOKS: dict[str, dict[str, Any]] = {
    "00_try_it": _ALL,
    "01_dataset": _ALL,
    "02_aliasing": _LISTS,
    "03_stage1": _ONE | {"source": ""},
    "04_stage2": _ONE | {"fraction": 1.0},
    "05_evaluation": _LISTS,
    "06_discussion": _LISTS,
    "07_benchmarks": _ALL,
    "08_why": _LISTS,
    "09_playground": _ALL,
}
# The first needs the machine to itself; the others show the pretrained networks, not the study
ON_REQUEST = ("07_benchmarks", "00_try_it", "09_playground")
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
    nodes: dict[str, Node] = {}

    def add(notebook: str, settings: list[Settings], needs: Iterable[str], *words: str,
            **own: Any) -> str:
        label = "-".join(filter(None, (notebook, *words)))
        common = {"preset": grid.preset, "overrides": grid.overrides or "", "results": grid.results}
        nodes[label] = Node(label, notebook, common | own, tuple(settings), tuple(needs))
        return label

    # (variant, seed, item source, fraction, stride); Table 3 has no Stage 2
    cells = [(v, seed, "", 1.0, 0) for seed in grid.seeds for v in grid.variants]
    more = [("", FRACTION, 0)] * (2 in grid.tables) + [
        (grid.second_source, 1.0, 0)] * bool(grid.second_source) + [
        ("", 1.0, grid.other_stride)] * (4 in grid.tables and bool(grid.other_stride))
    cells += [(v, seed, *cell) for seed in grid.seeds for v in grid.compared for cell in more]
    add("01_dataset", [grid.settings], ())
    for variant, seed, source, fraction, stride in cells:
        at = {"overrides": grid.overrides | {"stage1.stride": stride}} if stride else {}
        own, end = {"variant": variant, "seed": seed} | at, f"stride{stride}" if stride else ""
        first = add("03_stage1", [grid.cell(variant, seed, source, 1.0, stride)], ["01_dataset"],
                    variant, f"s{seed}", source, end, source=source, **own)
        if not source:
            third = f"{fraction:.2f}" if fraction < 1 else ""
            add("04_stage2", [grid.cell(variant, seed, source, fraction, stride)], [first],
                variant, f"s{seed}", third, end, fraction=fraction, **own)
    trainings = [label for label in nodes if label != "01_dataset"]
    first = [label for label in trainings if label.startswith("03") and "stride" not in label]
    lists = {k: ",".join(map(str, getattr(grid, k))) for k in ("variants", "seeds", "tables")}
    seen = add("02_aliasing", grid.cells, first, **lists)
    judged = add("05_evaluation", grid.cells, trainings, **lists)
    add("08_why", grid.cells, [judged], **lists)
    add("06_discussion", grid.cells, [seen, judged], **lists)
    for notebook in ON_REQUEST:
        add(notebook, [grid.settings], ())
    return list(nodes.values())


def select(nodes: list[Node], wanted: str) -> list[Node]:
    """The nodes of some notebooks, e.g. `"03,04"`; all but ON_REQUEST for an empty choice."""
    known = [name[:2] for name in NOTEBOOKS]
    words = [word.zfill(2) for word in words_of(wanted)]
    for word in set(words) - set(known):
        raise config.unknown("notebook", word, known)
    words = words or [name[:2] for name in NOTEBOOKS if name not in ON_REQUEST]
    return [node for node in nodes if node.notebook[:2] in words]


def width(nodes: list[Node]) -> dict[str, int]:
    """How many nodes can run side by side with each node: those at its depth in the graph.

    A property of the graph alone, so that a node always gets the same number of threads, whatever
    is skipped. (The last bits of a training depend on the number of threads.)
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.label] = 1 + max((depth[need] for need in node.needs), default=0)
    counts = [depth[node.label] for node in nodes if node.notebook not in ON_REQUEST]
    return {node.label: 1 if node.notebook in ON_REQUEST else counts.count(depth[node.label])
            for node in nodes}


def plan(grid: Grid, notebooks: str = "", force: bool = False, folder: Path = FOLDER) -> Plan:
    """Decides what has to run, without touching anything.

    notebooks: e.g. `"03,04"`, empty for all; folder: of the stored ones. Raises SettingsError for a
    bad choice, for a source of items that is not there, and for a notebook that cannot be read.
    """
    if ":" in grid.settings.data.source:
        from tevq.data.source import check  # which imports torch

        check(grid.settings.data.source)
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
        }, now, copies=_copies(node, nodes))
    for node in made.nodes:
        made.reasons[node.label] = "forced" if force else _reason(made, node)
    return made


def _copies(node: Node, nodes: list[Node]) -> dict[str, str]:
    """To which execution of each notebook a page leads: of the same cell, else of te, seed 0."""
    ends, labels = (node.label.removeprefix(node.notebook), "-te-s0"), {n.label for n in nodes}
    first = {other.notebook: other.label for other in reversed(nodes)}  # where there is neither
    return {name: next((name + end for end in ends if name + end in labels), label)
            for name, label in first.items()}


def _sources(path: Path) -> list[str]:
    """Kind and text of all cells. (Importing nbformat takes a second.)"""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell["cell_type"] + "".join(cell["source"]) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingsError(f"notebook {path} cannot be read: {error}") from None


def _reason(made: Plan, node: Node) -> str:
    """Why a node has to run, or nothing."""
    job = made.jobs[node.label]
    if not (record := read_json(job.record)):
        return "not run yet"
    found = record["made_from"]
    if changed := [part for part, wanted in job.made_from.items() if found.get(part) != wanted]:
        return f"changed: {', '.join(changed)}"
    for file in (job.copy, *record["files"]):
        if not (path := Path(job.home, file)).exists():
            return f"{shown(path)} is missing"
    for need in node.needs:
        if made.reasons.get(need, "") not in ("", PAGE):
            return f"after {need}"
        if read_json(made.jobs[need].record).get("finished", 0) > record["finished"]:
            return f"older than {need}"
    return "" if job.copy.with_suffix(".html").exists() else PAGE


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
        with writing(config.results_root(made.grid.results)):  # the folder that was asked for
            signal.parent.mkdir(parents=True, exist_ok=True)
            signal.touch()
        try:
            with cluster.workers(jobs, scheduler, slurm, until) as pool:
                if not pool.jobs:
                    cluster.check(pool.client, signal, Path(made.jobs["01_dataset"].source).parent)
                outcomes = _follow(made, pool, signal, until)
        except budget.OutOfTimeError as error:
            print(error)
            outcomes = {node.label: Outcome("stopped") for node in made.to_run}
        finally:
            signal.unlink(missing_ok=True)
    print(summary(made, outcomes, time.monotonic() - began))
    states = {outcome.status for outcome in outcomes.values()}
    return 1 if "failed" in states else budget.EXIT_CODE if states & set(execute.UNFINISHED) else 0


def _follow(made: Plan, pool: cluster.Pool, signal: Path, until: float) -> dict[str, Outcome]:
    """Hands all nodes to Dask as futures that need each other; tells what becomes of them."""
    from distributed import TimeoutError, as_completed, wait

    client, outcomes, futures, left = pool.client, {}, {}, until - time.monotonic()
    common = {"TEVQ_RESULTS": str(config.results_root(made.grid.results)),
              config.FOLDER_VARIABLE: str(made.grid.folder)}
    if left < math.inf:
        common[budget.VARIABLE] = str(time.time() + left - cluster.CLOSING_SECONDS)
    costs = forecast.expected(made)
    client.subscribe_topic(str(signal), lambda event: print(
        f"started {event[1]}, log {shown(made.jobs[event[1]].log)}"))
    for node in made.to_run:
        job = replace(made.jobs[node.label], gpus=pool.gpus, signal=str(signal),
                      page_only=made.reasons[node.label] == PAGE,
                      variables=common | pool.threads(made.widths[node.label]))
        futures[node.label] = client.submit(
            cluster.work, job, *(futures[need] for need in node.needs if need in futures),
            pure=False, key=f"{node.label}/{signal.name}", priority=-len(futures),
            resources=pool.resources)
    try:
        with contextlib.suppress(TimeoutError):
            for future in as_completed(futures.values(), timeout=min(max(1, left), 1e8)):
                label = future.key.split("/")[0]
                outcomes[label] = found = _outcome(future)
                print(f"{found.status} {label}"
                      + f" after {timedelta(seconds=round(found.seconds))}" * (found.seconds > 0)
                      + f": {found.text}" * bool(found.text)
                      + f"; {len(outcomes)} of {len(futures)} notebooks"
                      + forecast.left(costs, outcomes, pool.jobs or len(client.nthreads())))
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


def summary(made: Plan, outcomes: dict[str, Outcome], seconds: float) -> str:
    """What happened, every failure with its log, and where the results are."""
    counts = Counter({"done": 0, "unchanged": len(made.nodes) - len(outcomes)})
    counts.update(outcome.status for outcome in outcomes.values())
    lines = [", ".join(f"{count} {status}" for status, count in counts.items())
             + f" in {timedelta(seconds=round(seconds))}"]
    lines += [f"failed: {label}: {outcome.text}; log {shown(made.jobs[label].log)}"
              for label, outcome in outcomes.items() if outcome.status == "failed"]
    if counts.keys() & set(execute.UNFINISHED):
        lines.append("stopped before the end; the same command goes on")
    own, theirs = made.grid.folder, config.PUBLISHED / made.grid.preset
    lines.append(f"results: {shown(own)}/notebooks/*.html, tables/*.csv, figures/*.png")
    if own != theirs and any(own.glob("tables/*.csv")) and any(theirs.glob("tables/*.csv")):
        lines.append(f"compare: {shown(own)}/tables with the published {shown(theirs)}/tables")
    return "\n".join(lines)


def shown(path: Path) -> Path:
    """A path as seen from the current folder, if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
