"""Stored notebooks that train nothing, for the tests of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

from tevq import graph


def code(source: str, *tags: str) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": [],
            "execution_count": None}


def write_notebook(folder: Path, name: str, *sources: str) -> None:
    """A notebook with the right parameters, `study`, and some more cells."""
    values = "\n".join(f"{key} = {value!r}" for key, value in graph.NOTEBOOKS[name].items())
    begin = f'from tevq import notebook\nstudy = notebook.start(globals(), "{name}")'
    title = {"cell_type": "markdown", "metadata": {}, "source": f"# {name}\n\n$K \\leq C'$"}
    cells = [title, code(values, "parameters"), code(begin), *map(code, sources)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / f"{name}.ipynb").write_text(json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}))


def write_all(folder: Path) -> Path:
    """One of each."""
    folder.mkdir()
    for name in graph.NOTEBOOKS:
        write_notebook(folder, name)
    return folder
