"""What `--dry-run` and the engine tell about time and memory, before and while notebooks run."""

import json
from pathlib import Path

import pytest
import torch

from tevq import config, forecast, pipeline
from tevq.__main__ import main
from tevq.execute import Outcome
from tevq.forecast import Cost, left
from tevq.grid import choose
from tevq.runs.run import open_run

COPIES = ("01_dataset", "02_aliasing", "03_stage1-sc-s0", "04_stage2-sc-s0", "05_evaluation",
          "06_discussion", "08_why")


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Records of one small study, the only ones there are: every notebook took 60 s."""
    monkeypatch.setattr(config, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "results/smoke/notebooks"
    folder.mkdir(parents=True)
    for label in COPIES:
        told = {"seconds": 60, "memory_mb": 1500}
        (folder / f"{label}.ipynb").write_text(json.dumps({"metadata": {"tevq": told}}))
    settings = choose("smoke", "sc", "0").settings
    for kind, seconds in {"classifier": 10, "stage1": 600, "quantizer": 5, "stage2": 900,
                          "evaluation": 20, "measures": 70}.items():
        run = open_run(settings, kind, tmp_path / "results")
        run.folder.mkdir(parents=True)
        machine = {"device": "cpu", "device_name": "Slow Processor"}
        (run.folder / "config.json").write_text(json.dumps({"machine": machine}))
        steps = {"steps": getattr(settings, kind).steps} if kind.startswith("stage") else {}
        weights = None if kind in ("quantizer", "measures") else {"w": torch.ones(1)}
        run.finish({"seconds": seconds} | steps, weights)
    return tmp_path / "results"


def costs(results: Path, *words: str) -> dict[str, Cost]:
    return forecast.expected(pipeline.plan(choose("smoke", *words, results=str(results))))


def test_trainings_that_are_at_hand_take_no_time(results):
    assert {label: cost.seconds for label, cost in costs(results, "sc", "0", "1").items()} == {
        label: 60 for label in COPIES}


def test_trainings_that_are_lacking_are_counted(results):
    """Planted faults: the time of a page that found everything trained; steps not looked at;
    measures left out."""
    found = costs(results, "te", "0", "1")
    assert found["03_stage1-te-s0"] == Cost(605, 1500, "Slow Processor")
    assert found["04_stage2-te-s0"].seconds == 900
    assert found["05_evaluation"] == Cost(90, 1500, "Slow Processor")
    steps = choose("smoke", "sc").settings.stage2.steps
    half = costs(results, "te", "0", "1", f"stage2.steps={steps // 2}")
    assert half["04_stage2-te-s0"].seconds == pytest.approx(450, rel=0.05)


def test_dry_run_tells_or_says_that_it_cannot(results, tmp_path, capsys):
    words = ["--dry-run", "--variants", "te", "--seeds", "0", "--tables", "1"]
    assert main([*words, "--results", str(results)]) == 0
    said = capsys.readouterr().out
    assert "03_stage1-te-s0" in said and "about 10.1 min, 1.5 GB (Slow Processor)" in said
    assert "about 30.6 min for 7 of 7 notebooks" in said
    assert main([*words, "--results", str(tmp_path / "empty")]) == 0
    said = capsys.readouterr().out
    assert said.count("no record of its time") == 7 and "about" not in said


def test_without_records_the_whole_preset_is_told(results, tmp_path, capsys):
    """Planted faults: rows of other presets; told although every notebook has a record."""
    config.PUBLISHED.mkdir()
    (config.PUBLISHED / "times.csv").write_text(
        "preset,device_name,cores,minutes\nsmoke,Slow Processor,2.0,12.5\ngpu,Card,16.0,7\n")
    words = ["--dry-run", "--variants", "te", "--seeds", "0", "--tables", "1", "--results"]
    assert main([*words, str(tmp_path / "empty")]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\nall of preset smoke took 12.5 min on 2 cores of Slow Processor "
                         "(results/times.csv)\n") and "Card" not in said
    assert main([*words, str(results)]) == 0
    assert "all of preset" not in capsys.readouterr().out


def test_the_rest_is_told_by_records_and_by_how_they_held():
    """Planted faults: the pace of this machine not looked at; a guess without a record."""
    known = {name: Cost(100, 0, "here") for name in "abcd"}
    assert left(known, {}, 2) == ", about 3.3 min left"
    slow = {"a": Outcome("done", 200.0), "b": Outcome("failed", 1.0)}
    assert left(known, slow, 2) == ", about 3.3 min left"
    assert left(known, slow, 1) == ", about 6.7 min left"
    assert left(known, slow, 0) == ", about 6.7 min left"  # all workers of a cluster are gone
    assert left(known, dict.fromkeys(known, Outcome("done", 1.0)), 1) == ""
    assert left(known | {"e": None}, slow, 1) == ""
    assert left(known | {"e": None}, {"e": Outcome("done", 5.0)}, 4) == ", about 1.7 min left"
