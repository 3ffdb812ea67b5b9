"""Steps on a pretended GPU: fake tensors know shapes and devices, and hold no numbers.

They refuse to mix devices, and to be read back, which on a real GPU would make the loop wait; so
would an upload that is not `non_blocking`. The backward pass alone needs a real GPU; here every
gradient is a new fake tensor.
"""

from functools import partial

import numpy as np
import pytest
import torch
from small import tiny
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tevq import presets
from tevq.data import render, scenes
from tevq.data.source import load_source
from tevq.evaluate.evaluator import encode_scenes
from tevq.models import losses, sampling
from tevq.models.classifier import Classifier
from tevq.models.transformer import Transformer
from tevq.models.vqgan import VQGAN
from tevq.runs.devices import Device
from tevq.runs.run import open_run
from tevq.train import stage1, stage2
from tevq.train.loop import CHECK_EVERY, Batches, Loop

GPU = Device(torch.device("cuda"), torch.bfloat16)
BATCH, GRID = 4, 4  # the generator's grid is small: painting takes GRID * GRID steps


class NoWaiting(TorchDispatchMode):
    """Refuses whatever waits for the GPU: copies in either direction, indices in main memory.

    Uploads that are `non_blocking` do not wait, nor do single numbers from main memory.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        options = kwargs or {}
        places = {x.device.type for x in tree_leaves((args, options))
                  if isinstance(x, torch.Tensor) and x.dim()}
        if function is torch.ops.aten._to_copy.default:
            target = torch.device(options.get("device") or args[0].device).type
            upload = target == "cuda" and options.get("non_blocking")
            assert upload or places <= {target}, "a copy waits for the GPU"
        else:
            assert len(places) < 2, f"{function} waits for the GPU"
        return function(*args, **options)


@pytest.fixture
def pretend(monkeypatch):
    """Within the block, `cuda` is a device of fake tensors, and `backward` sets fake gradients."""
    learned = []

    def backward(loss, **options):
        assert loss.requires_grad and loss.device.type == "cuda" and loss.shape == ()
        for p in learned[0].parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None

    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x, **k: (torch.empty_like(x),))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield learned


@pytest.fixture
def networks():
    """Everything a cell of preset gpu trains, built before the GPU is pretended."""
    s = presets.load("gpu", "te", 0)
    model = VQGAN(s.stage1)
    discriminator = losses.PatchDiscriminator(s.stage1.disc_channels, s.stage1.disc_layers)
    generator = Transformer(50, s.stage1.codes, 40, GRID, s.stage2.dim, 2, s.stage2.heads,
                            window=s.stage2.window, neighbours=s.stage2.neighbours,
                            dtype=torch.bfloat16)
    evaluator = Classifier(s.classifier.width).eval().requires_grad_(False)
    return s, model, discriminator, generator, evaluator


@pytest.fixture
def drawn():
    """Scenes and the items they show."""
    return scenes.load_scenes(tiny().data, "val"), load_source("digits", "test")


def test_stage1_steps(networks, drawn, pretend, monkeypatch):
    s, model, discriminator, _, evaluator = networks
    found, items = drawn
    items = items.to(GPU.device)
    monkeypatch.setattr(stage1, "VQGAN", lambda _: model)
    monkeypatch.setattr(losses, "PatchDiscriminator", lambda *_: discriminator)
    learner = stage1.Learner(s.stage1, GPU, losses.feature_distance(evaluator.to(GPU.device)))
    usage = torch.zeros(s.stage1.codes, device=GPU.device)
    with NoWaiting():
        x = scenes.render(found, items, np.arange(BATCH))
        pretend[:] = [learner.model]
        for adversarial in (False, True):
            numbers, y, codes = learner.generator_step(x, adversarial)
            usage += stage1.count(codes, s.stage1.codes)
            assert y.dtype == torch.bfloat16 and codes.shape == (BATCH, 16, 16)
        pretend[:] = [learner.discriminator]
        numbers |= learner.discriminator_step(x, y)
    assert {"critic_loss", "adaptive_weight", "gradient_norm"} <= set(numbers)
    assert all(value.device == x.device for value in numbers.values())


def test_stage2_steps(networks, pretend):
    s, _, _, generator, _ = networks
    trainer = object.__new__(stage2.Trainer)  # without what reads files
    trainer.s, trainer.where, trainer.model = s.stage2, GPU, generator.to(GPU.device)
    trainer.optimizers = stage2.build_optimizers(generator, s.stage2)
    trainer.update = partial(stage2.update, generator, trainer.optimizers, s.stage2)
    trainer.batches = Batches(9, BATCH, 0)
    trainer.captions = torch.ones(9, 40, dtype=torch.uint8, device=GPU.device)
    trainer.codes = torch.ones(9, GRID, GRID, dtype=torch.uint8, device=GPU.device)
    pretend[:] = [generator]
    with NoWaiting():
        steps = [trainer.step(step) for step in range(2)]
    assert {direction for direction, _ in steps} == {"t2i", "i2t"}
    assert all(value.device == trainer.codes.device for _, metrics in steps
               for value in metrics.values())


def test_scenes_are_drawn_encoded_painted_and_judged(networks, drawn, pretend):
    s, model, _, generator, evaluator = networks
    for network in (model, generator, evaluator):
        network.to(GPU.device)
    found, items = drawn
    items = items.to(GPU.device)
    seeds = torch.zeros(BATCH, dtype=torch.long, device=GPU.device)
    text = torch.ones(BATCH, 40, dtype=torch.long, device=GPU.device)
    with torch.no_grad(), NoWaiting():
        x = scenes.render(found, items, np.arange(BATCH))
        codes = model.codes(x.contiguous(memory_format=torch.channels_last))
        painted = sampling.generate_images(generator, text, seeds, 1.0, 38)
        y = model.decode_codes(codes)
    labels, colours = evaluator.predict(render.crop(y, torch.zeros(BATCH, dtype=torch.long)))
    assert encode_scenes(model, found, items, GPU).device.type == "cpu"  # read back at the end
    assert x.device == codes.device == painted.device == labels.device == colours.device
    assert painted.shape == (BATCH, GRID, GRID) and y.shape == x.shape


def test_the_loop_looks_at_numbers_only_where_it_says_so(pretend, tmp_path):
    loop = Loop(open_run(tiny(), "stage1", tmp_path), {}, 100)
    loop.watch(torch.zeros((), device=GPU.device), torch.zeros((), device=GPU.device))
    with pytest.raises(DataDependentOutputException):
        loop.check()
    loop.diverged, seen = -1, []
    with pytest.raises(DataDependentOutputException):
        for step in loop:
            loop.watch(torch.zeros((), device=GPU.device))
            seen.append(step)
    assert len(seen) == CHECK_EVERY
