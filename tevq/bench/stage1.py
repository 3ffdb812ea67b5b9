"""Jobs of Stage 1: training steps and the quantizer alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from tevq.bench import peers
from tevq.bench.limits import limit
from tevq.bench.timing import OURS, Contender, Work
from tevq.config import Settings, Stage1Config
from tevq.models.classifier import Classifier
from tevq.models.losses import Perceptual, feature_distance
from tevq.models.quantizer import Quantizer, orthogonality
from tevq.runs.devices import Device
from tevq.train.cuda_graph import CudaGraph
from tevq.train.stage1 import Learner

ADAM = {"lr": 1e-4, "betas": (0.5, 0.9)}  # its numbers change no time
FLOAT32, FAST = "taming, float32, default layout", "taming, bfloat16, channels_last"


def images(batch: int, where: Device, channels_last: bool = True) -> torch.Tensor:
    """Noise (batch, 3, 64, 64) in [-1, 1]: what a step costs does not depend on the picture."""
    x = torch.rand(batch, 3, 64, 64, device=where.device) * 2 - 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def reconstruction_step(name: str, s: Stage1Config, where: Device, batch: int,
                        bars: tuple[float, float]) -> Work:
    """A step of encoder, quantizer and decoder on L1 and the quantizer's losses."""
    s = dataclasses.replace(s, disc_weight=0.0)

    def step_of(model: nn.Module, x: torch.Tensor, devices: Device) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), **ADAM)

        def step() -> None:
            with devices.autocast():
                y, loss = model(x)
                loss = (x - y).abs().mean() + loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return step

    work = Work(name, "images", [_ours(s, where, batch, lambda x, y: x.new_zeros(()))])
    return _with_taming(work, s, where, batch, bars, step_of)


def full_step(name: str, settings: Settings, where: Device, batch: int,
              bars: tuple[float, float]) -> Work:
    """A step with all losses: L1, classifier features, discriminator with its adaptive weight."""
    s = dataclasses.replace(settings.stage1, disc_start=0)
    evaluator = Classifier(settings.classifier.width).to(where.device).eval().requires_grad_(False)
    distance = feature_distance(evaluator)

    def step_of(model: nn.Module, x: torch.Tensor, devices: Device) -> Callable[[], None]:
        losses = peers.taming_losses(s, distance).to(where.device)
        last = model.decoder.conv_out.weight
        optimizers = [torch.optim.Adam(net.parameters(), **ADAM)
                      for net in (model, losses.discriminator)]

        def step() -> None:  # as VQModel trains: a forward pass for each of the two optimizers
            for number, optimizer in enumerate(optimizers):
                with devices.autocast():
                    y, quantizer_loss = model(x)
                    loss, _ = losses(quantizer_loss, x, y.float(), number, 1, last_layer=last)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return step

    work = Work(name, "images", [_ours(s, where, batch, distance)])
    return _with_taming(work, s, where, batch, bars, step_of)


def learner_step(s: Stage1Config, where: Device, batch: int,
                 perceptual: Perceptual) -> tuple[Callable[[], None], nn.Module]:
    """Our update (both networks where the discriminator has started) and the model it updates."""
    learner, x = Learner(s, where, perceptual), images(batch, where)
    update = CudaGraph(learner.update, where)
    return lambda: update(x, s.disc_weight > 0 and s.disc_start == 0), learner.model


def quantizer(name: str, where: Device, batch: int = 32, D: int = 256, K: int = 256,
              bar: float = 3.0) -> Work:
    """Forward and backward of the quantizer with equation 5, on features (batch, D, 16, 16)."""
    z = torch.randn(batch, D, 16, 16, device=where.device, requires_grad=True)
    gradient = torch.randn_like(z)
    own = Quantizer(K, D).to(where.device)

    def ours() -> None:
        z.grad = own.codebook.grad = None
        found = own(z)
        loss = found.codebook_loss + 0.25 * found.commitment_loss
        loss = loss + 10 * orthogonality(own.codebook)
        torch.autograd.backward([loss, found.features], [None, gradient])

    work = Work(name, "vectors", [Contender(OURS, ours, batch * 256, K * D)])
    label = "vector-quantize-pytorch"
    model = peers.build(lambda: peers.vector_quantize(K, D, 0.25, 10.0))
    if isinstance(model, str):
        work.missing[label] = model
        return work
    model = model.to(where.device).train()

    def theirs() -> None:
        z.grad = None
        model.zero_grad()
        features, _, loss = model(z)
        torch.autograd.backward([loss.sum(), features], [None, gradient])

    work.contenders.append(Contender(label, theirs, batch * 256, peers.size(model)))
    work.bars[label] = bar
    return work


def _ours(s: Stage1Config, where: Device, batch: int, perceptual: Perceptual) -> Contender:
    step, model = learner_step(s, where, batch, perceptual)
    return Contender(OURS, step, batch, peers.size(model), limit("conv", where))


def _with_taming(work: Work, s: Stage1Config, where: Device, batch: int, bars: tuple[float, float],
                 step_of: Callable[[nn.Module, torch.Tensor, Device], Callable]) -> Work:
    """Adds taming's modules as their users run them, and with what the processor offers."""
    plain = Device(where.device, torch.float32)
    ways = [(FLOAT32, plain, False, bars[0])]
    if where.dtype is torch.bfloat16:
        ways.append((FAST, where, True, bars[1]))
    else:
        work.missing[FAST] = "this processor has no bfloat16 arithmetic"
        ways.append(("taming, float32, channels_last", plain, True, 0.0))
    for label, devices, channels_last, bar in ways:
        model = peers.build(lambda: peers.Taming(s))
        if isinstance(model, str):
            work.missing[label] = model
            continue
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(where.device, memory_format=layout)
        step = step_of(model, images(batch, where, channels_last), devices)
        work.contenders.append(
            Contender(label, step, batch, peers.size(model), limit("conv", devices)))
        if bar:
            work.bars[label] = bar
    if FAST in work.missing:
        work.bars[FAST] = bars[1]
    return work
