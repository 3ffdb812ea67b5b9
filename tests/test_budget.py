"""Work in pieces: trainings and the runner stop before a deadline, and lose nothing."""

import time
from collections import Counter

import pytest
from fakes import write_all, write_notebook
from small import tiny
from test_training import same_tree

from tevq import cluster, execute, pipeline
from tevq.__main__ import main
from tevq.config import SettingsError
from tevq.grid import choose
from tevq.runs import budget
from tevq.runs.run import open_run
from tevq.train import classifier, loop, stage1, stage2


class Clock:
    """Stands for the module `time`: a second passes whenever somebody looks."""

    def __init__(self):
        self.now = 1000.0

    def time(self) -> float:
        return 1000.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


def test_a_deadline_keeps_the_longest_step_and_two_saves_free(monkeypatch):
    """Planted faults: the step, or one of the saves, not counted."""
    monkeypatch.setattr(budget, "time", Clock())
    monkeypatch.setenv(budget.VARIABLE, "1010")
    deadline = budget.Deadline()
    assert deadline.needs_a_save
    deadline.saved(2.5)
    assert not deadline.needs_a_save
    # ten seconds from second 1001: at 1005, one step and two saves would end at 1011
    assert [deadline.near() for _ in range(4)] == [False, False, False, True]


def test_a_deadline_that_is_no_time_is_refused(monkeypatch):
    """Planted fault: the text passed on to float."""
    monkeypatch.setenv(budget.VARIABLE, "soon")
    with pytest.raises(SettingsError, match="TEVQ_DEADLINE = 'soon' is not a time"):
        budget.Deadline()


def in_pieces(train, settings, results, monkeypatch, steps_each: int) -> int:
    """Trains with a deadline after every few steps; how often the time was up."""
    stops = 0
    while True:
        clock = Clock()
        monkeypatch.setattr(budget, "time", clock)
        monkeypatch.setenv(budget.VARIABLE, str(clock.now + steps_each + 2))
        try:
            train(settings, results)
            return stops
        except budget.OutOfTimeError as error:
            assert "run again to go on" in str(error)
            stops += 1
            assert stops < 20  # every piece gets further


def test_both_stages_in_pieces_are_bitwise_the_uninterrupted_ones(tmp_path, monkeypatch):
    """Planted faults: no save before the stop; the start of the codebook not saved."""
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 400)
    monkeypatch.setattr(budget.Deadline, "saved",  # always as long, whatever the disk does
                        lambda self, seconds: setattr(self, "longest_save", 1e-9))
    calls = []
    for trainer, name in ((stage1.Trainer, "init_codebook"), (stage1.Learner, "generator_step"),
                          (stage2.Trainer, "step")):
        original = getattr(trainer, name)
        monkeypatch.setattr(trainer, name, lambda *words, name=name, original=original: (
            calls.append(name), original(*words))[1])
    s = tiny()
    classifier.train(s, tmp_path / "pieces")
    for kind, train in (("stage1", stage1.train), ("stage2", stage2.train)):
        whole = train(s, tmp_path / "whole")
        monkeypatch.setenv(budget.VARIABLE, "1")
        with pytest.raises(budget.OutOfTimeError, match="step 0 of 6"):
            train(s, tmp_path / "pieces")
        assert in_pieces(train, s, tmp_path / "pieces", monkeypatch, 2) >= 2
        again = open_run(s, kind, tmp_path / "pieces")
        assert same_tree(again.weights(), whole.weights())
        assert again.metrics() == whole.metrics()
        monkeypatch.delenv(budget.VARIABLE)
    # nothing was computed twice in the pieces
    assert Counter(calls) == {"init_codebook": 2, "generator_step": 12, "step": 12}


def test_time_up_before_the_first_step_starts_nothing(tmp_path, monkeypatch):
    """Planted fault: the loop asks only after a step."""
    monkeypatch.setenv(budget.VARIABLE, "1")
    steps = loop.Loop(open_run(tiny(), "stage2", tmp_path), {}, 5)
    with pytest.raises(budget.OutOfTimeError, match="step 0 of 5"):
        next(iter(steps))


@pytest.fixture
def launches(monkeypatch):
    """Executions are pretended: outcomes by label (default: done), and what was started."""
    outcomes, order = {}, []

    def launch(job, stopped) -> execute.Outcome:
        order.append(job.label)
        status = outcomes.get(job.label, "done")
        until = time.monotonic() + 30
        while status == "waits" and not stopped():  # trains nothing and does not look at the clock
            assert time.monotonic() < until
            time.sleep(0.05)
        return execute.Outcome("stopped" if status == "waits" else status, 0.1)

    monkeypatch.setattr(execute, "launch", launch)
    return outcomes, order


def planned(tmp_path, variants="sc,te", notebooks=""):
    grid = choose(variants=variants, tables="1", results=str(tmp_path / "results"))
    folder = tmp_path / "notebooks"
    return pipeline.plan(grid, notebooks, folder=folder if folder.exists() else write_all(folder))


def test_nothing_starts_late_and_the_command_goes_on(tmp_path, monkeypatch, launches, capsys):
    """Planted faults: nodes started after the deadline; nobody told to stop."""
    outcomes, order = launches
    outcomes["03_stage1-te-s0"] = "waits"
    monkeypatch.setattr(cluster, "LATE_SECONDS", 1)
    until = time.monotonic() + cluster.CLOSING_SECONDS + 4
    assert pipeline.run(planned(tmp_path), 2, until) == budget.EXIT_CODE
    assert time.monotonic() < until
    assert set(order) == {"01_dataset", "03_stage1-sc-s0", "03_stage1-te-s0", "04_stage2-sc-s0"}
    said = capsys.readouterr().out
    assert "3 done, 0 unchanged, 1 stopped, 5 not started" in said
    assert "stopped before the end; the same command goes on" in said
    order.clear()
    assert pipeline.run(planned(tmp_path, "te"), 2, time.monotonic()) == budget.EXIT_CODE
    assert not order and "not started" in capsys.readouterr().out


def test_a_failure_counts_more_than_the_budget(tmp_path, launches):
    """Planted fault: exit code 75, with which a script would go on for ever."""
    launches[0].update({"03_stage1-sc-s0": "failed", "03_stage1-te-s0": "stopped"})
    assert pipeline.run(planned(tmp_path, notebooks="01,03"), 1) == 1


def test_a_notebook_that_ran_out_of_time_is_stopped_not_failed(tmp_path, capsys, monkeypatch):
    """Planted faults: exit code 1 of the child; the deadline not handed to the kernel."""
    folder = write_all(tmp_path / "notebooks")
    write_notebook(folder, "01_dataset", "import time\nfrom tevq.runs import budget\n"
                   "left = budget.Deadline().at - time.monotonic()\n"
                   "raise budget.OutOfTimeError(f'{left:.0f} s left, the same command goes on')")
    words = ["--notebooks", "01", "--results", str(tmp_path / "results"), "--budget", "1e6"]
    assert main(words, folder) == budget.EXIT_CODE
    said = capsys.readouterr().out
    assert "stopped 01_dataset after" in said and "s left, the same command goes on" in said
    assert "1 stopped" in said and "failed" not in said
    left = int(said.split("OutOfTimeError: ")[1].split(" s left")[0])
    assert 0 < left < 1e6 - cluster.CLOSING_SECONDS


def test_what_follows_a_stopped_notebook_is_not_called_a_failure(tmp_path, launches, capsys):
    """Planted fault: left out, as after a failure, although the same command goes on."""
    launches[0]["03_stage1-te-s0"] = "stopped"
    assert pipeline.run(planned(tmp_path, "te"), 1) == budget.EXIT_CODE
    said = capsys.readouterr().out
    assert "1 done, 0 unchanged, 1 stopped, 5 not started" in said
    assert "left out" not in said


@pytest.mark.parametrize("value", ["59", "0", "-5", "nan"])
def test_a_budget_too_small_to_start_is_refused(value, tmp_path, capsys):
    """Planted fault: any number accepted; nothing would ever get done."""
    words = ["--budget", value, "--results", str(tmp_path)]
    assert main(words, write_all(tmp_path / "notebooks")) == 2
    assert "use at least 60 seconds" in capsys.readouterr().err
