"""Stored notebooks that train nothing, for the tests of the pipeline; how stored ones are read."""

import ast
import json
from pathlib import Path
from typing import Any

from tevq.pipeline import NOTEBOOKS
from tevq.runs.devices import ROOT


def code(source: str, *tags: str) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": [],
            "execution_count": None}


def write_notebook(folder: Path, name: str, *sources: str) -> None:
    """A notebook with the right parameters, `study`, and some more cells."""
    values = "\n".join(f"{key} = {value!r}" for key, value in NOTEBOOKS[name].items())
    begin = f'from tevq import notebook\nstudy = notebook.start(globals(), "{name}")'
    title = {"cell_type": "markdown", "metadata": {}, "source": f"# {name}\n\n$K \\leq C'$"}
    cells = [title, code(values, "parameters"), code(begin), *map(code, sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / f"{name}.ipynb").write_text(json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}))


def write_all(folder: Path) -> Path:
    """One of each."""
    folder.mkdir()
    for name in NOTEBOOKS:
        write_notebook(folder, name)
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    """A stored notebook as plain JSON, every cell's source one string."""
    book = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in book["cells"]:
        cell["source"] = "".join(cell["source"])
    return book


def functions_of(name: str, **given: Any) -> dict[str, Any]:
    """What a stored notebook imports and the functions it defines; `given` are the values of names
    that other cells of it make."""
    names = dict(given)
    for cell in read(ROOT / "notebooks", name)["cells"]:
        if cell["cell_type"] == "code":
            parts = [part for part in ast.parse(cell["source"]).body
                     if isinstance(part, (ast.Import, ast.ImportFrom, ast.FunctionDef))]
            exec(compile(ast.Module(parts, []), cell["id"], "exec"), names)
    return names


def parameters_cell(book: dict[str, Any]) -> dict[str, Any]:
    """The cell tagged `parameters`; an empty one if there is none."""
    tagged = (c for c in book["cells"] if "parameters" in c["metadata"].get("tags", []))
    return next(tagged, {"source": ""})


def parameters_of(book: dict[str, Any]) -> dict[str, Any]:
    """Names and defaults in the parameters cell. Raises ValueError unless all are literals."""
    found = {}
    for line in ast.parse(parameters_cell(book)["source"]).body:
        if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f"line {line.lineno} of the parameters cell is not name = value")
        found[line.targets[0].id] = ast.literal_eval(line.value)
    return found
