"""One training on two processes (gloo on the CPU): the same numbers, one folder, and a kill."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from small import TINY, tiny
from test_training import same_tree

from tevq import execute, graph
from tevq.models import losses
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.train import launch as train
from tevq.train import parallel, stage1, stage2

CHILD = str(Path(__file__).parent / "parallel_child.py")
# (last early step, relative tolerance up to it, and after it) of every logged number. Sums in
# another order differ in the last bits of float32. Batch norm's backward pass cancels most of the
# discriminator's gradient, Adam divides gradients near zero by their own size, Muon rounds to
# bfloat16, codes flip: all of that makes the difference grow from step to step.
TOLERANCE = {"stage1": (2, 1e-4, 5e-2), "stage2": (1, 1e-5, 1e-2)}
ONE_AT_A_TIME = threading.Lock()
WORDS = 3e-4  # of the text loss, which hardly feels the codes' rounding


def words(stage: str, results: Path) -> list[str]:
    """The command line of a tiny training, after the program's name."""
    sets = [f"--set={name}={value}" for name, value in TINY.items()]
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
        # as in the children: Adam makes much of the last bits of a gradient that is nearly zero
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        patch.setattr(stage1, "KMEANS_VECTORS", 400)
        patch.setattr(stage1, "LOG_EVERY", 1)
        patch.setattr(stage2, "LOG_EVERY", 1)
        stage1.train(tiny(), one)
        stage2.train(tiny(), one)
        torch.set_num_threads(threads)
        assert two("stage1", both) == 0
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc_per_node", "2", CHILD, *words("stage2", both)]
        patch.delenv("RANK")
        subprocess.run(command, cwd=graph.ROOT, check=True, timeout=300)
    return one, both


def on_two_ranks(monkeypatch, work):
    """What work(rank) returns in two threads, whose sums are those of two processes."""
    place, sums, found = threading.Barrier(2, timeout=60), {}, {}
    ranks = threading.local()

    def total(x):
        sums[ranks.own] = x.clone()
        place.wait()
        x.copy_(sums[0] + sums[1])
        place.wait()
        return x

    def run(rank):
        ranks.own = rank
        found[rank] = work(rank)

    with monkeypatch.context() as patch:
        patch.setattr(devices, "processes", lambda: 2)
        patch.setattr(parallel, "total", total)
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def adversarial(real, fake, scale):
    """Adaptive weight (fake's own scale as last layer), and the discriminator's gradients."""
    with ONE_AT_A_TIME:  # both ranks are threads here and share the random numbers
        torch.manual_seed(0)
        discriminator = losses.PatchDiscriminator(8, 2).double()
    y = fake * scale
    weight = losses.adaptive_weight((y - real).square().mean(), -discriminator(y).mean(), scale)
    losses.hinge_loss(discriminator(real), discriminator(y.detach())).backward()
    parallel.average_gradients(discriminator)
    return weight, [p.grad for p in discriminator.parameters()], dict(discriminator.named_buffers())


def test_the_discriminator_sees_the_whole_batch(monkeypatch):
    """In float64, hence to the last digits. Planted faults: batch norm of a part, its gradient of a
    part, running variance of a part; adaptive weight of a part; gradients not averaged."""
    torch.manual_seed(1)
    real, fake = torch.randn(2, 8, 3, 32, 32, dtype=torch.float64)
    scale = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)[:, None, None].requires_grad_()

    def work(rank):
        part = parallel.share(8, "batch", 2, rank)
        return adversarial(real[part], fake[part], scale.detach().clone().requires_grad_())

    wanted = adversarial(real, fake, scale)
    for rank, found in on_two_ranks(monkeypatch, work).items():
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12, msg=f"rank {rank}")


def test_a_mean_over_words_counts_every_word_once(monkeypatch):
    """Planted fault: weight 1, so that a part with fewer words counts as much."""
    values = torch.arange(12.0).view(4, 3)
    counted = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()

    def work(rank):
        part = slice(2 * rank, 2 * rank + 2)
        mean = values[part][counted[part]].mean() * parallel.mean_weight(counted[part])
        return parallel.total(mean) / 2

    found = on_two_ranks(monkeypatch, work)
    assert found[0] == found[1] == pytest.approx(float(values[counted].mean()))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_train_what_one_does(trained, stage):
    """Planted faults: gradients not averaged; code counts not summed; the mean over the words of a
    part counted as much as that of the other; both ranks given the same part."""
    early, tight, loose = TOLERANCE[stage]
    one, both = (open_run(tiny(), stage, folder) for folder in trained)
    rows = list(zip(both.metrics(), one.metrics(), strict=True))
    assert len(rows) >= 6 and both.summary().keys() == one.summary().keys()
    for ours, theirs in rows:
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            late = WORDS if name == "text_loss" else loose
            tolerance = tight if ours["step"] <= early else late
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(
                value, rel=tolerance, abs=1e-6)), f"{name} at step {ours['step']}"


def test_the_folder_is_that_of_a_notebook(trained):
    """Planted fault: every rank writes, which doubles the lines of metrics.jsonl."""
    one, both = (
        sorted(re.sub("-[0-9a-f]{8}$", "", str(path.relative_to(folder)).split(".")[0])
               for path in folder.rglob("*") if path.is_file()) for folder in trained)
    assert both == one  # but for checksums
    run = open_run(tiny(), "stage1", trained[1])
    assert run.has_weights and '"processes": 2' in (run.folder / "config.json").read_text()
    assert train.main(words("stage1", trained[1])) == 0  # found finished


def test_a_killed_rank_is_one_line_and_the_same_command_goes_on(trained, tmp_path, monkeypatch,
                                                                capfd):
    """Planted fault: the other rank goes on from a start of its own."""
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
    """Planted fault: the launcher waits for all ranks to end, as the second never does."""
    assert two("stage2", tmp_path) == 2
    err = capfd.readouterr().err
    assert "run notebook 03" in err and err.count("\n") == 1
    assert not torch.distributed.is_initialized() and "RANK" not in os.environ
