"""Layers of the transformer: linear maps, layer norm, and embeddings that see their neighbours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """Linear map without bias; float32 weights, computed in the type of its input.

    Casting the weight (small) at each use replaces autocast, which would also cast activations.
    """

    cast: Tensor | None = None  # the weight in the type of the inputs, while sampling

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0):
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=scale / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) if self.cast is None else self.cast)


class LayerNorm(nn.Module):
    """Layer norm with a gain and no bias, in the type of its input (statistics are float32)."""

    def __init__(self, dim: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain.to(x.dtype))


class NeighbourEmbedding(nn.Module):
    """Embedding of a token together with earlier tokens of the same block.

    `sources` (positions, n) holds, for each position, the n positions it looks at; -1 is none.
    The n embeddings are concatenated and mapped to `dim`: a convolution over the token block.
    With n = 1 it is a plain embedding.
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
        training = torch.is_grad_enabled() and near.device.type == "cpu"
        if training and dtype == torch.float32 and self.mix is not None:
            return self.summed(near)
        x = F.embedding(near, self.table).to(dtype).flatten(2)  # (B, S, n * width)
        return x if self.mix is None else self.mix(x)

    def summed(self, near: Tensor) -> Tensor:
        """The same up to rounding: every row of the table is mapped once, then rows are summed.

        In a batch, tokens outnumber the table: measured, a quarter of the time on CPUs in float32
        (a sum in bfloat16 would also round n times).
        """
        (size, width), n = self.table.shape, near.shape[2]
        weight = self.mix.weight.view(-1, n, width)
        mapped = torch.einsum("kw,dnw->nkd", self.table, weight).flatten(0, 1)
        rows = near + size * torch.arange(n)
        return F.embedding_bag(rows.flatten(0, 1), mapped, mode="sum").view(*near.shape[:2], -1)


def text_offsets(length: int, window: int) -> Tensor:
    """(length, window): each position and the window - 1 before it, -1 outside the block."""
    sources = torch.arange(length)[:, None] - torch.arange(window)
    return sources.clamp(min=-1)


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
