"""The README shows the committed tables, and only those."""

import re

import pandas as pd
import pytest

from tevq import machine, report, tables
from tevq.settings import SettingsError


def test_the_readme_holds_exactly_what_the_tables_say():
    text = report.README.read_text()
    assert report.updated(text, report.published_study()) == text


@pytest.mark.promise("records")
def test_the_committed_tables_come_from_committed_runs():
    """Rebuilding the tables from the run folders gives the files that are there."""
    study = report.published_study()
    for name, table in tables.build(study).items():
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        assert (study.table_folder / f"{name}.csv").read_text() == text, name


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", report.README.read_text()):
        if not target.startswith("http"):
            assert (machine.ROOT / target).exists(), target


def test_markdown_and_missing_marks():
    index = pd.MultiIndex.from_tuples([("te", "ours")], names=["variant", "of"])
    table = report.markdown(pd.DataFrame([["0.9", "–"]], index=index, columns=["Quad1", "mean"]))
    assert table.splitlines() == ["| variant | of | Quad1 | mean |", "| --- | --- | --- | --- |",
                                  "| te | ours | 0.9 | – |"]
    with pytest.raises(SettingsError, match="lacks the lines"):
        report.updated("no marks", report.published_study())
