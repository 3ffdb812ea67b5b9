"""`python -m tevq.tidy [results]`: makes the stored notebooks fit to commit.

Strips outputs and metadata. Cells tagged `nbval-check-output` keep what they printed, taken from
the executed copies of preset `smoke`, for nbval to compare with; they may print only facts that do
not depend on sizes, seeds or the machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tevq import graph
from tevq.config import SettingsError
from tevq.grid import choose

CHECKED = "nbval-check-output"


def main(arguments: list[str] | None = None, folder: Path = graph.FOLDER) -> int:
    """Tidies every stored notebook. results: folder of the executed copies."""
    words = sys.argv[1:] if arguments is None else arguments
    executed = choose(results=words[0] if words else "").folder / "notebooks"
    for name in graph.NOTEBOOKS:
        stored = graph.read(folder, name)
        values = graph.NOTEBOOKS[name]
        cell = f"-{values['variant']}-s{values['seed']}" if "variant" in values else ""
        copy = executed / f"{name}{cell}.ipynb"
        missing = tidy(stored, graph.read(executed, copy.stem) if copy.exists() else None)
        (folder / f"{name}.ipynb").write_text(
            json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for cell in missing:
            print(f"{name}: no executed copy of a checked cell: {cell.splitlines()[0]}")
    return 0


def tidy(stored: dict[str, Any], executed: dict[str, Any] | None) -> list[str]:
    """Tidies a notebook in place; sources of checked cells for which there is no output."""
    found = {c["source"]: c for c in executed["cells"]} if executed else {}
    missing, count = [], 0
    stored["metadata"] = {"kernelspec": {
        "display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in stored["cells"]:
        tags = cell["metadata"].get("tags", [])
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            count += 1
            text = _printed(found.get(cell["source"])) if CHECKED in tags else ""
            # nbval takes an output without a count for a fault
            cell["execution_count"] = count if text else None
            cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] * bool(
                text)
            missing += [cell["source"]] if CHECKED in tags and not text else []
        cell["source"] = cell["source"].splitlines(keepends=True)  # readable differences in git
    return missing


def _printed(cell: dict[str, Any] | None) -> list[str]:
    """What an executed cell printed, by lines."""
    outputs = cell["outputs"] if cell else []
    text = "".join("".join(o["text"]) for o in outputs if o.get("name") == "stdout")
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SettingsError as error:
        sys.exit(f"tevq: {error}")
