"""NaN and Inf stop a training before they are saved; trouble is announced in words."""

import math

import pytest
import torch
from small import FEATURES, tiny

from tevq.models import quantizer
from tevq.runs.run import open_run
from tevq.train import loop, stage1, stage2
from tevq.train.loop import DivergedError

pytestmark = pytest.mark.promise("numbers")


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch):
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", FEATURES)
    monkeypatch.setattr(loop.Loop.__init__, "__defaults__", (-1, None))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    stage1.KMEANS_VECTORS = FEATURES
    folder = tmp_path_factory.mktemp("whole")
    stage1.train(tiny(), folder)
    stage2.train(tiny(), folder)
    return folder


def spoil_from(monkeypatch, module, at: int, value: float, gradient: bool):
    """The loss (or only its gradient) becomes `value` in the backward pass of step `at` and on."""
    calls, backward = [], torch.Tensor.backward

    def spoiled(self, *arguments, **more):
        backward(self, *arguments, **more)
        calls.append(1)
        if len(calls) >= at and gradient:
            for weight in current[0].parameters():
                weight.grad = torch.full_like(weight, value)
                break
        elif len(calls) >= at:
            self.data.fill_(value)

    current: list = []
    construct = module.Trainer.__init__

    def remember(self, *arguments, **more):
        construct(self, *arguments, **more)
        current[:] = [self.model]
        monkeypatch.setattr(torch.Tensor, "backward", spoiled)

    monkeypatch.setattr(module.Trainer, "__init__", remember)
    return calls


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_it_stops_with_step_seed_and_an_intact_checkpoint(stage, gradient, value, trained, tmp_path,
                                                          monkeypatch):
    """Planted faults: no look at the numbers before a save; a look at the loss alone. Resumed
    without the trouble it gives what an untroubled training gives."""
    module, s = {"stage1": stage1, "stage2": stage2}[stage], tiny()
    if stage == "stage2":
        stage1.train(s, tmp_path)
    with monkeypatch.context() as patch:
        warmup = s.stage1.warmup_steps if stage == "stage1" else 0
        spoil_from(patch, module, warmup + 3, value, gradient)
        with pytest.raises(DivergedError) as error:
            module.train(s, tmp_path)
    said, = error.value._render_traceback_()
    assert f"not finite at step 3 (seed 0); lower {stage}.lr" in said
    assert "the checkpoint of step 2 is intact" in said
    run = open_run(s, stage, tmp_path)
    assert run.steps_saved() == [2, 1] and not run.done
    again, whole = module.train(s, tmp_path), open_run(s, stage, trained)
    assert again.metrics() == whole.metrics()
    assert all(torch.equal(a, b) for a, b in
               zip(again.weights().values(), whole.weights().values(), strict=True))


def test_a_codebook_that_collapses_is_announced(tmp_path, monkeypatch, capsys):
    """Planted fault: no word about it."""
    monkeypatch.setattr(stage1, "LOG_EVERY", 1)
    monkeypatch.setattr(quantizer, "kmeans", lambda vectors, K, seed: torch.cat(
        [vectors.mean(0, keepdim=True), torch.full((K - 1, vectors.shape[1]), 1e3)]))
    stage1.train(tiny(**{"stage1.disc_start": 100}), tmp_path)
    assert "the codebook has collapsed to 1 codes" in capsys.readouterr().out


def test_the_start_of_the_discriminator_is_announced(tmp_path, capsys):
    stage1.train(tiny(), tmp_path)
    assert "step 3, the discriminator starts" in capsys.readouterr().out


def test_trouble_in_the_first_step_counts_and_saves_are_timed(tmp_path):
    """Planted faults: step 0 taken for no step; the clock in place of a time."""
    run = open_run(tiny(), "stage1", tmp_path)
    found, told = loop.Loop(run, {}, 5), []
    found.deadline.saved = told.append
    found.save(0)
    assert len(told) == 1 and 0 <= told[0] < 60
    found.watch(torch.tensor(1.0))
    found.check()
    found.watch(torch.tensor(math.nan))
    with pytest.raises(DivergedError, match="at step 1 "):
        found.check()


def test_the_first_step_that_diverges_is_the_one_that_is_named(tmp_path):
    """Planted fault: the last watched step, which a later finite step makes forget the trouble."""
    found = loop.Loop(open_run(tiny(), "stage1", tmp_path), {}, 5)
    for found.step, value in enumerate((1.0, math.inf, math.nan, 1.0)):
        found.watch(torch.tensor(value))
    with pytest.raises(DivergedError, match="at step 2 "):
        found.check()
