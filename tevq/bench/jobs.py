"""The jobs of notebook 07: training steps, the quantizer alone, sampling; ours and each peer's.

What a step costs does not depend on what is drawn: images are noise, captions and codes random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tevq.bench import cost, peers
from tevq.bench.timing import OURS, Benchmark, Contender, limit
from tevq.config import Settings, Stage1Config
from tevq.models import transformer
from tevq.models.quantizer import Quantizer, orthogonality
from tevq.models.sampling import generate_images
from tevq.runs.devices import Device
from tevq.train import stage2
from tevq.train.cuda_graph import CudaGraph
from tevq.train.stage1 import Learner

GPT2, DALLE, VECTOR_QUANTIZE = "transformers GPT-2", "dalle-pytorch", "vector-quantize-pytorch"
TAMING, FAST = "taming, float32, default layout", "taming, bfloat16, channels_last"
NO_BFLOAT16 = "this processor has no bfloat16 arithmetic"
ADAM = {"lr": 1e-4, "betas": (0.5, 0.9)}  # its numbers change no time
Step = Callable[[], Any]


class Twin(NamedTuple):
    """A GPT-2 with about as many parameters as ours (its heads are always dim / heads wide)."""

    dim: int
    depth: int
    heads: int


def noise(batch: int, where: Device, channels_last: bool = True) -> Tensor:
    """Images (batch, 3, 64, 64) in [-1, 1]."""
    x = torch.rand(batch, 3, 64, 64, device=where.device) * 2 - 1
    return x.contiguous(memory_format=torch.channels_last if channels_last else
                        torch.contiguous_format)


def learner_step(s: Stage1Config, where: Device, batch: int, perceptual) -> tuple[Step, nn.Module]:
    """Our Stage-1 update (both networks if the discriminator starts at 0), and the model."""
    learner, x = Learner(s, where, perceptual), noise(batch, where)
    update = CudaGraph(learner.update, where)
    return lambda: update(x, s.disc_weight > 0 and s.disc_start == 0), learner.model


def taming_step(s: Stage1Config, model: nn.Module, x: Tensor, where: Device, perceptual) -> Step:
    """Taming's update: without a discriminator one of its network, else as VQModel trains."""
    losses = peers.taming_losses(s, perceptual).to(where.device) if s.disc_weight else None
    networks = [model, losses.discriminator] if losses else [model]
    optimizers = [torch.optim.Adam(network.parameters(), **ADAM) for network in networks]

    def step() -> None:
        for number, optimizer in enumerate(optimizers):  # a forward pass for each of the two
            with where.autocast():
                y, loss = model(x)
                loss = (x - y).abs().mean() + loss if losses is None else losses(
                    loss, x, y.float(), number, 1, last_layer=model.decoder.conv_out.weight)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return step


def stage1_step(name: str, settings: Settings, where: Device, batch: int, losses: bool,
                targets: tuple[float, float], share: float = 0.0) -> Benchmark:
    """A Stage-1 step on L1 and the quantizer's losses; with `losses` also the perceptual distance
    and the discriminator. Against taming as its users run it, and with what the processor offers.
    """
    s = dataclasses.replace(settings.stage1, disc_start=0)
    s, perceptual = (s, cost.perceptual(settings)) if losses else (
        dataclasses.replace(s, disc_weight=0.0), lambda x, y: x.new_zeros(()))
    step, model = learner_step(s, where, batch, perceptual)
    found = Benchmark(name, "images", share=share, contenders=[
        Contender(OURS, step, batch, peers.size(model), limit("conv", where))],
        targets=dict(zip((TAMING, FAST), targets, strict=True)))
    ways = [(TAMING, Device(where.device, torch.float32), False), (FAST, where, True)]
    for label, on, channels_last in ways:
        other = peers.build(peers.Taming, s)
        if label == FAST and where.dtype is not torch.bfloat16:
            other = NO_BFLOAT16
        if isinstance(other, str):
            found.missing[label] = other
            continue
        x = noise(batch, where, channels_last)
        other = other.to(where.device, memory_format=torch.channels_last if channels_last else
                         torch.contiguous_format)
        found.contenders.append(Contender(label, taming_step(s, other, x, on, perceptual), batch,
                                          peers.size(other), limit("conv", on)))
    return found


def quantizer(name: str, where: Device, batch: int = 32, D: int = 256, K: int = 256) -> Benchmark:
    """Forward and backward of the quantizer with equation 5, on features (batch, D, 16, 16)."""
    z = torch.randn(batch, D, 16, 16, device=where.device, requires_grad=True)
    gradient, own = torch.randn_like(z), Quantizer(K, D).to(where.device)

    def ours() -> None:
        z.grad = own.codebook.grad = None
        found = own(z)
        loss = found.codebook_loss + 0.25 * found.commitment_loss
        loss = loss + 10 * orthogonality(own.codebook)
        torch.autograd.backward([loss, found.features], [None, gradient])

    made = Benchmark(name, "vectors", [Contender(OURS, ours, batch * 256, K * D)],
                     {VECTOR_QUANTIZE: 3.0})
    model = peers.build(peers.vector_quantize, K, D, 0.25, 10.0)
    if isinstance(model, str):
        made.missing[VECTOR_QUANTIZE] = model
        return made
    model = model.to(where.device).train()

    def theirs() -> None:
        z.grad = None
        model.zero_grad()
        features, _, loss = model(z)
        torch.autograd.backward([loss.sum(), features], [None, gradient])

    made.contenders.append(Contender(VECTOR_QUANTIZE, theirs, batch * 256, peers.size(model)))
    return made


def sequences(model: transformer.Transformer, size: int, where: Device) -> tuple[Tensor, Tensor]:
    """Random captions of full length (size, L) and codes (size, h, h)."""
    return (torch.randint(3, model.V, (size, model.L), device=where.device),
            torch.randint(0, model.K, (size, model.h, model.h), device=where.device))


def generator_step(settings: Settings, where: Device, size: int) -> tuple[Step, nn.Module]:
    """Our Stage-2 update from text to image, and the model it updates."""
    model = transformer.build(settings, where.dtype).to(where.device)
    optimizers = stage2.build_optimizers(model, settings.stage2)
    update = CudaGraph(partial(stage2.update, model, optimizers, settings.stage2), where)
    data = sequences(model, size, where)
    return lambda: update(*data, "t2i"), model


def peer_step(model: nn.Module, where: Device, loss: Step) -> Step:
    """A peer's Stage-2 update: AdamW and clipping, as its users train it."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with where.autocast():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
    return step


def stage2_peers(made: Benchmark, settings: Settings, model: transformer.Transformer,
                 where: Device, twin: Twin, add: Callable) -> Benchmark:
    """Adds `add(name, network, device)` of every peer that has a target and can be built."""
    s, plain = settings.stage2, Device(where.device, torch.float32)
    builders = {DALLE: partial(peers.dalle, model.V, model.K, model.L, s.dim, s.depth, s.heads,
                               s.head_dim),
                GPT2: partial(peers.gpt2, model.V + model.K, model.L + model.N, *twin)}
    for name in made.targets:
        network = peers.build(builders[name])
        if isinstance(network, str):
            made.missing[name] = network
            continue
        call, units, on = add(name, network.to(where.device), plain if name == DALLE else where)
        made.contenders.append(Contender(name, call, units, peers.size(network, "vae."),
                                         limit("matmul", on)))
    return made


def stage2_step(name: str, settings: Settings, where: Device, size: int, twin: Twin,
                targets: dict[str, float], share: float = 0.0) -> Benchmark:
    """A Stage-2 step from text to image against peers with about as many parameters."""
    step, model = generator_step(settings, where, size)
    text, codes = sequences(model, size, where)
    tokens = torch.cat((text, codes.flatten(1) + model.V), 1)

    def add(peer: str, network: nn.Module, on: Device):
        loss = ((lambda: network(text, codes.flatten(1), return_loss=True)) if peer == DALLE else
                (lambda: network(tokens, labels=tokens).loss))
        return peer_step(network, on, loss), size, on

    made = Benchmark(name, "sequences", [Contender(
        OURS, step, size, peers.size(model), limit("matmul", where))], targets, share=share)
    return stage2_peers(made, settings, model, where, twin, add)


def sampling(name: str, settings: Settings, where: Device, size: int, twin: Twin,
             targets: dict[str, float], few: int = 8) -> Benchmark:
    """All codes of `size` images, with caches, in the type that trainings compute in.

    dalle-pytorch draws single tokens of `few` images in the middle of the grid: its sampler has no
    cache at guidance scale 1, where it drops the one it is given, and a whole grid takes minutes.
    """
    model = transformer.build(settings, where.dtype).to(where.device).eval()
    (text, codes), top_k = sequences(model, size, where), settings.evaluation.top_k
    seeds, half = torch.arange(size, device=where.device), codes.flatten(1)[:few, : model.N // 2]

    def add(peer: str, network: nn.Module, on: Device):
        if peer == DALLE:
            one = torch.inference_mode()(lambda: network.eval()(text[:few], half))
            return one, few, on
        network = network.to(where.dtype).eval()
        return partial(network.generate, text, attention_mask=torch.ones_like(text),
                       max_new_tokens=model.N, min_new_tokens=model.N, do_sample=True, top_k=top_k,
                       use_cache=True, pad_token_id=0), size * model.N, on

    made = Benchmark(name, "tokens", [Contender(
        OURS, lambda: generate_images(model, text, seeds, top_k=top_k, dtype=where.dtype),
        size * model.N, peers.size(model), limit("matmul", where))], targets)
    return stage2_peers(made, settings, model, where, twin, add)
