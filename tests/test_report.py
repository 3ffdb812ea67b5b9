"""The pages show the committed tables, and only those."""

import math
import re

import fake_runs
import pandas as pd
import pytest
import torch
import write_pages
from pages import guide, short, study
from pages.text import markdown

from tevq.config import SettingsError
from tevq.grid import choose
from tevq.report import claims, tables, views, why
from tevq.runs import devices
from tevq.runs.run import open_run


@pytest.fixture(scope="module")
def published():
    return study.published_grid()


@pytest.mark.parametrize("page", write_pages.PAGES)
def test_pages_hold_exactly_what_the_tables_say(page, published):
    text = (write_pages.ROOT / page).read_text(encoding="utf-8")
    assert write_pages.updated(page, text, published) == text, "run python results/write_pages.py"


def test_every_line_of_the_front_page_is_one_claim(published):
    """Planted faults: words that fit no claim, so that a finding disappears; that fit two."""
    every = study.all_claims(published)
    for words in short.SHORT.values():
        fitting = [claim.text for claim in every if words in claim.text]
        assert len(fitting) == 1, (words, fitting)
    shown = short.answers(every)
    assert all(f"| {line} |" in shown for line in short.SHORT)


def test_both_answers_come_first(published):
    """Planted faults: another claim; trainings of before the plan as new ones; an early answer."""
    assert short.answer([], pd.DataFrame()) == "**In short.** Nothing has run yet."
    every, frame = study.all_claims(published), why.table(published)
    claim = next(c for c in every if c.text.startswith("text→image: te above sc, mean"))
    before = short.answer(every, frame[~frame.planned])
    assert f"? *Yes*: {claim.estimate:+.3f} [" in before
    assert before.endswith("right digits, 6 seeds. Because its codes are orthogonal, or because "
                           "they are few? New trainings will tell.")
    done, wanted = why.progress(frame)
    said = short.answer(every, frame)
    assert said.startswith(before.removesuffix("New trainings will tell."))
    assert ("so far" in said) == (done < wanted)
    assert f"*{why.verdict(frame).capitalize()}*" in said
    for arm, name in short.ARMS.items():
        found = why.paired(frame, arm, "sc")
        assert (f"{name.replace(':', ',')}, {found.shown}" in said) == bool(found.values)


def test_the_front_page_is_short_and_says_first_what_was_found():
    text = (write_pages.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(text) <= 130
    assert text.index("## What was found") < 20
    assert any(line.startswith("**In short.** Does `te`") for line in text[:10])


def test_links_to_a_part_of_a_page_have_its_heading():
    """That the pages themselves exist is tested with all links, in test_packaging."""
    found = [(page, *link.split("#")) for page in write_pages.PAGES for link in re.findall(
        r"\]\(([^):]*#[^)]+)\)", (write_pages.ROOT / page).read_text(encoding="utf-8"))]
    assert len(found) >= 3
    for page, file, part in found:
        text = (write_pages.ROOT / page).parent.joinpath(file).read_text(encoding="utf-8")
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        assert part in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads], part


@pytest.mark.promise("records")
def test_the_committed_tables_come_from_committed_runs():
    """Rebuilding the tables from the run folders gives the files that are there."""
    grid = study.published_grid()
    for name, table in tables.build(grid).items():
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        assert (grid.folder / "tables" / f"{name}.csv").read_text() == text, name


def test_markdown_and_missing_marks():
    index = pd.MultiIndex.from_tuples([("te", "ours")], names=["variant", "of"])
    table = markdown(pd.DataFrame([["0.9", "–"]], index=index, columns=["Quad1", "mean"]))
    assert table.splitlines() == ["| variant | of | Quad1 | mean |", "| --- | --- | --- | --- |",
                                  "| te | ours | 0.9 | – |"]
    with pytest.raises(SettingsError, match="lacks the lines"):
        write_pages.updated("README.md", "no marks", choose("smoke", "te", "0"))


def test_minutes_of_unlike_machines_are_not_averaged(tmp_path):
    small = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    assert guide._measured(small, "smoke", "stage2") == "–"
    for cell, seconds in zip(small.cells, (60, 180, 600, 120), strict=True):
        dtype = torch.float32 if seconds == 600 else torch.bfloat16
        run = open_run(cell, "stage2", tmp_path)
        run.start(devices.Device(torch.device("cpu"), dtype))
        run.finish({"seconds": seconds})
    assert guide._measured(small, "gpu", "stage2") == "–"
    words = guide._measured(small, "smoke", "stage2").split("; ")
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
        text = study.results(grid)
        assert (f"<summary>{study.TABLE2}</summary>" in text) == done
        assert (f"<summary>{study.STRIDES}</summary>" in text) == done
        assert ("Student's interval" in text) == done
        assert ("has no runs yet" in text) != done
        assert text.count("<details>") == text.count("</details>") == (8 if done else 6)
        assert (short.in_short(grid) == "Nothing has run yet.") != done
        view = study.overview(built)
        assert list(view.index) == ["sc", "te"]
        if done:
            usual = views.accuracy(built["table1"], "t2i").loc[("te", "ours"), "mean of Quad1–4"]
            assert view.loc["te", "text→image"] == usual
            assert view.loc["te", "codes used"] == "20 (0)"
        else:
            assert (view == views.MISSING).all(axis=None)


def test_share_of_the_gain_beyond_the_number_of_codes(monkeypatch):
    rows = [{"seed": s, "measure": "grid", "codes": 20, "baseline": 0.5, "merged": 0.7, "ours": o}
            for s, o in ((0, 0.9), (1, 0.7))]
    monkeypatch.setattr(tables, "at_equal_size", lambda found: pd.DataFrame(rows))
    found = study.coarser(choose("smoke", "sc,te", "0"))[1]
    assert "| grid | 0.500 | 0.700 | 0.800 | 33% |" in found


def test_answers_of_the_front_page():
    """Planted faults: a small difference shown as a large one; the sign of the mean as answer."""
    words, found = next(iter(short.SHORT.values())), []
    for values in ((0.2, 0.21, 0.22), (-0.2, -0.21), (0.005, 0.006, 0.0055), (0.2, -0.2)):
        shown = short.answers([claims.Claim(words, "4.1", values, 0.1)])
        found.append(shown.splitlines()[2].split(" | ")[1])
    assert found == ["yes", "no, worse", "yes, but by less than 0.03", "undecided"]


def test_the_front_page_shows_larger_presets_beside_ours():
    """Planted fault: the numbers of one preset in the column of another."""
    words = next(iter(short.SHORT.values()))
    ours, other = (claims.Claim(words, "4.1", values, 0.1) for values in ((0.2, 0.21), (0.5, 0.51)))
    shown = short.answers([ours], {"gpu": [other], "plain": []}).splitlines()
    head, row = (line.strip("| ").split(" | ") for line in (shown[0], shown[2]))
    cells = dict(zip(head, row, strict=True))
    assert cells["preset `gpu`"].startswith("+0.505 [") and cells["preset `plain`"] == "–"
    assert cells["ours [95 % interval], seeds"].startswith("+0.205 [")
    assert cells["paper"] == "+0.100"


def test_a_gain_that_shrinks(tmp_path):
    """Logs by hand: te leads by 0.4 in the first half and by 0.1 in the second."""
    grid = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    assert study.gain_over_training(grid) is None
    for cell in tables.cells(grid):
        if (cell.kind, cell.size, cell.settings.stage1.stride) != ("evaluation", "full", 4):
            continue
        run = cell.run("stage2")
        run.folder.mkdir(parents=True)
        for step in (1, 2, 3, 4):
            lead = (0.4 if step <= 2 else 0.1) * (cell.settings.variant == "te")
            for split, offset in (("val", 0.0), ("val_seen", 0.3)):
                run.log(step, probe=split, task="t2i", sequences=10 * step, **{
                    case: 0.2 + lead + offset + 0.01 * step for case in tables.CASES})
            run.log(step, loss=1.0)
    rows, claim = study.gain_over_training(grid)
    assert rows.index.tolist() == [10, 20, 30, 40]
    assert rows.gain.tolist() == pytest.approx([0.4, 0.4, 0.1, 0.1])
    assert rows.sc.tolist() == pytest.approx([0.21, 0.22, 0.23, 0.24])
    odds = [math.log(y / (1 - y)) for y in (0.21, 0.22, 0.23, 0.24, 0.61, 0.62, 0.33, 0.34)]
    early, late = (odds[4 + k] + odds[5 + k] - odds[k] - odds[k + 1] for k in (0, 2))
    assert claim.values == pytest.approx([(early - late) / 2] * 2)
    assert claim.detail.startswith(f"{early / 2:+.3f} ")
    assert claim.detail.endswith("as differences of shares +0.400 and +0.100")
