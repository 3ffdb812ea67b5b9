"""Benchmarks: turns, ratios, counts, memory; peers that are absent are named."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from tevq import presets
from tevq.bench import jobs, timing
from tevq.bench.timing import OURS, Benchmark, Contender
from tevq.runs.devices import Device

CPU = Device(torch.device("cpu"), torch.float32)
SMOKE = presets.load("smoke", "sc")


class Clock:
    """A clock that only moves when somebody works."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def worker(self, name: str, seconds: float):
        def work() -> None:
            self.now += seconds
            self.calls.append(name)
        return work


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "timer", lambda: made.now)
    return made


def two(clock: Clock, **more) -> Benchmark:
    """Ours takes 0.1 s for 2 images; theirs 0.3 s for 3."""
    return Benchmark("job", "images", [
        Contender(OURS, clock.worker(OURS, 0.1), 2, 10, "matmul"),
        Contender("theirs", clock.worker("theirs", 0.3), 3)], **more)


def test_contenders_take_turns_of_a_least_length(clock):
    rows = timing.turns(two(clock), repeats=2, shortest=0.25)
    # a first call and a timed one each; then turns of three calls against one
    turn = [OURS] * 3 + ["theirs"]
    assert clock.calls == [OURS, OURS, "theirs", "theirs", *turn, *turn]
    assert [(r["contender"], r["turn"], r["calls"], r["units"]) for r in rows] == [
        (OURS, 0, 3, 6), ("theirs", 0, 1, 3), (OURS, 1, 3, 6), ("theirs", 1, 1, 3)]
    assert [r["seconds"] for r in rows] == pytest.approx([0.3, 0.3, 0.3, 0.3])


def test_summary_is_rate_ratio_bar_and_share(clock):
    work = two(clock, targets={"theirs": 3.0, "absent": 2.0}, missing={"absent": "not there"},
               goal=("rate", 19.0))
    rows = timing.turns(work, repeats=3, shortest=0.0)
    facts = {OURS: {"flop": 4e9, "peak_mb": 7.0}}
    ours, theirs, absent = timing.summary(work, rows, {"matmul": 80e9}, facts)
    assert ours["rate"] == pytest.approx(20) and theirs["rate"] == pytest.approx(10)
    assert (ours["gflop_per_unit"], ours["peak_mb"]) == (2.0, 7.0)
    assert ours["share_of_limit"] == pytest.approx(0.5)  # 20 images x 2 GFLOP of 80
    assert (ours["measure"], ours["met"]) == ("rate", True)
    assert theirs["ratio"] == pytest.approx(2) and theirs["met"] is False
    assert absent["missing"] == "not there" and absent["target"] == 2.0 and absent["rate"] is None
    assert list(ours) == list(theirs) == list(absent) == list(timing.COLUMNS)


def test_ratios_are_taken_turn_by_turn():
    work = Benchmark("job", "x", [Contender(OURS, int, 1), Contender("theirs", int, 1)])
    # a slow moment hits both in turn 1: every ratio is 2 all the same
    rows = [{"contender": name, "units": 1, "seconds": seconds * slow}
            for slow in (1, 5, 1) for name, seconds in ((OURS, 1.0), ("theirs", 2.0))]
    row = timing.summary(work, rows, {}, {})[1]
    assert row["ratio_low"] == row["ratio"] == row["ratio_high"] == 2


def test_operations_and_memory_of_a_matrix_product():
    a, b = torch.randn(64, 128), torch.randn(128, 256)

    def call() -> None:
        c = a @ b  # 64 KiB, and while d is there 128
        d = c + 1
        del c, d

    found = timing.examine(Contender("x", call, 1))
    assert found["flop"] == 2 * 64 * 128 * 256
    assert found["peak_mb"] == pytest.approx(2 / 16, rel=1e-3)


@pytest.fixture
def no_peers(monkeypatch):
    """As if none of the peers were installed."""
    for name in ("taming", "dalle_pytorch", "transformers"):
        for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)


TWIN = (64, 2, 2)


def small_jobs() -> list[Benchmark]:
    """Every job at the least size."""
    targets = {jobs.GPT2: 2.0, jobs.DALLE: 3.0}
    return [jobs.stage1_step("a", SMOKE, CPU, 2, False, (2.0, 1.0)),
            jobs.stage1_step("b", SMOKE, CPU, 2, True, (2.0, 1.0)),
            jobs.stage2_step("d", SMOKE, CPU, 2, TWIN, targets),
            jobs.sampling("e", SMOKE, CPU, 1, TWIN, targets)]


def test_absent_peers_are_named_and_the_rest_runs(no_peers):
    for made in small_jobs():
        assert [one.name for one in made.contenders] == [OURS]
        made.contenders[0].call()
        assert set(made.missing) == set(made.targets)  # targets of absent peers stay visible
        assert any("ModuleNotFoundError" in why and "[bench]" in why
                   for why in made.missing.values())
        assert all("\n" not in why for why in made.missing.values())


@pytest.mark.parametrize("adversarial", [False, True])
def test_our_steps_move_every_trained_network(adversarial):
    start = 0 if adversarial else 10**6
    s = dataclasses.replace(SMOKE.stage1, disc_start=start)
    step, model = jobs.learner_step(s, CPU, 2, lambda x, y: (x - y).square().mean())
    before = [p.clone() for p in model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
