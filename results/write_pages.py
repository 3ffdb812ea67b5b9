"""Writes the generated parts of the pages from the committed tables.

Run it as `python results/write_pages.py`. With `--record smoke` it first notes, in times.csv, what
the finished command `./run_all.sh --preset smoke` took on this machine, and what came out.

A generated part stands between two marks in a Markdown file. Nothing in it is typed, and a test
compares it with the tables.
"""

import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent)]  # finds `pages`, and tevq when it is not installed

from pages import guide, short, speed, study

from tevq.config import SettingsError
from tevq.grid import Grid
from tevq.runs.devices import ROOT
from tevq.runs.storage import write_atomically

BEGIN = "<!-- {}: made by `python results/write_pages.py`, do not edit -->"
END = "<!-- end of {} -->"
PAGES: dict[str, dict[str, Callable[[Grid], str]]] = {
    "README.md": {"lead": short.lead, "short": short.in_short, "pace": speed.pace},
    "tevq/README.md": {"files": guide.files, "presets": guide.sizes, "official": guide.official,
                       "guide": guide.commands, "scaling": guide.scaling},
    "results/laptop/README.md": {"results": study.results},
    "results/benchmarks/README.md": {"speed": speed.targets, "cells": speed.cells,
                                     "tried": speed.tried},
    "results/reliability.md": {"promises": guide.promises},
}


def updated(page: str, old: str, grid: Grid) -> str:
    """The text of a page with its generated parts replaced. Raises SettingsError without marks."""
    for part, write in PAGES[page].items():
        begin, end = BEGIN.format(part), END.format(part)
        start, stop = old.find(begin), old.find(end)
        if start < 0 or stop < start:
            raise SettingsError(f"{page} lacks the lines {begin} and {end}")
        old = f"{old[: start + len(begin)]}\n\n{write(grid)}\n\n{old[stop:]}"
    return old


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        guide.record(sys.argv[2])
    for page in PAGES:
        path = ROOT / page
        text_now = updated(page, path.read_text(encoding="utf-8"), study.published_grid())
        write_atomically(path, text_now.encode())
