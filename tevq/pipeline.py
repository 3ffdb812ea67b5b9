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
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tevq import cluster, config, execute
from tevq.config import Settings, SettingsError, digest
from tevq.execute import Outcome, Request
from tevq.grid import FRACTION, Grid
from tevq.runs import budget

FOLDER = config.ROOT / "notebooks"
CLOSING_SECONDS = 20  # before the budget ends: trainings have saved, no notebook is started
STOP_SECONDS = execute.GRACE_SECONDS + 2  # before it ends: what still runs is told to stop

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
    reasons: dict[str, str]  # why each has to run; empty: it need not
    made_from: dict[str, dict[str, Any]]  # what each would be made from
    widths: dict[str, int]
    folder: Path  # of the stored notebooks
    home: Path  # what is written lies below
    signal: Path  # see cluster.SIGNALS
    planned: float  # when, in seconds since 1970

    @property
    def to_run(self) -> list[Node]:
        """Nodes that have a reason to run."""
        return [node for node in self.nodes if self.reasons[node.label]]

    def copy(self, label: str) -> Path:
        """The executed notebook of a node; its web page lies beside it."""
        return self.home / "notebooks" / f"{label}.ipynb"

    def log(self, label: str) -> Path:
        """What a node printed; its record lies beside it."""
        return self.home / "logs" / f"{label}.log"


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

    notebooks: e.g. `"03,04"`, empty for all. Raises SettingsError for a bad choice and for a
    notebook that is missing or cannot be read.
    """
    nodes = build(grid)
    made = Plan(grid, select(nodes, notebooks), {}, {}, width(nodes), folder, grid.folder,
                grid.folder / "logs" / f".signal-{uuid.uuid4().hex}", time.time())
    code = cluster.code_digest()
    for node in nodes:
        decide = [{key: tree[key] for key in DECIDING.get(node.notebook, tree)}
                  for tree in (settings.as_dict() for settings in node.settings)]
        made.made_from[node.label] = {
            "notebook": digest(_sources(folder / f"{node.notebook}.ipynb")),
            "parameters": {k: v for k, v in node.parameters.items()
                           if k not in ("results", "overrides")},
            "settings": digest(decide),
            "code": code,
            "notebooks before it": {need: digest(made.made_from[need]) for need in node.needs},
        }
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
    record = cluster.record(made.log(node.label))
    if not record:
        return "not run yet"
    found, wanted = record["made_from"], made.made_from[node.label]
    if changed := [part for part in wanted if found.get(part) != wanted[part]]:
        return f"changed: {', '.join(changed)}"
    copy = made.copy(node.label)
    files = [copy, copy.with_suffix(".html"), *(made.home / file for file in record["files"])]
    if missing := [file for file in files if not file.exists()]:
        return f"{shorten(missing[0])} is missing"
    for need in node.needs:
        if made.reasons.get(need):
            return f"after {need}"
        if cluster.record(made.log(need)).get("finished", 0) > record["finished"]:
            return f"older than {need}"
    return ""


def run(made: Plan, jobs: int = 0, say: Callable[[str], None] = print, until: float = math.inf,
        scheduler: str = "", slurm: str = "") -> int:
    """Executes what has to run and reports.

    Returns 0, 1 if a notebook failed, budget.EXIT_CODE if time was up first. until: when to be
    through, by `time.monotonic`. jobs, scheduler, slurm: see `cluster.workers`. Raises
    SettingsError for workers that could not work, KeyboardInterrupt after stopping what ran.
    """
    began, count, outcomes = time.monotonic(), len(made.to_run), {}
    say(f"{made.home.name}: {count} notebooks to run, {len(made.nodes) - count} unchanged")
    if count:
        with _signal(made, until), cluster.workers(jobs, scheduler, slurm, say) as pool:
            if not pool.jobs:
                cluster.check(pool.client, made.signal, made.folder)
            outcomes = _follow(made, pool, say, until)
    say(summary(made, outcomes, time.monotonic() - began))
    states = {outcome.status for outcome in outcomes.values()}
    return 1 if "failed" in states else budget.EXIT_CODE if states & set(execute.UNFINISHED) else 0


@contextlib.contextmanager
def _signal(made: Plan, until: float) -> Iterator[None]:
    """A file that workers on all machines look at while this command wants work from them."""
    left = until - time.monotonic()
    try:
        made.signal.parent.mkdir(parents=True, exist_ok=True)
        made.signal.write_bytes(cluster.SIGNALS["close" if left < CLOSING_SECONDS else "go"])
    except OSError as error:
        raise SettingsError(f"results folder {made.home}: {error.strerror}; give another with "
                            "--results") from None
    timers = [threading.Timer(max(0, left - seconds), cluster.tell, (made.signal, word))
              for seconds, word in ((CLOSING_SECONDS, "close"), (STOP_SECONDS, "stop"))
              if left < math.inf]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        made.signal.unlink(missing_ok=True)


def _follow(made: Plan, pool: cluster.Pool, say: Callable, until: float) -> dict[str, Outcome]:
    """Hands all nodes to Dask as futures that need each other; tells what becomes of them."""
    from distributed import TimeoutError, as_completed, wait

    client, outcomes, futures = pool.client, {}, {}
    client.subscribe_topic(made.signal.name, lambda event: say(
        f"started {event[1]}, log {shorten(made.log(event[1]))}"))
    for node in made.to_run:
        futures[node.label] = client.submit(
            cluster.work, _job(made, node, pool, until),
            *(futures[need] for need in node.needs if need in futures), pure=False,
            key=f"{node.label}/{made.signal.name}", priority=-len(futures),
            resources=pool.resources)
    limit = min(max(1, until - time.monotonic()), 1e8)  # Dask takes no infinity
    try:
        with contextlib.suppress(TimeoutError):
            for future in as_completed(futures.values(), timeout=limit):
                label = future.key.split("/")[0]
                outcomes[label] = found = _outcome(future)
                recent = [one.seconds for one in outcomes.values() if one.seconds][-5:]
                rest = (len(futures) - len(outcomes)) / max(1, len(client.nthreads()))
                left = rest * sum(recent) / max(1, len(recent))
                say(f"{found.status} {label}"
                    + f" after {duration(found.seconds)}" * (found.seconds > 0)
                    + f": {found.text}" * bool(found.text) + f"; {len(outcomes)} of {len(futures)}"
                    + f", about {duration(left)} left" * (left > 0))
    finally:  # after Ctrl-C, too
        cluster.tell(made.signal, "stop")
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            wait(list(futures.values()), timeout=STOP_SECONDS)
    return {label: outcomes.get(label, Outcome("stopped")) for label in futures}


def _outcome(future: Any) -> Outcome:
    """What a worker returned, or why there is no worker any more."""
    try:
        return future.result()
    except (Exception, asyncio.CancelledError) as error:
        own = getattr(error, "task", future.key) == future.key  # else that of one that it needs
        return Outcome("failed", text=execute.describe(error)) if own else Outcome("left out")


def _job(made: Plan, node: Node, pool: cluster.Pool, until: float) -> cluster.Job:
    """What the worker of a node is told."""
    variables = {"TEVQ_RESULTS": str(config.results_root(made.grid.results)),
                 config.FOLDER_VARIABLE: str(made.home)}
    if until < math.inf:
        variables[budget.VARIABLE] = str(time.time() - time.monotonic() + until - CLOSING_SECONDS)
    log = made.log(node.label)
    request = Request(str(made.folder / f"{node.notebook}.ipynb"), str(made.copy(node.label)),
                      str(log.with_suffix(".ipynb")), f"{node.label} ({made.grid.preset})",
                      node.parameters, variables)
    return cluster.Job(node.label, request, log, made.signal, made.made_from[node.label],
                       made.planned, pool.threads(made.widths[node.label]), pool.gpus)


def summary(made: Plan, outcomes: dict[str, Outcome], seconds: float) -> str:
    """What happened, every failure with its log, and where the results are."""
    states = [outcome.status for outcome in outcomes.values()]
    counts = [f"{states.count('done')} done", f"{len(made.nodes) - len(states)} unchanged"] + [
        f"{states.count(s)} {s}" for s in dict.fromkeys(states) if s != "done"]
    lines = [f"{', '.join(counts)} in {duration(seconds)}"]
    for label, outcome in outcomes.items():
        if outcome.status == "failed":
            log = made.log(label)
            lines += [f"failed: {label}: {outcome.text}",
                      f"    log {shorten(log)}, notebook {shorten(log.with_suffix('.ipynb'))}"]
    if left := [label for label, outcome in outcomes.items() if outcome.status == "left out"]:
        lines.append(f"left out, because they need a failed one: {', '.join(left)}")
    if set(states) & set(execute.UNFINISHED):
        lines.append("stopped by the budget; the same command goes on")
    home = shorten(made.home)
    return "\n".join([*lines, f"notebooks  {home}/notebooks/*.html (and .ipynb)",
                      f"tables     {home}/tables/*.csv", f"figures    {home}/figures/*.png"])


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 03 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def shorten(path: Path) -> str:
    """A path as seen from the current folder, if it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
