"""Benchmarks: turns, ratios, counts, memory; peers that are absent are named."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from tevq import presets
from tevq.bench import jobs as bench_works
from tevq.bench import limits as bench_limits
from tevq.bench import peers as bench_peers
from tevq.bench import stage1 as bench_stage1
from tevq.bench import stage2 as bench_stage2
from tevq.bench import timing as bench
from tevq.bench.timing import OURS, Contender, Work
from tevq.data import scenes
from tevq.grid import choose
from tevq.report import plots_bench
from tevq.runs import devices
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
    monkeypatch.setattr(bench.time, "perf_counter", lambda: made.now)
    return made


def two(clock: Clock, **more) -> Work:
    """Ours takes 0.1 s for 2 images; theirs 0.3 s for 3."""
    return Work("job", "images", [
        Contender(OURS, clock.worker(OURS, 0.1), 2, 10, "matmul"),
        Contender("theirs", clock.worker("theirs", 0.3), 3)], **more)


def test_contenders_take_turns_of_a_least_length(clock):
    rows = bench.race(two(clock), repeats=2, shortest=0.25)
    # a first call and a timed one each; then turns of three calls against one
    turn = [OURS] * 3 + ["theirs"]
    assert clock.calls == [OURS, OURS, "theirs", "theirs", *turn, *turn]
    assert [(r["contender"], r["turn"], r["calls"], r["units"]) for r in rows] == [
        (OURS, 0, 3, 6), ("theirs", 0, 1, 3), (OURS, 1, 3, 6), ("theirs", 1, 1, 3)]
    assert [r["seconds"] for r in rows] == pytest.approx([0.3, 0.3, 0.3, 0.3])


def test_summary_is_rate_ratio_bar_and_share(clock):
    work = two(clock, bars={"theirs": 3.0, "absent": 2.0}, missing={"absent": "not there"},
               rate=19.0)
    rows = bench.race(work, repeats=3, shortest=0.0)
    facts = {OURS: {"flop": 4e9, "peak_mb": 7.0}}
    ours, theirs, absent = bench.summary(work, rows, {"matmul": 80e9}, facts)
    assert ours["rate"] == pytest.approx(20) and theirs["rate"] == pytest.approx(10)
    assert (ours["gflop_per_unit"], ours["peak_mb"]) == (2.0, 7.0)
    assert ours["share_of_limit"] == pytest.approx(0.5)  # 20 images x 2 GFLOP of 80
    assert (ours["measure"], ours["met"]) == ("rate", True)
    assert theirs["ratio"] == pytest.approx(2) and theirs["met"] is False
    assert absent["missing"] == "not there" and absent["bar"] == 2.0 and absent["rate"] is None
    assert list(ours) == list(theirs) == list(absent) == list(bench.COLUMNS)


def test_ratios_are_taken_turn_by_turn():
    work = Work("job", "x", [Contender(OURS, int, 1), Contender("theirs", int, 1)])
    # a slow moment hits both in turn 1: every ratio is 2 all the same
    rows = [{"contender": name, "units": 1, "seconds": seconds * slow}
            for slow in (1, 5, 1) for name, seconds in ((OURS, 1.0), ("theirs", 2.0))]
    row = bench.summary(work, rows, {}, {})[1]
    assert row["ratio_low"] == row["ratio"] == row["ratio_high"] == 2


def test_operations_and_memory_of_a_matrix_product():
    a, b = torch.randn(64, 128), torch.randn(128, 256)

    def call() -> None:
        c = a @ b  # 64 KiB, and while d is there 128
        d = c + 1
        del c, d

    found = bench.examine(Contender("x", call, 1))
    assert found["flop"] == 2 * 64 * 128 * 256
    assert found["peak_mb"] == pytest.approx(2 / 16, rel=1e-3)


def test_limits_are_rates():
    rows = bench_limits.measure(CPU, repeats=1, size=64, channels=4, batch=1)
    assert [row["limit"] for row in rows] == ["matmul-float32", "conv-float32",
                                              "conv-float32-default", "copy"]
    assert all(row["rate"] > 0 for row in rows)


def test_columns_of_all_rows_are_written(tmp_path):
    bench.write_csv(tmp_path / "a/b.csv", [{"x": 1.23456789}, {"y": "z"}])
    with (tmp_path / "a/b.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"x": "1.23457", "y": ""}, {"x": "", "y": "z"}]


@pytest.fixture
def no_peers(monkeypatch):
    """As if none of the peers were installed."""
    for name in ("taming", "vector_quantize_pytorch", "dalle_pytorch", "transformers"):
        for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_absent_peers_are_named_and_the_rest_runs(no_peers):
    twin = bench_stage2.Twin(64, 2, 2)
    works = [bench_stage1.reconstruction_step("a", SMOKE.stage1, CPU, 2, (2.0, 1.0)),
             bench_stage1.quantizer("b", CPU, 2, 8, 8),
             bench_stage2.training_step("c", SMOKE.stage2, 12, CPU, 2, twin,
                                        {bench_stage2.GPT2: 2.0, bench_stage2.DALLE: 3.0})]
    for work in works:
        assert [one.name for one in work.contenders] == [OURS]
        work.contenders[0].call()
        assert any("does not import" in why and "[bench]" in why for why in work.missing.values())
        assert all("\n" not in why for why in work.missing.values())
    # bars of absent peers stay visible
    assert works[0].bars[bench_stage1.FAST] == 1.0


def test_stand_ins_answer_any_import(monkeypatch):
    monkeypatch.delitem(sys.modules, "tevq_absent", raising=False)
    bench_peers.without("tevq_absent")
    from tevq_absent import anything

    assert isinstance(anything, type)
    real = types.ModuleType("tevq_real")
    monkeypatch.setitem(sys.modules, "tevq_real", real)
    bench_peers.without("tevq_real")
    assert sys.modules["tevq_real"] is real  # what is there is not replaced
    monkeypatch.delitem(sys.modules, "tevq_absent")


@pytest.mark.parametrize("adversarial", [False, True])
def test_our_steps_move_every_trained_network(adversarial):
    start = 0 if adversarial else 10**6
    s = dataclasses.replace(SMOKE.stage1, disc_start=start)
    step, model = bench_stage1.learner_step(s, CPU, 2, lambda x, y: (x - y).square().mean())
    before = [p.clone() for p in model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_sampling_times_every_token_after_the_first():
    seconds = bench_stage2.seconds_per_token(SMOKE.stage2, 12, CPU, 1)
    assert len(seconds) == bench_stage2.N - 1 and (seconds > 0).all()


def test_tiny_plan_from_end_to_end(tmp_path, monkeypatch, no_peers):
    """All files, readable, with the figures they are for; the committed ones have more rows."""
    monkeypatch.setattr(bench_works.Plan, "precision", lambda self: [
        {"stage": "stage1", "precision": "float32", "seed": 0, "loss": 1.0}])
    monkeypatch.setattr(bench, "examine", lambda one: {"flop": 1.0, "peak_mb": 1.0})
    monkeypatch.setattr(bench, "shares", lambda work, one: [{"work": work, "rank": 1}])
    said: list[str] = []
    bench_works.run(tmp_path, bench_works.Plan(tiny=True), CPU, said.append)
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(bench_works.SECTIONS)
    import pandas as pd

    summary = pd.read_csv(tmp_path / "summary.csv")
    turns = pd.read_csv(tmp_path / "turns.csv")
    assert list(summary) == list(bench.COLUMNS)
    assert set(turns.work) == set(summary.work) and len(said) == summary.work.nunique() + 3
    assert (turns.groupby(["work", "contender"]).size() == 2).all()
    figures = [plots_bench.ratios(summary), plots_bench.growth(
        pd.read_csv(tmp_path / "growth.csv"), pd.read_csv(tmp_path / "tokens.csv"))]
    assert [len(figure.axes) for figure in figures] == [2, 3]


def test_rehearsals_do_not_touch_real_numbers(tmp_path):
    smoke, laptop = (choose(name, results=str(tmp_path)) for name in ("smoke", "laptop"))
    assert bench_works.folder_of(smoke) == tmp_path / "smoke/benchmarks"
    assert bench_works.folder_of(laptop) == tmp_path / "benchmarks"
    assert devices.detect("float32").dtype is torch.float32


def test_short_trainings_agree_in_both_precisions():
    from tevq.bench import precision as bench_precision

    rows = bench_precision.compare(2, (0,))
    assert {(r["stage"], r["precision"]) for r in rows} == {
        (stage, kind) for stage in ("stage1", "stage2") for kind in ("float32", "bfloat16")}
    losses = {(r["stage"], r["precision"]): r["loss"] for r in rows}
    for stage in ("stage1", "stage2"):
        gap = abs(losses[stage, "float32"] - losses[stage, "bfloat16"])
        assert 0 < gap < 0.02 * losses[stage, "float32"]  # near, and not the same computation
    assert np.isfinite(list(losses.values())).all() and scenes.IMAGE_SIZE == 64
