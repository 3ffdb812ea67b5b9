"""One training on two processes (gloo on the CPU): the same numbers, one folder, and a kill."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import TINY, same_tree, tiny

from tevq import execute, graph, stage1, stage2, train
from tevq.runs import open_run

CHILD = str(Path(__file__).parent / "parallel_child.py")
# Sums in another order differ in the last bits of float32, and Adam's first steps divide gradients
# by their own size, which makes a difference of 1e-7 in a gradient near zero one of up to lr = 1e-3
LOSS_TOLERANCE = 1e-4  # relative, on every logged number
WEIGHT_TOLERANCE = 2e-4  # mean absolute difference, in units of the weights' own mean size


def words(stage: str, results: Path, **overrides) -> list[str]:
    """The command line of a tiny training, after the program's name."""
    sets = [f"--set={name}={value}" for name, value in (TINY | overrides).items()]
    return [stage, "--results", str(results), *sets]


def two(stage: str, results: Path) -> int:
    """Trains on two processes; the exit code."""
    return train.launch([sys.executable, CHILD, *words(stage, results)], 2)


@pytest.fixture(autouse=True)
def one_thread_each(monkeypatch):
    for name, value in execute.environment(1).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of both stages on one process, and on two: Stage 2 with torchrun."""
    one, both = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (execute.environment(1) | {"RANK": "0"}).items():
            patch.setenv(name, value)
        patch.setattr(stage1, "KMEANS_VECTORS", 400)
        patch.setattr(stage1, "LOG_EVERY", 1)
        patch.setattr(stage2, "LOG_EVERY", 1)
        stage1.train(tiny(), one)
        stage2.train(tiny(), one)
        assert two("stage1", both) == 0
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc_per_node", "2", CHILD, *words("stage2", both)]
        patch.delenv("RANK")
        subprocess.run(command, cwd=graph.ROOT, check=True, timeout=300)
    return one, both


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_train_what_one_does(trained, stage):
    """Planted faults: gradients not averaged; batch norm or adaptive weight of a part; code counts
    not summed; the mean over words of a part counted as much as that of another."""
    one, both = (open_run(tiny(), stage, folder) for folder in trained)
    assert both.summary() | {"seconds": 0, "finished": ""} == pytest.approx(
        one.summary() | {"seconds": 0, "finished": ""}, rel=LOSS_TOLERANCE, abs=1e-5)
    rows = list(zip(both.metrics(), one.metrics(), strict=True))
    assert len(rows) >= 6
    for ours, theirs in rows:
        assert ours == pytest.approx(theirs, rel=LOSS_TOLERANCE, abs=1e-5)
    for name, wanted in one.weights().items():
        if wanted.is_floating_point():
            distance = (both.weights()[name] - wanted).abs().mean()
            assert distance <= WEIGHT_TOLERANCE * wanted.abs().mean() + 1e-5, name


def test_the_folder_is_that_of_a_notebook(trained):
    """Planted fault: every rank writes, which doubles the lines of metrics.jsonl."""
    one, both = (sorted(str(path.relative_to(folder)).split(".")[0] for path in
                        folder.rglob("*") if path.is_file()) for folder in trained)
    assert both == one
    run = open_run(tiny(), "stage1", trained[1])
    assert run.usable and '"processes": 2' in (run.folder / "config.json").read_text()
    assert train.main(words("stage1", trained[1])) == 0  # found finished


def test_a_killed_rank_is_one_line_and_the_same_command_goes_on(trained, tmp_path, monkeypatch,
                                                                capfd):
    """Planted faults: the other rank waits for ever; followers go on from their own start."""
    monkeypatch.setenv("KILL", "1:4")
    assert two("stage1", tmp_path) == 1
    assert capfd.readouterr().err == ("tevq: process 1 of 2 was killed by SIGKILL; the same "
                                      "command goes on from the last checkpoint\n")
    monkeypatch.delenv("KILL")
    assert two("stage1", tmp_path) == 0
    assert "going on at step" in capfd.readouterr().out
    again, whole = (open_run(tiny(), "stage1", folder) for folder in (tmp_path, trained[1]))
    assert same_tree(again.weights(), whole.weights())
    assert again.metrics() == whole.metrics()


@pytest.mark.parametrize(("more", "says"), [
    (["--processes", "3"], "stage1.batch = 4 cannot be split evenly over 3 processes; use 1, 2, 4"),
    (["--processes", "8"], "cannot be split evenly over 8 processes"),
    (["--processes", "0"], "--processes 0 is not allowed"),
    (["--budget", "3"], "--budget 3 is not allowed"),
    (["--seed", "-1"], "seed '-1' is not a whole number"),
    (["--variant", "tee"], "did you mean 'te'?"),
])
def test_wrong_input_is_one_line_and_code_2(tmp_path, capsys, more, says):
    """Planted fault: processes started before the settings are checked."""
    assert train.main(words("stage1", tmp_path) + more) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_stage2_without_a_quantizer_ends_all_processes_with_one_line(tmp_path, capfd):
    """Planted fault: the other rank waits for the first."""
    assert two("stage2", tmp_path) == 2
    err = capfd.readouterr().err
    assert "run notebook 03" in err and err.count("\n") == 1
    assert not torch.distributed.is_initialized() and "RANK" not in os.environ
