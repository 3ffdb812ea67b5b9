"""The official generator, of preset `paper`: DALL-E's decoder, for both directions.

Facts from the official code of Stage 2 (wcshin-git/Bidirectional_DALLE), which changed
DALLE-pytorch. A code sees itself and codes before it. Which of them depends on the layer: all,
those in its row, in its column, in the 5x5 window around it, then all again. Besides,

* [text | image]: words see the words before them, codes see all words. PAD is hidden from all.
* [image | text]: words see all codes and the words before them. PAD is not hidden:
  only PADs stand behind a PAD, and a PAD is never a target.

A PAD has the id of its position, V ... V + L - 1. These ids share the softmax with the words in
training, as officially. Sampling never draws them; officially it can, and no reader knows them.
Letters are those of transformer.py.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tevq.config import unknown
from tevq.data.captions import PAD
from tevq.models import transformer
from tevq.models.transformer import DIRECTIONS, Transformer

PATTERNS = ("full", "row", "column", "window")  # of layers 0, 1, 2, 3, and again


def visible(name: str, direction: str, text_length: int, grid: int) -> Tensor:
    """(T, T) bool: [i, j] is True where position i sees position j; PAD counts as a word."""
    at, T = torch.arange(grid * grid), text_length + grid * grid
    rows, columns = at[:, None] // grid - at // grid, at[:, None] % grid - at % grid
    near = {"full": rows >= 0, "row": rows == 0, "column": columns == 0,
            "window": (rows <= 2) & (columns.abs() <= 2)}[name]
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    image = slice(text_length, None) if direction == "t2i" else slice(grid * grid)
    seen[image, image] &= near
    return seen


def sinusoids(grid: int, dim: int) -> Tensor:
    """(N, dim): one half of the channels for the row, one for the column; sines, then cosines."""
    half = 2 * math.ceil(dim / 4)
    angles = torch.arange(grid)[:, None] / 10_000 ** (torch.arange(0, half, 2) / half)
    axis = torch.cat((angles.sin(), angles.cos()), 1)  # (grid, half)
    return torch.cat((axis.repeat_interleave(grid, 0), axis.repeat(grid, 1)), 1)[:, :dim]


@dataclass
class Cache:
    """What the positions of a batch see; with `kept`, keys and values of the first `length`."""

    seen: Tensor  # bool (patterns, T, T)
    words: Tensor | None = None  # bool (B, 1, 1, T), False at PAD; None: nothing is hidden
    kept: Tensor | None = None  # (depth, 2, B, heads, T, head_dim)
    length: int = 0

    def extend(self, layer: int, kv: Tensor) -> Tensor:
        """kv (2, B, heads, S, head_dim) behind what is kept; itself where nothing is."""
        if self.kept is None:
            return kv
        stop = self.length + kv.shape[3]
        self.kept[layer, :, :, :, self.length : stop] = kv
        return self.kept[layer, :, :, :, :stop]


class Block(nn.Module):
    """Pre-norm attention, then pre-norm GEGLU, each scaled (LayerScale) and added."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * inner, bias=False), nn.Linear(inner, dim)
        self.up, self.down = nn.Linear(dim, 8 * dim), nn.Linear(4 * dim, dim)
        self.scale1, self.scale2 = (nn.Parameter(torch.full((dim,), 0.1)) for _ in "12")

    def forward(self, x: Tensor, layer: int, mask: Tensor, cache: Cache) -> Tensor:
        """x (B, S, dim) -> (B, S, dim); mask (S, positions so far) or (B, 1, S, positions)."""
        B, S, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        k, v = cache.extend(layer, qkv[1:])
        y = F.scaled_dot_product_attention(qkv[0].to(k.dtype), k, v, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(B, S, -1).to(qkv.dtype)) * self.scale1
        values, gates = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(values * F.gelu(gates)) * self.scale2


class Official(Transformer):
    """Arguments and methods as of `Transformer`; `dtype` is that of products, the rest float32."""

    def __init__(self, V: int, K: int, text_length: int, grid: int, dim: int = 256, depth: int = 8,
                 heads: int = 8, head_dim: int = 64, dtype: torch.dtype = torch.float32):
        nn.Module.__init__(self)  # no part of our own architecture
        self.V, self.K, self.L, self.h, self.N = V, K, text_length, grid, grid * grid
        self.heads, self.head_dim, self.depth, self.dtype = heads, head_dim, depth, dtype
        self.words, self.codes = nn.Embedding(V + text_length, dim), nn.Embedding(K, dim)
        self.text_position = nn.Embedding(text_length, dim)
        self.register_buffer("image_position", sinusoids(grid, dim), persistent=False)
        self.blocks = nn.ModuleList(Block(dim, heads, head_dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, V + text_length + K)
        for direction in DIRECTIONS:
            masks = [visible(name, direction, text_length, grid) for name in PATTERNS]
            self.register_buffer(f"seen_{direction}", torch.stack(masks), persistent=False)

    def embed_text(self, text: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        at, words = torch.arange(self.L, device=text.device)[start:stop], text[:, start:stop]
        return self.words(torch.where(words == PAD, self.V + at, words)) + self.text_position(at)

    def embed_image(self, codes: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.codes(codes[:, start:stop]) + self.image_position[start:stop]

    def autocast(self) -> torch.autocast:
        """Products within are computed in `dtype`. (CUDA graphs forbid its cache of weights.)"""
        return torch.autocast(self.norm.weight.device.type, self.dtype, cache_enabled=False,
                              enabled=self.dtype != torch.float32)

    def trunk(self, x: Tensor, cache: Cache) -> Tensor:
        """All blocks: x (B, S, dim) -> (B, S, dim). The cache is advanced by S."""
        stop = cache.length + x.shape[1]
        masks = cache.seen[:, cache.length : stop, :stop]
        if cache.words is not None:  # (patterns, B, 1, S, stop)
            masks = masks[:, None, None] & cache.words[..., :stop]
        with self.autocast():
            for layer, block in enumerate(self.blocks):
                x = block(x, layer, masks[layer % len(PATTERNS)], cache)
        cache.length = stop
        return x

    def logits(self, x: Tensor, start: int, stop: int | None) -> Tensor:
        """Trunk output (..., dim) -> float32 logits start ... stop - 1 of words, PAD ids, codes."""
        with self.autocast():
            return F.linear(self.norm(x), self.head.weight[start:stop],
                            self.head.bias[start:stop]).float()

    def text_logits(self, x: Tensor) -> Tensor:
        return self.logits(x, 0, self.V)

    def image_logits(self, x: Tensor) -> Tensor:
        return self.logits(x, self.V + self.L, None)

    def forward(self, text: Tensor, codes: Tensor, direction: str) -> tuple[Tensor, Tensor]:
        """As in `Transformer`, but text logits are of V + L ids, and i2t predicts BOS, too."""
        if direction not in DIRECTIONS:
            raise unknown("direction", direction, DIRECTIONS)
        words, image = self.embed_text(text), self.embed_image(codes.flatten(1))
        if direction == "t2i":
            x, ends = self.trunk(torch.cat((words, image), 1), self.cache(0, text)), self.L - 1
            return self.logits(x[:, :ends], 0, self.V + self.L), self.image_logits(x[:, ends:-1])
        x, ends = self.trunk(torch.cat((image, words), 1), self.cache(0)), self.N - 1
        return self.logits(x[:, ends:-1], 0, self.V + self.L), self.image_logits(x[:, :ends])

    def cache(self, batch: int, text: Tensor | None = None) -> Cache:
        """Of [text | image] with text (B, L), else of [image | text]; batch = 0 keeps nothing."""
        found, on = Cache(self.seen_i2t), self.norm.weight.device
        if text is not None:
            known = F.pad(text != PAD, (0, self.N), value=True)[:, None, None]
            found = Cache(self.seen_t2i, known)
        if batch:
            found.kept = torch.zeros(
                (self.depth, 2, batch, self.heads, self.L + self.N, self.head_dim), device=on,
                dtype=torch.float32 if on.type == "cpu" else self.dtype)
        return found


transformer.ARCHITECTURES["official"] = Official
