"""Writes the README's results from the committed tables: `python -m tevq.report`.

Nothing in that part of the README is typed; a test compares it with the tables.
"""

from __future__ import annotations

import pandas as pd

from tevq import machine, tables, views
from tevq.atomic import write_atomically
from tevq.settings import SettingsError
from tevq.study import Study, choose

PRESET = "laptop"
README = machine.ROOT / "README.md"
BEGIN = "<!-- results: made by `python -m tevq.report`, do not edit -->\n"
END = "<!-- end of results -->"


def published_study(preset: str = PRESET) -> Study:
    """The study whose tables are committed: the variants and seeds that Table 1 has."""
    table = tables.read(choose(preset, results=str(machine.ROOT / "results")), "table1")
    variants, seeds = (list(dict.fromkeys(table[c])) for c in ("variant", "seed"))
    return choose(preset, variants, seeds, results=str(machine.ROOT / "results"))


def block(study: Study) -> str:
    """Markdown of the main results of a study."""
    table1, table3, measures = (tables.read(study, name)
                                for name in ("table1", "table3", "equivariance"))
    parts = [
        f"*{views.caption(study, table1)}.*",
        "**Table 1, text→image**: digit accuracy on combinations never seen in training",
        markdown(views.accuracy(table1, "t2i")),
        "The same on combinations that training shows (`test_seen`)",
        markdown(views.accuracy(table1, "t2i", split="test_seen")),
        "**Table 1, image→text**: digit accuracy by the official rule, sampled captions",
        markdown(views.accuracy(table1, "i2t")),
        "**Table 3**: codes used at least once, and what reconstructions lose",
        markdown(views.reconstruction(table3)),
        "**Equivariance**: agreement of codes beyond chance (kappa) when an item moves or its "
        "surroundings change",
        markdown(views.equivariance(measures)),
    ]
    return "\n\n".join(parts) + "\n"


def markdown(view: pd.DataFrame) -> str:
    """A wide table as GitHub Markdown."""
    names = [name or "" for name in view.index.names]
    lines = [[*names, *map(str, view.columns)], ["---"] * (len(names) + view.shape[1])]
    for index, row in view.iterrows():
        keys = index if isinstance(index, tuple) else (index,)
        lines.append([*map(str, keys), *map(str, row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def updated(text: str, study: Study) -> str:
    """README text with its results replaced. Raises SettingsError without the two marks."""
    start, stop = text.find(BEGIN), text.find(END)
    if start < 0 or stop < start:
        raise SettingsError(f"{README} lacks the lines {BEGIN.strip()} and {END}")
    return f"{text[: start + len(BEGIN)]}\n{block(study)}\n{text[stop:]}"


if __name__ == "__main__":
    write_atomically(README, updated(README.read_text(), published_study()).encode())
