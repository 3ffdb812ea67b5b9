"""Sampling from the transformer, one token per step with a preallocated key/value cache.

A row of the result depends on its prompt and its seed only, not on the batch it is drawn in: the
random number of (seed, step) is an integer hash, and logits are float32 by default (in bfloat16 the
rounding of a matrix product may change with the batch size, and with it a choice).
"""

import torch
from torch import Tensor

from tevq.config import SettingsError
from tevq.data.captions import BOS, EOS, PAD
from tevq.models.transformer import Transformer

MASK = 0xFFFFFFFF  # 32 bits


def uniform(seeds: Tensor, step: int | Tensor) -> Tensor:
    """Random numbers of (seed, step): int64 (B,) -> float32 (B,) in [0, 1); steps (n, 1): (n, B).

    A 32-bit integer hash (two multiply-xorshift rounds by C. Wellons, "hash prospector", applied to
    the two halves of the seed and the step), equal on every device. All products stay below 2**63.
    """
    x = torch.zeros_like(seeds)
    for word in (seeds, seeds >> 32, step * 0x9E3779B9):
        x = x ^ (word & MASK)
        x = ((x ^ (x >> 16)) + 0x6A09E667) & MASK  # the constant: zero must not stay zero
        x = ((x ^ (x >> 15)) * 0x21F0AAAD) & MASK
        x = ((x ^ (x >> 15)) * 0x735A2D97) & MASK
        x = x ^ (x >> 15)
    return (x >> 8).float() / (1 << 24)


def choose(logits: Tensor, u: Tensor, temperature: float = 1.0, top_k: int | None = None,
           greedy: bool = False) -> Tensor:
    """Draw a token per row: logits (B, n) float32, u (B,) uniform in [0, 1) -> int64 (B,).

    Inverts the cumulative distribution of softmax(logits / temperature), restricted to the `top_k`
    largest logits if given; `greedy` takes the largest. Entries of -inf are never drawn.
    """
    if greedy:
        return logits.argmax(-1)
    logits, order = logits.topk(top_k, -1) if top_k and top_k < logits.shape[-1] else (logits, None)
    weights = torch.softmax(logits / temperature, -1)
    cumulative = weights.cumsum(-1)
    # scaled by the total, so that rounding cannot place u beyond the last possible token
    index = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)
    last = (weights.shape[-1] - 1 - (weights > 0).long().flip(-1).argmax(-1))[:, None]
    index = torch.minimum(index, last)  # (B, 1)
    return (index if order is None else order.gather(-1, index))[:, 0]


def check_options(temperature: float, top_k: int | None) -> None:
    """Raises SettingsError for options that `choose` cannot use."""
    if isinstance(temperature, bool) or not 0 < temperature < float("inf"):
        raise SettingsError(f"temperature = {temperature!r} must be > 0; use greedy=True for 0")
    if top_k is not None and (type(top_k) is not int or top_k < 1):  # True is no number
        raise SettingsError(f"top_k = {top_k!r} must be an integer >= 1, or None for no limit")


@torch.inference_mode()
def generate_images(model: Transformer, text: Tensor, seeds: Tensor, temperature: float = 1.0,
                    top_k: int | None = None, greedy: bool = False,
                    dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw one code grid per caption: text (B, L), seeds (B,) int64 -> codes (B, h, w) int64."""
    check_options(temperature, top_k)
    with model.sampling(dtype):
        B, N = len(text), model.N
        cache, codes = model.cache(B, text), seeds.new_zeros((B, N))
        x, u = model.embed_text(text), uniform(seeds, torch.arange(N, device=seeds.device)[:, None])
        for step in range(N):
            logits = model.image_logits(model.trunk(x, cache)[:, -1])
            codes[:, step] = choose(logits, u[step], temperature, top_k, greedy)
            x = model.embed_image(codes, step, step + 1)
        return codes.view(B, model.h, model.h)


@torch.inference_mode()
def generate_captions(model: Transformer, codes: Tensor, seeds: Tensor, temperature: float = 1.0,
                      top_k: int | None = None, greedy: bool = False,
                      dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw one caption per code grid: codes (B, h, w), seeds (B,) -> ids (B, L) int64.

    A row is BOS, words, EOS, then PAD; a row that reaches L words has no EOS. PAD and BOS are never
    drawn. Stops as soon as every row has ended.
    """
    check_options(temperature, top_k)
    with model.sampling(dtype):
        B, L = len(codes), model.L
        cache, text = model.cache(B), seeds.new_full((B, L), PAD)
        text[:, 0] = BOS
        u = uniform(seeds, torch.arange(L, device=seeds.device)[:, None])
        ended = seeds.new_zeros(B, dtype=torch.bool)
        x = torch.cat((model.embed_image(codes.flatten(1)), model.embed_text(text, 0, 1)), 1)
        for step in range(1, L):
            logits = model.text_logits(model.trunk(x, cache)[:, -1])
            logits[:, [PAD, BOS]] = float("-inf")
            word = choose(logits, u[step], temperature, top_k, greedy)
            text[:, step] = word.masked_fill(ended, PAD)
            ended |= word == EOS
            if bool(ended.all()):
                break
            x = model.embed_text(text, step, step + 1)
        return text
