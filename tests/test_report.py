"""The README shows the committed tables, and only those."""

import re

import fake_runs
import pandas as pd
import pytest
import torch

from tevq.config import SettingsError
from tevq.grid import choose
from tevq.report import pages as report
from tevq.report import tables, views
from tevq.runs import devices
from tevq.runs.run import open_run


def test_the_readme_holds_exactly_what_the_tables_say():
    text = report.README.read_text()
    assert report.updated(text, report.published_grid()) == text


@pytest.mark.promise("records")
def test_the_committed_tables_come_from_committed_runs():
    """Rebuilding the tables from the run folders gives the files that are there."""
    grid = report.published_grid()
    for name, table in tables.build(grid).items():
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        assert (grid.table_folder / f"{name}.csv").read_text() == text, name


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", report.README.read_text()):
        if not target.startswith("http"):
            assert (devices.ROOT / target).exists(), target


def test_markdown_and_missing_marks():
    index = pd.MultiIndex.from_tuples([("te", "ours")], names=["variant", "of"])
    table = report.markdown(pd.DataFrame([["0.9", "–"]], index=index, columns=["Quad1", "mean"]))
    assert table.splitlines() == ["| variant | of | Quad1 | mean |", "| --- | --- | --- | --- |",
                                  "| te | ours | 0.9 | – |"]
    with pytest.raises(SettingsError, match="lacks the lines"):
        report.updated("no marks", report.published_grid())


def test_minutes_of_unlike_machines_are_not_averaged(tmp_path):
    small = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    assert report._measured(small, "smoke", "stage2") == "–"
    for cell, seconds in zip(small.cells, (60, 180, 600, 120), strict=True):
        dtype = torch.float32 if seconds == 600 else torch.bfloat16
        run = open_run(cell, "stage2", tmp_path)
        run.start(devices.Device(torch.device("cpu"), dtype))
        run.finish({"seconds": seconds})
    assert report._measured(small, "gpu", "stage2") == "–"
    words = report._measured(small, "smoke", "stage2").split("; ")
    assert len(words) == 2
    assert words[0].startswith("2 min (3 runs,") and ", bfloat16, " in words[0]
    assert words[1].startswith("10 min (1 run,") and ", float32, " in words[1]


def test_captions_name_trainings_in_another_precision(tmp_path):
    """Planted faults: the usual precision is named; unfinished trainings count; names twice."""
    small = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    table = tables.build(small)["table1"]
    for cell in small.cells:
        run, odd = open_run(cell, "stage1", tmp_path), (cell.variant, cell.seed) == ("te", 1)
        run.start(devices.Device(torch.device("cpu"), torch.float32 if odd else torch.bfloat16))
        if not odd:
            run.finish({})
    assert "trained in" not in views.caption(small, table)
    run.finish({})
    assert views.caption(small, table).endswith(
        "; trained in float32 instead of bfloat16: digits-te-s1")


def test_results_in_short_with_and_without_runs(tmp_path):
    """Planted faults: tables of nothing shown, or those of something left out."""
    for name, done in (("none", False), ("all", True)):
        grid = choose("laptop", "sc,te", "0,1", results=str(tmp_path / name))
        if done:
            fake_runs.finish(grid)
        built = tables.build(grid)
        tables.write(grid, built)
        text = report.block(grid)
        assert (f"<summary>{report.TABLE2}</summary>" in text) == done
        assert (f"<summary>{report.STRIDES}</summary>" in text) == done
        assert ("Student's interval" in text) == done
        assert ("has no runs yet" in text) != done
        assert text.count("<details>") == text.count("</details>") == (8 if done else 6)
        view = views.overview(built)
        assert list(view.index) == [("sc",), ("te",)]
        if done:
            usual = views.accuracy(built["table1"], "t2i").loc[("te", "ours"), "mean of Quad1–4"]
            assert view.loc[("te",), "text→image"] == usual
            assert view.loc[("te",), "codes used"] == "20 (0)"
        else:
            assert (view == views.MISSING).all(axis=None)


def test_share_of_the_gain_beyond_the_number_of_codes(monkeypatch):
    rows = [{"seed": s, "measure": "grid", "codes": 20, "baseline": 0.5, "merged": 0.7, "ours": o}
            for s, o in ((0, 0.9), (1, 0.7))]
    monkeypatch.setattr(report.claims, "at_equal_size", lambda found: pd.DataFrame(rows))
    grid = choose("smoke", "sc,te", "0")
    assert "| grid | 0.500 | 0.700 | 0.800 | 33% |" in report.why(grid)[1]
