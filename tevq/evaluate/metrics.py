"""Scoring of generated images and captions: pure functions that return counts, never averages.

Every metric is a `Score`: what was right and out of how many, per scene. Sums are divided last, so
scores of batches, cases or bootstrap samples can be added. Letters: N scenes, 4 slots; a slot
whose place is 255 is unused.

Images (`score_images`), by scene and then summed:
    digit          named places whose predicted class is right / named places. The paper's digit
                   accuracy: each digit named in the caption counts once, colour is ignored.
    colour         named places whose predicted colour is right / named places
    digit_colour   named places with class and colour right / named places
    empty          unnamed quadrants without ink / unnamed quadrants (4 in center scenes, 0 in
                   quad4). The official scoring never looks at them.
    scene          1 if all named places are right in both and no unnamed quadrant has ink / 1
Captions (`score_captions`); a flagged caption (any problem in `captions.parse`) has no right slot:
    official_digit units with a place of the truth and its class / digits in the truth, by
                   `captions.official_units`; a repeated unit counts again, so it can exceed 1
    digit          slots of the truth whose place is given with the right class, colour ignored,
                   in a caption without problems / digits in the truth
    slot_precision clauses equal to one of the truth (place, colour, class) / clauses given. A
                   flagged caption has given as many as it has comma-separated units, at least 1
    slot_recall    the same clauses / clauses in the truth
    slot_f1        2 x the same clauses / (clauses given + clauses in the truth): F1 of the sums
    exact          1 if the clauses are those of the truth, none missing, none added / 1
    well_formed    1 if the caption has no problem / 1
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from tevq.data.captions import UNUSED, Clause, official_units, parse
from tevq.data.render import IMAGE_SIZE, crop

# A region has ink when at least 12 of its pixels are brighter than 0.2 on the scale 0..1, in
# their brightest channel. Of real MNIST and digits items all have ink, also after a blur of 1.5
# pixels (standard deviation); of Fashion-MNIST 1 in 20,000 has none (1 in 3,000 when blurred).
INK_LEVEL = 0.2
INK_PIXELS = 12  # in scenes of 64x64 pixels; as a share of the pixels in others
SPLITS = ("test", "test_seen")  # what is evaluated: held-out and seen combinations
DECODINGS = ("sampled", "greedy")
# temperatures and top-k of results/plan.md (0: no limit), and greedy
GRID = (*itertools.product((0.25, 0.5, 0.75, 1.0), (6, 38, 0)), (0.0, 1))
IMAGE_METRICS = ("digit", "colour", "digit_colour", "empty", "scene")
CAPTION_METRICS = ("official_digit", "digit", "slot_precision", "slot_recall", "slot_f1", "exact",
                   "well_formed")


class Score(NamedTuple):
    """What was right, out of how many: arrays (N,), one number per scene, or sums over scenes."""

    correct: np.ndarray | float
    n: np.ndarray | float

    def total(self) -> Score:
        """Sums over scenes."""
        return Score(float(np.sum(self.correct)), int(np.sum(self.n)))

    @property
    def value(self) -> float:
        """Share of the sums; NaN when nothing was counted."""
        correct, n = self.total()
        return correct / n if n else float("nan")


def by_case(scores: dict[str, Score], case: np.ndarray, cases: Sequence[str]
            ) -> dict[str, dict[str, Score]]:
    """Sums {case: {metric: Score}} of scores per scene. case: (N,), index into `cases`."""
    return {name: {metric: Score(s.correct[case == i], s.n[case == i]).total()
                   for metric, s in scores.items()} for i, name in enumerate(cases)}


def quadrant_ink(images: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """Which quadrants hold at least INK_PIXELS above INK_LEVEL: bool (B, 4).

    images: (B, 3, S, S) in [-1, 1]; center: bool (B,), scenes in which only what lies outside the
    center's cell of S/2 pixels counts.
    """
    size = images.shape[-1]
    ink = images.amax(1, keepdim=True) > 2 * INK_LEVEL - 1  # (B, 1, S, S)
    low, high = size // 4, size - size // 4
    ink[center.to(ink.device), :, low:high, low:high] = False
    places = torch.arange(4)[:, None].expand(4, len(images))
    pixels = torch.stack([crop(ink, place).sum((1, 2, 3)) for place in places], dim=1)
    return pixels >= INK_PIXELS * (size / IMAGE_SIZE) ** 2


def read_places(images: torch.Tensor, place: np.ndarray, predict: Callable
                ) -> tuple[np.ndarray, np.ndarray]:
    """Class and colour seen at each named place: two uint8 (B, 4), 255 in unused slots.

    images: (B, 3, S, S) in [-1, 1]; place: uint8 (B, 4); predict: crops (M, 3, s, s) -> two (M,).
    """
    scene, slot = np.nonzero(place != UNUSED)
    seen = np.full((2, *place.shape), UNUSED, dtype=np.uint8)
    if len(scene):
        where = torch.from_numpy(place[scene, slot].astype(np.int64))
        crops = crop(images[torch.from_numpy(scene).to(images.device)], where)
        for array, numbers in zip(seen, predict(crops), strict=True):
            array[scene, slot] = numbers.cpu().numpy()
    return seen[0], seen[1]


def score_images(seen_label: np.ndarray, seen_colour: np.ndarray, label: np.ndarray,
                 colour: np.ndarray, place: np.ndarray, ink: np.ndarray) -> dict[str, Score]:
    """IMAGE_METRICS per scene.

    seen_label, seen_colour: (N, 4), the classifier's answers at the places of the slots; label,
    colour, place: (N, 4), what the caption asks for; ink: bool (N, 4), quadrants with ink.
    """
    named = place != UNUSED
    right_label, right_colour = named & (seen_label == label), named & (seen_colour == colour)
    both = right_label & right_colour
    asked = (place[:, :, None] == np.arange(4)).any(1)  # (N, 4 quadrants)
    spurious = np.asarray(ink, dtype=bool) & ~asked
    count, ones = named.sum(1), np.ones(len(place), dtype=np.int64)
    return {
        "digit": Score(right_label.sum(1), count),
        "colour": Score(right_colour.sum(1), count),
        "digit_colour": Score(both.sum(1), count),
        "empty": Score((~asked & ~spurious).sum(1), (~asked).sum(1)),
        "scene": Score(((both == named).all(1) & ~spurious.any(1)).astype(np.int64), ones),
    }


def score_captions(texts: Sequence[str], truths: Sequence[Iterable[Clause]],
                   names: tuple[str, ...]) -> dict[str, Score]:
    """CAPTION_METRICS per caption. texts: N decoded captions; truths: the clauses of N scenes."""
    rows = [_score_caption(text, list(truth), names)
            for text, truth in zip(texts, truths, strict=True)]
    table = np.array(rows, dtype=np.int64).reshape(len(rows), len(CAPTION_METRICS), 2)
    return {metric: Score(table[:, i, 0], table[:, i, 1])
            for i, metric in enumerate(CAPTION_METRICS)}


def _score_caption(text: str, truth: list[Clause], names: tuple[str, ...]) -> list[tuple]:
    """(right, out of) for each of CAPTION_METRICS."""
    wanted = {clause.place: clause.label for clause in truth}
    official = sum(wanted.get(place, -1) == label
                   for place, _, label in official_units(text, names))
    parsed = parse(text, names)
    clauses = parsed.clauses if parsed.ok else frozenset()
    digits = sum(wanted.get(clause.place) == clause.label for clause in clauses)
    hits = len(clauses & set(truth))
    given, total = (len(clauses) if parsed.ok else parsed.units), len(truth)
    return [(official, total), (digits, total), (hits, given), (hits, total),
            (2 * hits, given + total), (int(clauses == set(truth)), 1), (int(parsed.ok), 1)]
