"""The run graph: which notebook is executed with which parameters, and after which others.

    01 -> 03 and then 04 per (variant, seed) -> 02, 05 -> 06

Table 2 adds 04 on a third of the training set, Table 3 adds 03 on the other item source, Table 4
adds both at the other stride. 07 stands alone and runs only when it is asked for.
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tevq.config import Settings, SettingsError, digest, unknown
from tevq.grid import FRACTION, Grid

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"

_ALL = {"preset": "smoke", "overrides": "", "results": ""}
_LISTS = _ALL | {"variants": "", "seeds": "", "tables": ""}
_ONE = _ALL | {"variant": "te", "seed": 0}

# Parameters of every notebook with the defaults its parameters cell holds
NOTEBOOKS: dict[str, dict[str, Any]] = {
    "01_dataset": _ALL,
    "02_aliasing": _LISTS,
    "03_stage1": _ONE | {"source": ""},
    "04_stage2": _ONE | {"fraction": 1.0},
    "05_evaluation": _LISTS,
    "06_discussion": _LISTS,
    "07_benchmarks": _ALL,
}
ON_REQUEST = ("07_benchmarks",)  # needs the machine to itself


@dataclass(frozen=True)
class Node:
    """One execution of one notebook."""

    label: str  # names the executed copy, e.g. 03_stage1-te-s0
    notebook: str
    parameters: dict[str, Any]
    settings: tuple[Settings, ...]  # what it depends on
    needs: tuple[str, ...] = ()  # labels
    run: str = ""  # kind of the run that it leaves behind, if it is about one


def build(grid: Grid) -> list[Node]:
    """All nodes of a study, every node after those that it needs."""
    nodes = [_one(grid, "01_dataset", {}, "01_dataset", ())]
    stage1, stage2 = [], []
    for seed in grid.seeds:
        for variant in grid.variants:
            nodes += [first := _stage1(grid, variant, seed), _stage2(grid, first)]
            stage1.append(first.label)
            stage2.append(nodes[-1].label)
    for seed in grid.seeds:
        for variant in grid.compared:
            if grid.second_source:
                nodes.append(_stage1(grid, variant, seed, grid.second_source))
                stage1.append(nodes[-1].label)
            if 2 in grid.tables:
                nodes.append(_stage2(grid, _stage1(grid, variant, seed), FRACTION))
                stage2.append(nodes[-1].label)
            if 4 in grid.tables and grid.other_stride:
                nodes += [first := _stage1(grid, variant, seed, stride=grid.other_stride),
                          _stage2(grid, first, stride=grid.other_stride)]
                stage2.append(nodes[-1].label)
    nodes.append(_all(grid, "02_aliasing", stage1))
    nodes.append(_all(grid, "05_evaluation", stage1 + stage2))
    nodes.append(_all(grid, "06_discussion", ["02_aliasing", "05_evaluation"]))
    return nodes + [_one(grid, name, {}, name, ()) for name in ON_REQUEST]


def select(nodes: list[Node], wanted: str | None) -> list[Node]:
    """The nodes of some notebooks, e.g. `"03,04"`; all but ON_REQUEST for an empty choice."""
    if not wanted:
        return [node for node in nodes if node.notebook not in ON_REQUEST]
    found = set()
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        matches = [n for n in NOTEBOOKS if word in (n, n[:2]) or word.zfill(2) == n[:2]]
        if not matches:
            raise unknown("notebook", word, [name[:2] for name in NOTEBOOKS])
        found.update(matches)
    return [node for node in nodes if node.notebook in found]


def width(nodes: list[Node]) -> dict[str, int]:
    """How many nodes can run side by side with each node: those at its depth in the graph.

    A property of the graph alone, so that a node always gets the same number of threads, whatever
    is skipped. (The last bits of a training depend on the number of threads.) What runs on request
    stands alone.
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.label] = 1 + max((depth.get(need, 0) for need in node.needs), default=0)
    counts = [depth[node.label] for node in nodes if node.notebook not in ON_REQUEST]
    return {node.label: 1 if node.notebook in ON_REQUEST else counts.count(depth[node.label])
            for node in nodes}


def read(folder: Path, name: str) -> dict[str, Any]:
    """A stored notebook as plain JSON, every cell's source one string.

    (Importing nbformat takes seconds, which --help and --dry-run need not wait for.) Raises
    SettingsError when there is none.
    """
    path = folder / f"{name}.ipynb"
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
    except OSError as error:
        raise SettingsError(f"notebook {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"notebook {path} is not a notebook of format 4") from None
    return notebook


def parameters_cell(notebook: dict[str, Any]) -> dict[str, Any]:
    """The cell tagged `parameters`; an empty one if there is none."""
    tagged = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    return next(tagged, {"source": ""})


def parameters_of(notebook: dict[str, Any]) -> dict[str, Any]:
    """Names and defaults in the parameters cell. Raises ValueError unless all are literals."""
    found = {}
    for line in ast.parse(parameters_cell(notebook)["source"]).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f"line {line.lineno} of the parameters cell is not name = value")
        found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def check_parameters(nodes: list[Node], folder: Path) -> None:
    """Raises SettingsError if a notebook would drop a parameter (papermill only warns)."""
    for name in {node.notebook: None for node in nodes}:
        try:
            found = parameters_of(read(folder, name))
        except (ValueError, SyntaxError) as error:
            raise SettingsError(f"notebook {name}: {error}") from None
        if missing := [parameter for parameter in NOTEBOOKS[name] if parameter not in found]:
            raise SettingsError(
                f"notebook {name} has no parameter {', '.join(missing)}; its cell tagged "
                f"'parameters' sets {', '.join(found) or 'nothing'}"
            )


def fingerprints(nodes: list[Node], folder: Path) -> dict[str, dict[str, Any]]:
    """What decides the outcome of each node; a change in any part makes it run again.

    Works only on a full graph in order, because a node includes the nodes that it needs.
    """
    found: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    for node in nodes:
        notebook = _read_or_empty(folder, node.notebook)
        found[node.label] = {
            "notebook": _sha("\0".join(c["cell_type"] + c["source"] for c in notebook["cells"])),
            "parameters": {k: v for k, v in node.parameters.items()
                           if k not in ("results", "overrides")},
            "settings": digest({"all": [_deciding(node, s) for s in node.settings]}),
            "imported code": code_digest(),
            "notebooks before it": {need: digests[need] for need in node.needs},
        }
        digests[node.label] = _sha(json.dumps(found[node.label], sort_keys=True))
    return found


def _read_or_empty(folder: Path, name: str) -> dict[str, Any]:
    """For notebooks that are only needed by others; those to be run have been checked."""
    try:
        return read(folder, name)
    except SettingsError:
        return {"cells": []}


def _deciding(node: Node, settings: Settings) -> dict[str, Any]:
    """The settings that a node depends on."""
    from tevq.runs.run import run_config

    if node.notebook == "01_dataset":
        return {"data": settings.as_dict()["data"]}
    return run_config(settings, node.run) if node.run else settings.as_dict()


@cache
def code_digest() -> str:
    """Digest of the package's sources. A change in any of them makes notebooks run again."""
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    return _sha("\0".join(f"{file.relative_to(package)}\0{file.read_text(encoding='utf-8')}"
                          for file in files))


def _stage1(grid: Grid, variant: str, seed: int, source: str = "", stride: int = 0) -> Node:
    words = ("03_stage1", variant, f"s{seed}", source, f"stride{stride}" if stride else "")
    own = {"variant": variant, "seed": seed, "source": source} | _at(grid, stride)
    node = _one(grid, "03_stage1", own, "-".join(filter(None, words)), ("01_dataset",))
    return replace(node, settings=(grid.cell(variant, seed, source, 1.0, stride),), run="stage1")


def _stage2(grid: Grid, stage1: Node, fraction: float = 1.0, stride: int = 0) -> Node:
    variant, seed = stage1.parameters["variant"], stage1.parameters["seed"]
    words = ("04_stage2", variant, f"s{seed}", f"{fraction:.2f}" if fraction != 1 else "",
             f"stride{stride}" if stride else "")
    own = {"variant": variant, "seed": seed, "fraction": fraction} | _at(grid, stride)
    node = _one(grid, "04_stage2", own, "-".join(filter(None, words)), (stage1.label,))
    return replace(node, settings=(grid.cell(variant, seed, "", fraction, stride),), run="stage2")


def _at(grid: Grid, stride: int) -> dict[str, Any]:
    """Parameters of a notebook at another stride than the study's."""
    return {"overrides": grid.overrides | {"stage1.stride": stride}} if stride else {}


def _all(grid: Grid, notebook: str, needs: list[str]) -> Node:
    lists = {
        "variants": ",".join(grid.variants),
        "seeds": ",".join(map(str, grid.seeds)),
        "tables": ",".join(map(str, grid.tables)),
    }
    node = _one(grid, notebook, lists, notebook, tuple(needs))
    return replace(node, settings=tuple(grid.cells))


def _one(grid: Grid, notebook: str, own: dict, label: str, needs: tuple[str, ...]) -> Node:
    common = {"preset": grid.preset, "overrides": grid.overrides or "",
              "results": grid.results}
    return Node(label, notebook, common | own, (grid.settings,), needs)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
