"""Verdicts on the paper's claims, from numbers given by hand."""

import fake_runs
import pytest

from tevq.grid import choose
from tevq.report import claims, tables
from tevq.report.claims import Claim
from tevq.report.stats import Interval


@pytest.mark.parametrize(
    ("values", "interval", "seen", "verdict", "certainty"),
    [
        ((0.1, 0.101), Interval(0.05, 0.2), 0.95, "inside the paper's interval",
         "2 seeds: interval excludes 0"),
        ((0.3, 0.31), Interval(0.05, 0.2), 0.95, "same direction", "excludes 0"),
        ((0.3, -0.1), None, 0.95, "same direction", "includes 0"),
        ((-0.02,), Interval(-0.1, 0.2), 0.95, "not supported", "one seed: no interval"),
        ((0.1,), None, 0.49, "undecided", "one seed"),
        ((), None, 0.2, "missing", ""),
    ],
)
def test_verdict(values, interval, seen, verdict, certainty):
    claim = Claim("x", "4.1", values, 0.1, interval, {"te t2i": 0.95, "sc t2i": seen})
    assert claim.verdict == verdict and certainty in claim.certainty


def test_a_generator_below_the_mark_is_named():
    claim = Claim("x", "4.1", (0.3,), 0.1, None, {"sc t2i": 0.57, "te t2i": 0.95})
    assert claim.verdict == "same direction"
    assert claim.note == "one seed: no interval; below 0.9 on seen Quad2–4: sc t2i 0.570"
    assert Claim("x", "4.1", (), 0.1, None, {"sc t2i": 0.57}, detail="of nothing").note == ""


def test_verdict_of_a_negative_and_of_a_limited_claim():
    assert Claim("fewer", "5", (-200.0,), -238, None, sign=-1).verdict == "same direction"
    assert Claim("fewer", "5", (3.0,), -238, None, sign=-1).verdict == "not supported"
    assert Claim("little", "5", (0.2,), 0.06, None, limit=0.25).verdict == "same direction"
    assert Claim("little", "5", (0.3,), 0.06, None, limit=0.25).verdict == "not supported"
    both = Claim("little", "5", (0.1, 0.1), 0.06, None, limit=0.25)
    assert both.certainty == "2 seeds: limit 0.250, interval [+0.100, +0.100]"


def test_generators_that_learned_nothing_are_undecided(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "accuracy", lambda *_: 0.2)
    grid = choose("smoke", "sc,te", "0", results=str(tmp_path))
    fake_runs.finish(grid)
    first = claims.primary(tables.build(grid)["table1"])
    assert first.verdict == "undecided" and "sc t2i 0." in first.learning
    assert first.certainty == "one seed: no interval"
