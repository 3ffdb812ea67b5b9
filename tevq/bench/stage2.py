"""Jobs of Stage 2: training steps and sampling."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from tevq.bench import peers
from tevq.bench.limits import limit
from tevq.bench.timing import OURS, Contender, Work, synchronize
from tevq.config import Stage2Config
from tevq.models.sampling import generate_images
from tevq.models.transformer import Transformer
from tevq.runs.devices import Device
from tevq.train import stage2
from tevq.train.cuda_graph import CudaGraph

K, GRID = 256, 16  # codes, and side of the code grid: stride 4
N = GRID * GRID
WORDS = 60
TOP_K = 38
GPT2, DALLE = "transformers GPT-2", "dalle-pytorch"


class Twin(NamedTuple):
    """A GPT-2 with about as many parameters (its heads are always dim / heads wide)."""

    dim: int
    depth: int
    heads: int


class Batch(NamedTuple):
    """Captions (B, L) and codes (B, 16, 16) at random."""

    text: torch.Tensor
    codes: torch.Tensor

    @property
    def tokens(self) -> torch.Tensor:
        """Both as one sequence (B, L + 256) over one vocabulary."""
        return torch.cat((self.text, self.codes.flatten(1) + WORDS), 1)


def batch_of(size: int, length: int, where: Device) -> Batch:
    """Random captions of full length and random codes."""
    return Batch(torch.randint(3, WORDS, (size, length), device=where.device),
                 torch.randint(0, K, (size, GRID, GRID), device=where.device))


def our_model(s: Stage2Config, length: int, where: Device) -> Transformer:
    """A new transformer of these settings."""
    return Transformer(WORDS, K, length, GRID, s.dim, s.depth, s.heads, s.head_dim,
                       window=s.window, neighbours=s.neighbours,
                       dtype=where.dtype).to(where.device)


def our_step(s: Stage2Config, length: int, where: Device,
             size: int) -> tuple[Callable[[], None], Transformer]:
    """Our update from text to image, and the model it updates."""
    model, data = our_model(s, length, where), batch_of(size, length, where)
    optimizers = stage2.build_optimizers(model, s)
    update = CudaGraph(partial(stage2.update, model, optimizers, s), where)
    return lambda: update(*data, "t2i"), model


def training_step(name: str, s: Stage2Config, length: int, where: Device, size: int, twin: Twin,
                  bars: dict[str, float]) -> Work:
    """A training step of text -> image on `length` + 256 tokens.

    bars: by GPT2 and DALLE; a peer without one does not take part.
    """
    step, model = our_step(s, length, where, size)
    work = Work(name, "sequences", [
        Contender(OURS, step, size, model.parameter_count(), limit("matmul", where))])
    if DALLE in bars:
        _add_dalle(work, s, length, where, size, bars[DALLE])
    label = f"{GPT2}, {where.precision}"
    gpt2 = peers.build(lambda: peers.gpt2(WORDS + K, length + N, *twin))
    if isinstance(gpt2, str):
        work.missing[label] = gpt2
        return work
    gpt2, tokens = gpt2.to(where.device), batch_of(size, length, where).tokens
    loss = _autocast_loss(where, lambda: gpt2(tokens, labels=tokens).loss)
    work.contenders.append(
        Contender(label, _step(gpt2, loss), size, peers.size(gpt2), limit("matmul", where)))
    if where.dtype is torch.bfloat16:
        work.bars[label] = bars[GPT2]
    else:
        wanted = f"{GPT2}, bfloat16"
        work.missing[wanted] = "this processor has no bfloat16 arithmetic"
        work.bars[wanted] = bars[GPT2]
    return work


def _add_dalle(work: Work, s: Stage2Config, length: int, where: Device, size: int, bar: float) -> None:
    work.bars[DALLE] = bar
    model = peers.build(
        lambda: peers.dalle(WORDS, K, length, s.dim, s.depth, s.heads, s.head_dim))
    if isinstance(model, str):
        work.missing[DALLE] = model
        return
    model, data = model.to(where.device), batch_of(size, length, where)
    step = _step(model, lambda: model(data.text, data.codes.flatten(1), return_loss=True))
    plain = Device(where.device, torch.float32)
    work.contenders.append(
        Contender(DALLE, step, size, peers.size(model, "vae."), limit("matmul", plain)))


def _autocast_loss(where: Device, loss: Callable) -> Callable:
    def call() -> torch.Tensor:
        with where.autocast():
            return loss()
    return call


def _step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A peer's update: AdamW and clipping, as its users train it."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
    return step


def sampling(name: str, s: Stage2Config, length: int, where: Device, size: int, twin: Twin,
             bars: dict[str, float], few: int = 8) -> Work:
    """All 256 codes of `size` images, with caches, in the type that trainings compute in.

    dalle-pytorch draws single tokens of `few` images in the middle of the grid: its sampler has no
    cache at guidance scale 1, where it drops the one it is given, and a whole grid takes minutes.
    """
    model, data = our_model(s, length, where).eval(), batch_of(size, length, where)
    seeds = torch.arange(size, device=where.device)
    work = Work(name, "tokens", [Contender(
        OURS, lambda: generate_images(model, data.text, seeds, top_k=TOP_K, dtype=where.dtype),
        size * N, model.parameter_count(), limit("matmul", where))], dict(bars))
    gpt2 = peers.build(lambda: peers.gpt2(WORDS + K, length + N, *twin))
    if isinstance(gpt2, str):
        work.missing[GPT2] = gpt2
    else:
        gpt2 = gpt2.to(where.device, where.dtype).eval()

        def theirs() -> None:
            gpt2.generate(data.text, attention_mask=torch.ones_like(data.text), max_new_tokens=N,
                          min_new_tokens=N, do_sample=True, top_k=TOP_K, use_cache=True,
                          pad_token_id=0)

        work.contenders.append(
            Contender(GPT2, theirs, size * N, peers.size(gpt2), limit("matmul", where)))
    _add_dalle_token(work, s, length, where, few)
    return work


def _add_dalle_token(work: Work, s: Stage2Config, length: int, where: Device, few: int) -> None:
    model = peers.build(
        lambda: peers.dalle(WORDS, K, length, s.dim, s.depth, s.heads, s.head_dim))
    if isinstance(model, str):
        work.missing[DALLE] = model
        return
    model, (text, codes) = model.to(where.device).eval(), batch_of(few, length, where)
    half = codes.flatten(1)[:, : N // 2]
    work.contenders.append(Contender(
        DALLE, torch.inference_mode()(lambda: model(text, half)), few, peers.size(model, "vae.")))


@torch.inference_mode()
def seconds_per_token(s: Stage2Config, length: int, where: Device, size: int) -> np.ndarray:
    """Seconds of each of the 256 sampling steps of our model."""
    model, data = our_model(s, length, where).eval(), batch_of(size, length, where)
    times = [time.perf_counter()]

    def note(*_) -> None:
        synchronize()
        times.append(time.perf_counter())

    hook = model.image_head.register_forward_hook(note)
    generate_images(model, data.text, torch.arange(size, device=where.device), dtype=where.dtype)
    hook.remove()
    return np.diff(times)[1:]  # the first step also reads the caption
