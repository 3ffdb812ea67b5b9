"""Scenes: which item of which colour stands where, the held-out rule, and how scenes are drawn.

A split is a set of small arrays, built from a counter-based random stream: every scene reads its
own part of the stream, so the arrays do not depend on how many scenes are made at a time. Pixels
are drawn when needed (see `render`), never stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tevq.config import DataConfig, SettingsError, unknown
from tevq.data import captions
from tevq.data.captions import CENTER, COLOURS, PLACES, UNUSED
from tevq.data.render import IMAGE_SIZE, OFFSETS, draw, item_size, render  # noqa: F401
from tevq.data.source import SourceImages, class_names, load_source

CASES = ("quad1", "quad2", "quad3", "quad4", "center")
SPLITS = ("train", "val", "val_seen", "test", "test_seen")
SLOTS = 4

# Class -> (colour, quadrant) that training never shows (figure 2b). Class 0 is the paper's; the
# paper does not print the other nine, they are our choice. Class 10 is held out as class 0 is, ...
HELD_OUT = tuple((COLOURS.index(colour), PLACES.index(place)) for colour, place in (
    ("white", "upper left"), ("red", "upper right"), ("green", "lower left"),
    ("blue", "lower right"), ("red", "upper left"), ("green", "upper right"),
    ("blue", "lower left"), ("white", "lower right"), ("green", "upper left"),
    ("blue", "upper right")))
_DRAWS = 32  # random numbers per scene: 4 x (order, class, colour, item), captions.CHOICES, spare


def held_out(classes: int) -> tuple[tuple[int, int], ...]:
    """HELD_OUT for any number of classes."""
    return tuple(HELD_OUT[label % len(HELD_OUT)] for label in range(classes))


@dataclass(frozen=True)
class Scenes:
    """N scenes. Used slots come first, in the order in which the caption mentions them."""

    item: np.ndarray  # int32 (N, 4), index into the items of the split's part, -1 = unused
    label: np.ndarray  # uint8 (N, 4), class, 255 = unused
    colour: np.ndarray  # uint8 (N, 4), index into COLOURS, 255 = unused
    place: np.ndarray  # uint8 (N, 4), index into PLACES, 255 = unused
    case: np.ndarray  # uint8 (N,), index into CASES
    caption: np.ndarray  # uint8 (N, L), token ids BOS ... EOS PAD ...

    def __len__(self) -> int:
        return len(self.case)

    def take(self, index) -> Scenes:
        """The scenes of a slice or an index array."""
        return Scenes(**{name: array[index] for name, array in vars(self).items()})

    def clauses(self, i: int) -> list[captions.Clause]:
        """What scene `i` shows, in the order of its caption."""
        rows = zip(self.place[i], self.colour[i], self.label[i], strict=True)
        return [captions.Clause(*map(int, row)) for row in rows if row[0] != UNUSED]

    def sha256(self) -> str:
        """Hash of names, types, shapes and values."""
        total = hashlib.sha256()
        for name, array in vars(self).items():
            total.update(f"{name} {array.dtype} {array.shape};".encode())
            total.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))))
        return total.hexdigest()


def part_of(split: str) -> str:
    """Which items a split takes: "train" or "test"."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return "train" if split == "train" else "test"


def build(data: DataConfig, split: str, labels: np.ndarray, batch: int = 16_384) -> Scenes:
    """The scenes of a split, from nothing.

    labels: (n,) classes of the items of the split's part. batch, scenes at a time, changes time and
    memory only. Raises SettingsError when a class has no items.
    """
    part_of(split)  # refuses unknown names
    n = getattr(data, split.removesuffix("_seen"))  # the `_seen` control of a split has its size
    # cases in random order, each n / 5 times (or once more)
    case = np.empty(n, dtype=np.uint8)
    case[np.argsort(_stream(f"cases/{split}/{data.seed}", 0, n), kind="stable")] = (
        np.arange(n) % len(CASES))
    pools = _pools(labels, len(class_names(data.source)), split)
    parts = []
    for start in range(0, n, batch):
        chosen = case[start : start + batch]
        draws = _stream(f"scenes/{split}/{data.seed}", start * _DRAWS, len(chosen) * _DRAWS)
        parts.append(_make(chosen, draws.reshape(-1, _DRAWS), pools, split in ("val", "test")))
    return Scenes(**{name: np.concatenate([getattr(part, name) for part in parts])
                     for name in vars(parts[0])})


def _stream(name: str, start: int, count: int) -> np.ndarray:
    """Numbers start ... start + count (start divisible by 4) of a named stream: uint64 (count,).

    Raw Philox output is fixed for ever, unlike the distributions NumPy derives from it.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return np.random.Philox(key=key, counter=start // 4).random_raw(count)


def _pools(labels: np.ndarray, classes: int, split: str):
    """Items by class: (indices sorted by class, first of each class, number of each class)."""
    # of the items in part "test", validation has the first half, and the tests have the second
    half = len(labels) // 2
    start = half if split.startswith("test") else 0
    stop = half if split.startswith("val") else len(labels)
    labels = np.asarray(labels)[start:stop]
    counts = np.bincount(labels, minlength=classes)
    if counts.min() == 0:
        raise SettingsError(f"class {counts.argmin()} has no items for split {split!r}; every "
                            "class needs at least one, use the whole data set")
    order = np.argsort(labels, kind="stable") + start
    return order, np.cumsum(counts) - counts, counts


def _make(case: np.ndarray, draws: np.ndarray, pools, held_out_only: bool) -> Scenes:
    """Scenes of given cases (n,) from random numbers uint64 (n, _DRAWS)."""
    center = case == CASES.index("center")
    # a random order of the quadrants gives both the places and the order of the clauses
    place = np.argsort(draws[:, :4], axis=1, kind="stable")
    place[center, 0] = CENTER
    order, first, counts = pools
    label, colour = _identity(place, draws[:, 4:8], draws[:, 8:12], len(counts), held_out_only)
    item = order[first[label] + _below(draws[:, 12:16], counts[label])]
    unused = np.arange(SLOTS) >= np.where(center, 1, case + 1)[:, None]
    item = np.where(unused, -1, item).astype(np.int32)
    label, colour, place = (
        np.where(unused, UNUSED, x).astype(np.uint8) for x in (label, colour, place))
    choices = draws[:, 16:16 + captions.CHOICES]
    caption = captions.write(place, colour, label, choices, len(counts))
    return Scenes(item, label, colour, place, case, caption)


def fresh_captions(scenes: Scenes, classes: int, seed: int, epoch: int) -> np.ndarray:
    """Other captions of the same scenes: uint8 (N, L), templates, words and order drawn anew.

    The caption of scene i is a function of seed, epoch, i and what the scene shows.
    """
    count = SLOTS + captions.CHOICES  # random numbers a scene, divisible by 4
    draws = _stream(f"captions/{seed}/{epoch}", 0, len(scenes) * count).reshape(-1, count)
    # unused slots, which are last, stay last
    keys = np.where(scenes.place == UNUSED, np.uint64(2**64 - 1), draws[:, :SLOTS])
    order = np.argsort(keys, axis=1, kind="stable")
    shown = (np.take_along_axis(x, order, 1) for x in (scenes.place, scenes.colour, scenes.label))
    return captions.write(*shown, draws[:, SLOTS:], classes)


def _identity(place, label_draws, colour_draws, classes: int, held_out_only: bool):
    """Classes and colours for places (n, 4): uniform class, then uniform colour among the allowed.

    In quadrants either only the held-out combinations, or all but them; anything in the center.
    """
    held_colour, held_place = np.array(held_out(classes)).T
    label = _below(label_draws, classes)
    if held_out_only:
        rows = [np.flatnonzero(held_place == p) if p != CENTER else np.arange(classes)
                for p in range(len(PLACES))]
        counts = np.array([len(row) for row in rows])
        table = np.stack([np.resize(row, classes) for row in rows])
        label = table[place, _below(label_draws, counts[place])]
    bound = (held_place[label] == place)  # the class has its held-out quadrant
    colour = _below(colour_draws, len(COLOURS) - bound)
    colour += bound & (colour >= held_colour[label])  # skip the held-out colour
    if held_out_only:
        colour = np.where(bound, held_colour[label], colour)
    return label, colour


def _below(draws: np.ndarray, n) -> np.ndarray:
    """Whole numbers in [0, n), n up to 10^5: the bias of the remainder is below 10^-14."""
    return (draws % np.asarray(n).astype(np.uint64)).astype(np.int64)


def load_scenes(data: DataConfig, split: str) -> Scenes:
    """Scenes of a split. They are not stored: 100,000 take a fraction of a second."""
    return build(data, split, load_source(data.source, part_of(split)).labels.numpy())


def load_items(data: DataConfig, part: str) -> SourceImages:
    """Items ("train" or "test") of the size that the scenes need."""
    return load_source(data.source, part, item_size(data.scene))
