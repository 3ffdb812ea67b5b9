"""Benchmarks: turns, ratios, counts, memory; peers that are absent are named."""

import dataclasses
import json
import sys

import pandas as pd
import pytest
import torch
from fakes import functions_of
from pages import speed

from tevq import presets
from tevq.bench import peers, timing
from tevq.bench.timing import GPT2, OURS, Benchmark, Contender
from tevq.grid import choose
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


@pytest.fixture(scope="module")
def jobs() -> dict:
    """What notebook 07 imports and the functions it defines, on a CPU."""
    return functions_of("07_benchmarks", where=CPU)


def test_operations_and_memory_of_a_matrix_product(jobs):
    a, b = torch.randn(64, 128), torch.randn(128, 256)

    def call() -> None:
        c = a @ b  # 64 KiB, and while d is there 128
        d = c + 1
        del c, d

    found = jobs["examine"](Contender("x", call, 1))
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


def small(jobs: dict) -> list[Benchmark]:
    """Every job at the least size."""
    targets = {GPT2: 2.0, peers.DALLE: 3.0}
    return [jobs["stage1_step"]("a", SMOKE, 2, False, (2.0, 1.0)),
            jobs["stage1_step"]("b", SMOKE, 2, True, (2.0, 1.0)),
            jobs["stage2_step"]("d", SMOKE, 2, TWIN, targets),
            jobs["sampling"]("e", SMOKE, 1, TWIN, targets)]


def test_absent_peers_are_named_and_the_rest_runs(jobs, no_peers):
    for made in small(jobs):
        assert [one.name for one in made.contenders] == [OURS]
        made.contenders[0].call()
        assert set(made.missing) == set(made.targets)  # targets of absent peers stay visible
        assert any("ModuleNotFoundError" in why and "peers.txt" in why
                   for why in made.missing.values())
        assert all("\n" not in why for why in made.missing.values())


@pytest.mark.parametrize("adversarial", [False, True])
def test_our_steps_move_every_trained_network(jobs, adversarial):
    start = 0 if adversarial else 10**6
    s = dataclasses.replace(SMOKE.stage1, disc_start=start)
    step, model = jobs["learner_step"](s, 2, lambda x, y: (x - y).square().mean())
    before = [p.clone() for p in model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


COLUMNS = ("work,unit,contender,rate,ratio,ratio_low,ratio_high,measure,target,met,peak_mb,"
           "share_of_limit,missing")
SUMMARY = f"""{COLUMNS}
"sampling, laptop",tokens,ours,9,,,,,,,30,.1,
"sampling, laptop",tokens,transformers GPT-2,3,3,2,4,ratio,4,False,20,.2,
"encoding, laptop",images,ours,7,,,,share_of_limit,.5,True,1,.75,
building,scenes,ours,2e4,,,,rate,15000,True,0,,
quantizer,vectors,ours,5,,,,,,,1,,
quantizer,vectors,absent,,,,,,3,,,,not there
"""


@pytest.fixture
def folder(tmp_path):
    """Results as an earlier notebook 07 left them: without busy.csv, here also tokens.csv."""
    turns = pd.DataFrame({"work": "a", "contender": list("xyxyx"), "turn": [0, 0, 1, 1, 2]})
    turns.to_csv(tmp_path / "turns.csv", index=False)
    (tmp_path / "summary.csv").write_text(SUMMARY, encoding="utf-8")
    (tmp_path / "machine.json").write_text(json.dumps({
        "device_name": "Abacus", "cores": 2, "precision": "float32", "commit": "c" * 40,
        "versions": {"torch": "2"}, "peers": {"transformers": "5"}, "repeats": 5}))
    return tmp_path


def test_bounds_are_taken_from_the_files_that_are_there(folder):
    found = timing.bounds(folder)
    assert found.against.tolist() == [GPT2] and found.value.tolist() == [1.5] and found.met.all()
    pd.DataFrame({"token": range(1, 9), "seconds": [1, 3, 9, 9, 9, 9, 2, 6]}).to_csv(
        folder / "tokens.csv")
    pd.DataFrame({"alone": [1, 1, 2], "beside": [3, 2, 6]}).to_csv(folder / "busy.csv")
    found = timing.bounds(folder).set_index("against")
    assert found.value.to_dict() == {GPT2: 1.5, "first quarter": 2.0, "alone": 3.0}
    assert found.met.tolist() == [True, False, False]
    assert (found.low["alone"], found.high["alone"]) == (2, 3)


def test_bounds_without_a_peer_to_compare_with(folder):
    table = pd.read_csv(folder / "summary.csv")
    table[table.contender == OURS].to_csv(folder / "summary.csv")
    assert timing.bounds(folder).empty


def test_the_page_says_which_targets_hold(folder):
    page = speed._table(folder)
    assert page.startswith("**Abacus**: 3 of 4 targets hold; not run: 1.")
    for line in ("| sampling, laptop | transformers GPT-2 | 3.00 (2.00–4.00) | 4 | no | 10%, 20% |",
                 "| encoding, laptop | the limit | 75% | 50% | yes | 75% |",
                 "| building | – | 20,000 scenes a second | 15,000 | yes | – |",
                 "| quantizer | absent | not run: not there | 3 | not run | –, – |",
                 "| sampling, laptop: peak memory | transformers GPT-2 | 1.50 | at most 2 | yes |"):
        assert line in page
    assert "medians of 2–3 turns" in page


def a_run(folder, kind: str, seed: int, threads: int, minutes: float, on="Intel Xeon", **stage2):
    tree = {"variant": "sc", "seed": seed, "data": {"source": "mnist"}, "stage1": {"stride": 4}}
    tree |= {} if kind == "stage1" else {"stage2": {"fraction": 1.0} | stage2}
    place = folder / kind / f"mnist-sc-s{seed}-{len(stage2)}"
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"seconds": 60 * minutes}), encoding="utf-8")
    (place / "config.json").write_text(json.dumps({"settings": tree, "machine": {
        "device_name": on, "device": "cpu", "precision": "bfloat16", "threads": threads}}))


def test_cells_are_whole_and_of_one_processor(tmp_path, monkeypatch):
    """Planted faults: parts of two machines; a cell without its evaluation; another Stage 2."""
    runs = tmp_path / "results/laptop/runs"
    for seed, threads in ((0, 1), (1, 2), (2, 2)):
        a_run(runs, "stage1", seed, threads, 5)
        a_run(runs, "stage2", seed, threads, 17.5 * 2 / threads)
    a_run(runs, "stage2", 0, 1, 99, steps=3)
    for seed, on in ((0, "Intel Xeon"), (1, "Intel Xeon")):
        a_run(runs, "evaluation", seed, 1, 2, on)
    a_run(runs, "stage1", 3, 2, 5)
    a_run(runs, "stage2", 3, 2, 5, on="Abacus")
    a_run(runs, "evaluation", 3, 2, 5)
    found = speed._cells(runs).set_index("way")
    assert found.stage2.to_dict() == {speed.BESIDE: 35, speed.ALONE: 17.5}
    monkeypatch.setattr(speed, "ROOT", tmp_path)
    page = speed.cells(choose("laptop"))
    assert "two threads | 4 | 1 | 5 | 18 | 2 | 24 | at most 25 | yes |" in page
    assert "side by side | 4 | 1 | 5 | 35 | 2 | 42 | – | – |" in page
    assert "Not measured yet" not in page
