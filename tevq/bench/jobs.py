"""The large jobs of notebook 07: training steps and sampling, ours and each peer's.

What a step costs does not depend on what is drawn: images are noise, captions and codes random.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tevq.bench import cost, peers
from tevq.bench.timing import OURS, Benchmark, Contender
from tevq.config import Settings, Stage1Config
from tevq.models import transformer
from tevq.models.sampling import generate_images
from tevq.runs.devices import Device
from tevq.train import stage2
from tevq.train.cuda_graph import CudaGraph
from tevq.train.stage1 import Learner

GPT2, DALLE = "transformers GPT-2", "dalle-pytorch"
TAMING, FAST = "taming, float32, default layout", "taming, bfloat16, channels_last"
ADAM = {"lr": 1e-4, "betas": (0.5, 0.9)}  # its numbers change no time
Step = Callable[[], Any]
Twin = tuple[int, int, int]  # dim, depth, heads of a GPT-2 with about as many parameters as ours


def add_peer(made: Benchmark, name: str, builder: Callable[[], nn.Module], on: Device, kind: str,
             work: Callable[[nn.Module], Step], units: int = 0) -> None:
    """Adds a peer to a benchmark, or why it cannot be built.

    work: network -> its call; kind: of the limit it is held against, or empty; units: of its call,
    if not ours.
    """
    try:
        with contextlib.redirect_stdout(None):  # some of them print
            network = builder().to(on.device)
    except Exception as error:  # old packages fail in many ways on new ones
        hint = "; pip install -e .[bench] (for dalle-pytorch see notebook 07)"
        made.missing[name] = f"{type(error).__name__}: {error}".splitlines()[0] + (
            hint if isinstance(error, ModuleNotFoundError) else "")
        return
    made.contenders.append(Contender(name, work(network), units or made.contenders[0].units,
                                     parameters(network), kind and f"{kind}-{on.precision}"))


def parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def noise(batch: int, where: Device, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """Images (batch, 3, 64, 64) in [-1, 1]."""
    x = torch.rand(batch, 3, 64, 64, device=where.device) * 2 - 1
    return x.contiguous(memory_format=layout)


def no_distance(x: Tensor, y: Tensor) -> Tensor:
    """In place of the perceptual distance."""
    return x.new_zeros(())


def learner_step(s: Stage1Config, where: Device, batch: int, perceptual) -> tuple[Step, nn.Module]:
    """Our Stage-1 update (both networks if the discriminator starts at 0), and the model."""
    learner, x = Learner(s, where, perceptual), noise(batch, where)
    update = CudaGraph(learner.update, where)
    return lambda: update(x, s.disc_weight > 0 and s.disc_start == 0), learner.model


def taming_step(s: Stage1Config, batch: int, where: Device, layout: torch.memory_format, perceptual,
                model: nn.Module) -> Step:
    """Taming's update: without a discriminator one of its network, else as VQModel trains."""
    model, x = model.to(memory_format=layout), noise(batch, where, layout)
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
        dataclasses.replace(s, disc_weight=0.0), no_distance)
    step, model = learner_step(s, where, batch, perceptual)
    made = Benchmark(name, "images", [
        Contender(OURS, step, batch, parameters(model), f"conv-{where.precision}")],
        dict(zip((TAMING, FAST), targets, strict=True)), goal=("share_of_limit", share))
    for peer, on, layout in ((TAMING, Device(where.device, torch.float32), torch.contiguous_format),
                             (FAST, where, torch.channels_last)):
        if peer == FAST and where.dtype is torch.float32:
            made.missing[peer] = "this processor has no bfloat16 arithmetic"
            continue
        add_peer(made, peer, partial(peers.Taming, s), on, "conv", partial(
            taming_step, s, batch, on, layout, perceptual))
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


def stage2_peers(made: Benchmark, model: transformer.Transformer, where: Device, twin: Twin,
                 works: dict[str, Callable], few: int = 0) -> Benchmark:
    """Adds every peer that has a target. works: name -> network -> its call; few: dalle's units."""
    plain = Device(where.device, torch.float32)
    ways = {GPT2: (partial(peers.gpt2, model, *twin), where, 0),
            DALLE: (partial(peers.dalle, model), plain, few)}
    for name in made.targets:
        builder, on, units = ways[name]
        add_peer(made, name, builder, on, "matmul", works[name], units)
    return made


def stage2_step(name: str, settings: Settings, where: Device, size: int, twin: Twin,
                targets: dict[str, float], share: float = 0.0) -> Benchmark:
    """A Stage-2 step from text to image against peers with about as many parameters."""
    step, model = generator_step(settings, where, size)
    text, codes = sequences(model, size, where)
    tokens = torch.cat((text, codes.flatten(1) + model.V), 1)
    made = Benchmark(name, "sequences", [Contender(
        OURS, step, size, parameters(model), f"matmul-{where.precision}")], targets,
        goal=("share_of_limit", share))
    return stage2_peers(made, model, where, twin, {
        GPT2: lambda network: peer_step(
            network, where, lambda: network(tokens, labels=tokens).loss),
        DALLE: lambda network: peer_step(
            network, Device(where.device, torch.float32),
            lambda: network(text, codes.flatten(1), return_loss=True))})


def sampling(name: str, settings: Settings, where: Device, size: int, twin: Twin,
             targets: dict[str, float], few: int = 8) -> Benchmark:
    """All codes of `size` images, with caches, in the type that trainings compute in.

    dalle-pytorch draws single tokens of `few` images in the middle of the grid: its sampler has no
    cache at guidance scale 1, where it drops the one it is given, and a whole grid takes minutes.
    """
    model = transformer.build(settings, where.dtype).to(where.device).eval()
    (text, codes), top_k = sequences(model, size, where), settings.evaluation.top_k
    seeds, half = torch.arange(size, device=where.device), codes.flatten(1)[:few, : model.N // 2]
    options = {"attention_mask": torch.ones_like(text), "max_new_tokens": model.N,
               "min_new_tokens": model.N, "do_sample": True, "top_k": top_k, "use_cache": True,
               "pad_token_id": 0}
    made = Benchmark(name, "tokens", [Contender(
        OURS, lambda: generate_images(model, text, seeds, top_k=top_k, dtype=where.dtype),
        size * model.N, parameters(model), f"matmul-{where.precision}")], targets)
    return stage2_peers(made, model, where, twin, {
        GPT2: lambda network: partial(network.to(where.dtype).eval().generate, text, **options),
        DALLE: lambda network: torch.inference_mode()(partial(network.eval(), text[:few], half)),
    }, few)
