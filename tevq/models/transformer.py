"""One decoder-only transformer for both directions of text <-> image (paper, sections 3.1 and 4).

A sequence is a text block of L word tokens (BOS words EOS PAD...) and an image block of N = h*w
codes in raster order: [text | image] for text -> image ("t2i"), [image | text] for image -> text
("i2t"). The same weights serve both. The position of a token fixes its modality, so the text head
runs at text positions only and the image head at image positions only; this is the modality mask
of the official code without its T x (V + K) logits.

Inputs are short causal convolutions over embeddings: a word token also sees the `window - 1` words
before it, an image token also sees the known codes around the position it predicts. Both only
reach backwards, and never across modalities.

Letters: B batch, L text length, h grid side, N = h*h image tokens, T = L + N, V words, K codes.
"""

import math
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tevq.config import Settings, unknown
from tevq.data.captions import LENGTH, PAD, vocabulary
from tevq.data.source import class_names
from tevq.models.cpu_kernels import RowSums, causal_attention
from tevq.runs.run import open_run

DIRECTIONS = ("t2i", "i2t")


class Linear(nn.Linear):
    """Linear map without bias; float32 weights, computed in the type of its input.

    Casting the weight (small) at each use replaces autocast, which would also cast activations.
    """

    cast: Tensor | None = None  # while sampling: the weight (in, out), in the type of the inputs

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0):
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=scale / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) if self.cast is None else x @ self.cast


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, in the type of its input (statistics are float32)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # beside a float32 gain, which CPUs take, mean and deviation are kept in float32
        gain = self.gain if x.device.type == "cpu" else self.gain.to(x.dtype)
        return F.layer_norm(x, gain.shape, gain)


class NeighbourEmbedding(nn.Module):
    """Embedding of a token together with earlier tokens of the same block.

    `sources` (positions, n) holds, for each position, the n positions it looks at; -1 is none.
    The n embeddings are concatenated and mapped to `dim`; with n = 1 it is a plain embedding.
    """

    def __init__(self, size: int, sources: Tensor, dim: int):
        super().__init__()
        n = sources.shape[1]
        width = dim if n == 1 else dim // 2
        self.table = nn.Parameter(torch.randn(size + 1, width))  # last row: no such neighbour
        self.mix = Linear(n * width, dim) if n > 1 else None
        self.register_buffer("sources", sources, persistent=False)

    def forward(self, tokens: Tensor, at: slice, dtype: torch.dtype) -> Tensor:
        """tokens (B, positions) -> (B, positions in `at`, dim), of the given type."""
        none = torch.full_like(tokens[:, :1], len(self.table) - 1)
        padded = torch.cat((tokens, none), 1)  # index -1 is the last column
        near = padded[:, self.sources[at]]  # (B, S, n)
        if torch.is_grad_enabled() and near.device.type == "cpu":
            return self.summed(near).to(dtype)
        x = F.embedding(near, self.table).to(dtype).flatten(2)  # (B, S, n * width)
        return x if self.mix is None else self.mix(x)

    def summed(self, near: Tensor) -> Tensor:
        """The same up to rounding, in float32: every row of the table is mapped once, then summed.

        In a batch, tokens outnumber the table: measured on a CPU with AMX, 0.6 of the time that
        bfloat16 products take, and half their error.
        """
        (size, width), n = self.table.shape, near.shape[2]
        weight = None if self.mix is None else self.mix.weight.view(-1, n, width)
        mapped = (self.table if weight is None else
                  torch.einsum("kw,dnw->nkd", self.table, weight).flatten(0, 1))
        rows = near + size * torch.arange(n)
        return RowSums.apply(rows.flatten(0, 1), mapped).view(*near.shape[:2], -1)


def text_offsets(length: int, window: int) -> Tensor:
    """(length, window): each position and the window - 1 before it, -1 outside the block."""
    return (torch.arange(length)[:, None] - torch.arange(window)).clamp(min=-1)


def image_offsets(grid: int, reach: int) -> Tensor:
    """(N, 1 + n): each position, then the other known codes near the next one, -1 outside the grid.

    Near: at most `reach` rows up and `reach` columns aside.
    """
    position = torch.arange(grid * grid)[:, None]
    near = [(-up, aside) for up in range(reach + 1) for aside in range(-reach, reach + 1)
            if up or aside < -1]  # aside = -1 in the same row is the position itself
    rows, columns = torch.tensor(near, dtype=torch.long).view(-1, 2).T
    rows, columns = (position + 1) // grid + rows, (position + 1) % grid + columns
    outside = (rows < 0) | (columns < 0) | (columns >= grid)
    return torch.cat((position, (rows * grid + columns).masked_fill(outside, -1)), 1)


class Cache:
    """Preallocated keys and values of the first `length` positions of every layer."""

    def __init__(self, depth: int, shape: tuple[int, int, int, int], dtype, device):
        """`shape` is (B, heads, positions, head_dim). Zeros: memory written in order is faster."""
        self.kept = torch.zeros((depth, 2, *shape), dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, kv: Tensor) -> Tensor:
        """Write kv (2, B, heads, S, head_dim) after `length`; return all so far."""
        stop = self.length + kv.shape[3]
        self.kept[layer, :, :, :, self.length : stop] = kv
        return self.kept[layer, :, :, :, :stop]


class Block(nn.Module):
    """Pre-norm attention and MLP (GELU), each added to the residual stream."""

    def __init__(self, dim: int, heads: int, head_dim: int, depth: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        inner, scale = heads * head_dim, 1 / math.sqrt(2 * depth)
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.qkv, self.out = Linear(dim, 3 * inner), Linear(inner, dim, scale)
        self.up, self.down = Linear(dim, 4 * dim), Linear(4 * dim, dim, scale)

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | None = None) -> Tensor:
        """x (B, S, dim) -> (B, S, dim); with a cache, x are the S positions after its length."""
        B, S, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, self.head_dim)
        if cache is None:
            y = causal_attention(qkv)  # (B, S, heads, head_dim)
        else:
            qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, heads, S, head_dim)
            k, v = cache.extend(layer, qkv[1:])
            if layer == len(cache.kept) - 1:  # from here on, only the last position is asked for
                x, qkv = x[:, -1:], qkv[:, :, :, -1:]
                cache.length += S
            y = F.scaled_dot_product_attention(qkv[0], k, v, is_causal=qkv.shape[3] > 1)
            y = y.transpose(1, 2)
        x = x + self.out(y.flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Losses(NamedTuple):
    """Scalars, float32, in nats per token; `total` is the one to minimise."""

    total: Tensor
    text: Tensor
    image: Tensor


class Transformer(nn.Module):
    """Joint distribution of captions and code grids, in either order.

    Arguments
      V, K                words and codes
      text_length, grid   L and h (= w)
      dim, depth          width of the residual stream and number of blocks
      heads, head_dim     of the attention; its inner width is heads * head_dim
      window              words seen by a text embedding, >= 1
      neighbours          reach of an image embedding: it sees the known codes at most so many
                          rows above and columns beside the one it predicts; 0 = its own only
      dtype               type of the activations in `forward` and `loss`; weights stay float32
    """

    def __init__(self, V: int, K: int, text_length: int, grid: int, dim: int = 128,
                 depth: int = 4, heads: int = 2, head_dim: int = 64, window: int = 6,
                 neighbours: int = 1, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.V, self.K, self.L, self.h, self.N = V, K, text_length, grid, grid * grid
        self.heads, self.head_dim, self.depth, self.dtype = heads, head_dim, depth, dtype
        self.words = NeighbourEmbedding(V, text_offsets(text_length, window), dim)
        self.codes = NeighbourEmbedding(K, image_offsets(grid, neighbours), dim)
        self.text_position = nn.Parameter(0.02 * torch.randn(text_length, dim))
        self.row = nn.Parameter(0.02 * torch.randn(grid, 1, dim))
        self.column = nn.Parameter(0.02 * torch.randn(1, grid, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, head_dim, depth) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.text_head, self.image_head = Linear(dim, V, 0.0), Linear(dim, K, 0.0)

    def embed_text(self, text: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Inputs of text positions start ... stop - 1, text (B, L): (B, stop - start, dim)."""
        at = slice(start, stop)
        return self.words(text, at, self.dtype) + self.text_position[at].to(self.dtype)

    def embed_image(self, codes: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Inputs of image positions start ... stop - 1, codes (B, N): (B, stop - start, dim)."""
        at = slice(start, stop)
        position = (self.row + self.column).flatten(0, 1)  # (N, dim)
        return self.codes(codes, at, self.dtype) + position[at].to(self.dtype)

    def trunk(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """All blocks: x (B, S, dim) -> (B, S, dim); (B, 1, dim) with a cache, advanced by S."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        return x

    def text_logits(self, x: Tensor) -> Tensor:
        """Trunk output (..., dim) -> logits of the next word (..., V), float32."""
        return self.text_head(self.norm(x)).float()

    def image_logits(self, x: Tensor) -> Tensor:
        """Trunk output (..., dim) -> logits of the next code (..., K), float32."""
        return self.image_head(self.norm(x)).float()

    def forward(self, text: Tensor, codes: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits.

        text (B, L) and codes (B, h, w) are int64; `direction` is "t2i" or "i2t". Returns text
        logits (B, L-1, V) of words 1 ... L-1 (word 0 is BOS, given), and image logits of codes
        0 ... N-1 (B, N, K) for t2i, of codes 1 ... N-1 (B, N-1, K) for i2t, which begins with one.
        """
        words, grid = self.embed_text(text), self.embed_image(codes.flatten(1))
        L, N = self.L, self.N
        if direction == "t2i":
            words, grid, _ = self.trunk(torch.cat((words, grid), 1)).split((L - 1, N, 1), 1)
        elif direction == "i2t":
            x = self.trunk(torch.cat((grid, words), 1))
            grid, _, words, _ = x.split((N - 1, 1, L - 1, 1), 1)
        else:
            raise unknown("direction", direction, DIRECTIONS)
        return self.text_logits(words), self.image_logits(grid)

    def loss(self, text: Tensor, codes: Tensor, direction: str, target_weight: float = 7.0
             ) -> Losses:
        """Mean cross-entropies; total = (given + w * generated) / (1 + w), w = 7 officially.

        PAD targets are ignored. Arguments as in `forward`.
        """
        text_logits, image_logits = self(text, codes, direction)
        text_target = text[:, self.L - text_logits.shape[1] :]
        image_target = codes.flatten(1)[:, self.N - image_logits.shape[1] :]
        text_loss = F.cross_entropy(text_logits.flatten(0, 1), text_target.flatten(),
                                    ignore_index=PAD)
        image_loss = F.cross_entropy(image_logits.flatten(0, 1), image_target.flatten())
        given, generated = {"t2i": (text_loss, image_loss), "i2t": (image_loss, text_loss)}[
            direction]
        total = (given + target_weight * generated) / (1 + target_weight)
        return Losses(total, text_loss.detach(), image_loss.detach())

    @contextmanager
    def sampling(self, dtype: torch.dtype):
        """Within the block, activations have this type, and every weight is cast once."""
        # casting a weight costs a token as much as using it, and CPUs are faster with its transpose
        layers = [layer for layer in self.modules() if isinstance(layer, Linear)]
        before, self.dtype = self.dtype, dtype
        try:
            for layer in layers:
                layer.cast = layer.weight.detach().T.to(dtype).contiguous()
            yield self
        finally:
            self.dtype = before
            for layer in layers:
                layer.cast = None

    def cache(self, batch: int, text: Tensor | None = None) -> Cache:
        """Empty cache for `batch` sequences, in the type of the activations.

        text: the captions (B, L) where they are given; other architectures look at them.
        """
        shape = (batch, self.heads, self.L + self.N, self.head_dim)
        return Cache(self.depth, shape, self.dtype, self.row.device)


ARCHITECTURES = {"own": Transformer}  # official.py adds the official one


def build(settings: Settings, dtype: torch.dtype = torch.float32) -> Transformer:
    """A new transformer for the captions and codes of these settings; activations in `dtype`."""
    s, words = settings.stage2, vocabulary(class_names(settings.data.source))
    side = settings.data.scene // settings.stage1.stride  # h = w
    extras = {"window": s.window, "neighbours": s.neighbours} if s.architecture == "own" else {}
    return ARCHITECTURES[s.architecture](
        len(words), settings.stage1.K, LENGTH, side, s.dim, s.depth, s.heads, s.head_dim,
        dtype=dtype, **extras)


def load(settings: Settings, results=None, device: torch.device | str = "cpu") -> Transformer:
    """The trained generator, frozen, float32. Raises SettingsError if there is none."""
    return open_run(settings, "stage2", results).restore(build(settings), device)
