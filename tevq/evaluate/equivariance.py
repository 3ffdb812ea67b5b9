"""Translation equivariance in the quantized space: does Fq(T1 x) = T2 Fq(x) hold (equation 2)?

One item is drawn on an empty scene, moved, and the codes of the half-sized window that travels with
it are compared. Four measures, because different things break them:

* `official`: the five places of the official code, all ten pairs of quarter-grid windows;
* `grid`: shifts by whole strides, up to half a scene (32 px); borders, attention, normalisation;
* `subgrid`: shifts by 1 ... stride - 1 px, against unshifted codes at the nearest cell; aliasing;
* `context`: the item stays, the other quadrants are empty or filled; attention and normalisation.

Background cells agree easily and a collapsed codebook always does, so each comes over all cells
and over foreground cells only, with Cohen's kappa (agreement beyond what code frequencies give). A
small vocabulary agrees more often, too: `merged` measures again with neighbouring codes as one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tevq.data import render
from tevq.data.source import SourceImages
from tevq.models.rivals import merge_codes

Shift = tuple[int, int]  # pixels down, pixels right


@dataclass(frozen=True)
class Encoded:
    """Scenes as the quantizer sees them: features (B, D, h, w), codes and ink (B, h, w)."""

    features: torch.Tensor
    codes: torch.Tensor
    ink: torch.Tensor  # True where the cell's pixels show any of the item

    def window(self, row: int, col: int) -> Encoded:
        """The half-sized window whose top-left cell is (row, col)."""
        n = self.codes.shape[-1] // 2
        part = (..., slice(row, row + n), slice(col, col + n))
        return Encoded(self.features[part], self.codes[part], self.ink[part])


Pair = tuple[Encoded, Encoded]  # two windows of the same size, the first the reference


class Agreement:
    """Sums over the cells of pairs of windows; read them with `rows`."""

    def __init__(self, K: int, pairs: Iterable[Pair]):
        # per kind of cells (K, K): how often a cell had code i in the reference and j when compared
        self.joint = {"all": 0, "foreground": 0}
        self.error, self.size = dict(self.joint), dict(self.joint)
        for a, b in pairs:
            ink = a.ink | b.ink
            for cells, mask in (("all", torch.ones_like(ink)), ("foreground", ink)):
                codes = torch.bincount(a.codes[mask] * K + b.codes[mask], minlength=K**2)
                self.joint[cells] += codes.view(K, K)
                difference = (a.features - b.features).square() * mask[:, None]
                self.error[cells] += float(difference.sum())
                self.size[cells] += float((a.features.square() * mask[:, None]).sum())

    def rows(self, merge: torch.Tensor | None = None, **labels: Any) -> list[dict[str, Any]]:
        """For all and for foreground cells: `agreement`, `kappa`, `feature_error`, `n` cells.

        merge (K,): the group of every code, when codes of one group count as the same code.
        `feature_error` is |F(T1 x) - T2 F(x)| / |F(x)| over the compared cells. `kappa` is None
        when one code covers everything (a collapsed codebook).
        """
        rows = []
        for cells, joint in self.joint.items():
            if merge is not None:
                member = torch.nn.functional.one_hot(merge.to(joint.device)).double()
                joint = member.T @ joint.double() @ member
            n = int(joint.sum())
            observed = float(joint.trace()) / max(n, 1)
            share = torch.stack([joint.sum(1), joint.sum(0)]).double() / max(n, 1)
            chance = float((share[0] * share[1]).sum())
            kappa = None if chance > 1 - 1e-9 else (observed - chance) / (1 - chance)
            error = math.sqrt(self.error[cells] / max(self.size[cells], 1e-12))
            rows.append(labels | {"cells": cells, "agreement": observed, "kappa": kappa,
                                  "feature_error": error, "n": n,
                                  "codes_used": int((share[0] > 0).sum())})
        return rows


@torch.no_grad()
def encode(model: Any, x: torch.Tensor) -> Encoded:
    """x (B, 3, S, S) in [-1, 1] -> features and codes, float32.

    `model` has `stride`, `encode` and `quantizer`, as VQGAN does.
    """
    features = model.encode(x.contiguous(memory_format=torch.channels_last)).float()
    bright = (x.amax(1) > -1 + 1e-3).float()  # (B, S, S)
    ink = torch.nn.functional.max_pool2d(bright[:, None], model.stride)[:, 0] > 0
    return Encoded(features, model.quantizer.nearest(features), ink)


class Probe:
    """Items in fixed random colours that can be drawn anywhere; the stimulus of all measures."""

    def __init__(self, items: SourceImages, count: int, seed: int,
                 device: torch.device | str = "cpu"):
        random = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(items.labels), generator=random)
        self.count, self.device = min(count, len(index)), device
        self.images = items.images[index[: self.count]]
        self.size = render.scene_size(self.images.shape[-1])  # S
        self.offsets = render.offsets(self.size)
        # for the context measure: three items (of scene 0, its own among them), and all colours
        self.others = items.images[index.roll(1)[: self.count * 3] % len(items.labels)]
        self.colour = torch.randint(4, (self.count,), generator=random)
        self.other_colour = torch.randint(4, (len(self.others),), generator=random)

    def at(self, row: int, col: int) -> torch.Tensor:
        """Scenes (count, 3, S, S) with one item, its top-left pixel at (row, col)."""
        offset = torch.tensor([row, col]).expand(self.count, 2)
        x = render.draw(self.images, self.colour, offset, torch.arange(self.count), self.count)
        return x.to(self.device)

    def crowded(self, quadrant: int) -> torch.Tensor:
        """Scenes with the item in `quadrant` and other items in the other three."""
        x = self.at(*self.offsets[quadrant])
        rest = [self.offsets[q] for q in range(4) if q != quadrant]
        offset = torch.tensor(rest).repeat(self.count, 1)
        scene = torch.arange(self.count).repeat_interleave(3)[: len(self.others)]
        other = render.draw(self.others, self.other_colour, offset[: len(scene)], scene, self.count)
        return torch.maximum(x, other.to(self.device))


def nearest_cell(pixels: int, stride: int) -> int:
    """The aligned position nearest to a shift, in cells; half a stride counts as not yet moved."""
    return math.ceil(pixels / stride - 0.5)


def shifts(steps: Iterable[int]) -> list[Shift]:
    """Every step right, down, and diagonally."""
    return [s for d in steps for s in ((0, d), (d, 0), (d, d))]


def compare_shifts(model: Any, probe: Probe, shifts: Iterable[Shift]) -> Iterator[Pair]:
    """Equation 2 for each shift of the item from the upper-left quadrant."""
    row, col = probe.offsets[0]
    reference = encode(model, probe.at(row, col)).window(0, 0)
    for down, right in shifts:
        moved = encode(model, probe.at(row + down, col + right))
        cell = nearest_cell(down, model.stride), nearest_cell(right, model.stride)
        yield reference, moved.window(*cell)


def _alone(model: Any, probe: Probe, place: int) -> tuple[Encoded, Shift]:
    """The window around the item at a place, and its top-left cell."""
    at = probe.offsets[place]
    cell = tuple((a - b) // model.stride for a, b in zip(at, probe.offsets[0], strict=True))
    return encode(model, probe.at(*at)).window(*cell), cell


def official(model: Any, probe: Probe) -> Iterator[Pair]:
    """The official ShiftEqMetric: centre and quadrants, ten pairs of windows."""
    return itertools.combinations([_alone(model, probe, place)[0] for place in range(5)], 2)


def context(model: Any, probe: Probe) -> Iterator[Pair]:
    """The same item in the same quadrant, alone or among three others."""
    for quadrant in range(4):
        alone, cell = _alone(model, probe, quadrant)
        yield alone, encode(model, probe.crowded(quadrant)).window(*cell)


def compare(model: Any, probe: Probe) -> dict[str, Agreement]:
    """The comparisons behind all four measures."""
    stride, K = model.stride, model.quantizer.K
    grid, subgrid = range(stride, probe.size // 2 + 1, stride), range(1, stride)
    return {"official": Agreement(K, official(model, probe)),
            "grid": Agreement(K, compare_shifts(model, probe, shifts(grid))),
            "subgrid": Agreement(K, compare_shifts(model, probe, shifts(subgrid))),
            "context": Agreement(K, context(model, probe))}


def measure(found: dict[str, Agreement]) -> list[dict[str, Any]]:
    """All four measures: rows `measure, cells, agreement, kappa, feature_error, n, codes_used`."""
    return [row for name, total in found.items() for row in total.rows(measure=name)]


def merged(found: dict[str, Agreement], codebook: torch.Tensor) -> list[dict[str, Any]]:
    """The measures with half as many codes, a quarter, ... 4: rows as `measure`, and `groups`.

    Nothing is trained again: what changes is only which codes count as the same.
    """
    rows, left = [], len(codebook) // 2
    while left >= 4:
        merge = merge_codes(codebook, left)
        rows += [row for name, total in found.items()
                 for row in total.rows(merge, measure=name, groups=left)]
        left //= 2
    return rows


def sweep(model: Any, probe: Probe, farthest: int = 16) -> list[dict[str, Any]]:
    """Shifts of 0 ... `farthest` px to the right, one row per shift and kind of cells."""
    pairs = compare_shifts(model, probe, [(0, d) for d in range(farthest + 1)])
    return [row for d, pair in enumerate(pairs)
            for row in Agreement(model.quantizer.K, [pair]).rows(shift=d)]
