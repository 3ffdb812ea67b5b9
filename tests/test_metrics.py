"""Metrics: hand-made examples with counts worked out on paper, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tevq.data.captions import CENTER, UNUSED, Clause, paraphrases
from tevq.data.scenes import CASES, OFFSETS, draw
from tevq.data.source import class_names, load_source
from tevq.evaluate import metrics
from tevq.evaluate.metrics import Score, by_case, score_captions, score_images

NAMES = class_names("mnist")
U = UNUSED
UL, UR, LL, LR = range(4)


def counts(scores):
    return {metric: (s.correct.tolist(), s.n.tolist()) for metric, s in scores.items()}


# -------------------------------------------------------------------------------------- images

#                    quad2: one class wrong   quad1: all right, spurious ink   center: right
PLACE = np.array([[LR, UL, U, U], [UR, U, U, U], [CENTER, U, U, U], [UL, LR, LL, UR]])
LABEL = np.array([[9, 2, U, U], [3, U, U, U], [7, U, U, U], [0, 1, 2, 3]])
COLOUR = np.array([[3, 0, U, U], [1, U, U, U], [2, U, U, U], [0, 1, 2, 3]])
SEEN_LABEL = np.array([[9, 5, 1, 1], [3, 0, 0, 0], [7, 0, 0, 0], [0, 1, 2, 3]])
SEEN_COLOUR = np.array([[3, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [0, 1, 2, 2]])
INK = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)


def test_image_scores_by_hand():
    found = counts(score_images(SEEN_LABEL, SEEN_COLOUR, LABEL, COLOUR, PLACE, INK))
    assert found == {
        "digit": ([1, 1, 1, 4], [2, 1, 1, 4]),
        "colour": ([2, 1, 1, 3], [2, 1, 1, 4]),
        "digit_colour": ([1, 1, 1, 3], [2, 1, 1, 4]),
        "empty": ([2, 1, 4, 0], [2, 3, 4, 0]),  # scene 1: ink in LL and LR, nobody asked
        "scene": ([0, 0, 1, 0], [1, 1, 1, 1]),
    }
    assert tuple(found) == metrics.IMAGE_METRICS


def test_sums_by_case_add_up():
    case = np.array([1, 0, 4, 3])
    scores = score_images(SEEN_LABEL, SEEN_COLOUR, LABEL, COLOUR, PLACE, INK)
    table = by_case(scores, case, CASES)
    assert table["quad2"]["digit"] == (1, 2) and table["quad4"]["digit_colour"] == (3, 4)
    assert table["quad1"]["empty"].value == pytest.approx(1 / 3)
    assert math.isnan(table["quad3"]["digit"].value) and math.isnan(table["quad4"]["empty"].value)
    for metric, score in scores.items():
        assert sum(table[name][metric].n for name in CASES) == score.total().n


def test_a_quadrant_without_its_item_does_not_hurt_the_empty_score():
    """Missing ink at a named place is the classifier's business; only spurious ink counts."""
    none = np.zeros_like(INK)
    scores = score_images(LABEL, COLOUR, LABEL, COLOUR, PLACE, none)
    assert scores["scene"].value == scores["empty"].value == scores["digit"].value == 1


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_image_scores_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    n, shape = 20, (20, 4)
    place = np.argsort(rng.random(shape), axis=1)
    place[np.arange(4) >= rng.integers(1, 5, n)[:, None]] = U
    alone = (place != U).sum(1) == 1
    place[alone, 0] = np.where(rng.random(alone.sum()) < 0.5, CENTER, place[alone, 0])
    label, colour = rng.integers(0, 3, shape), rng.integers(0, 2, shape)
    seen_label, seen_colour = rng.integers(0, 3, shape), rng.integers(0, 2, shape)
    ink = rng.random(shape) < 0.3
    scores = score_images(seen_label, seen_colour, label, colour, place, ink)
    for i in range(n):
        used = [s for s in range(4) if place[i, s] != U]
        digit = [seen_label[i, s] == label[i, s] for s in used]
        hue = [seen_colour[i, s] == colour[i, s] for s in used]
        unnamed = [q for q in range(4) if q not in [place[i, s] for s in used]]
        dirty = [q for q in unnamed if ink[i, q]]
        both = [a and b for a, b in zip(digit, hue, strict=True)]
        expected = {"digit": (sum(digit), len(used)), "colour": (sum(hue), len(used)),
                    "digit_colour": (sum(both), len(used)),
                    "empty": (len(unnamed) - len(dirty), len(unnamed)),
                    "scene": (all(both) and not dirty, 1)}
        assert {m: (s.correct[i], s.n[i]) for m, s in scores.items()} == expected


def place_items(images, place, colour=0):
    """One item per image, at one place."""
    count = len(images)
    offset = torch.tensor(OFFSETS[place]).expand(count, 2)
    return draw(images, torch.full((count,), colour), offset, torch.arange(count), count)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("blur", [0, 1.5])
def test_every_digit_is_ink_and_nothing_else_is(place, blur):
    images = place_items(load_source("digits", "test").images[::3], place, colour=place % 4)
    images = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, blur, blur)))
    images += 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).abs()
    center = torch.full((len(images),), place == CENTER)
    expected = [q == place for q in range(4)]
    assert (metrics.quadrant_ink(images, center) == torch.tensor(expected)).all()


def test_ink_beside_the_center_item_is_seen():
    item = load_source("digits", "test").images[:2]
    offset = torch.tensor([OFFSETS[CENTER], (0, -4)])
    image = draw(item, torch.tensor([0, 1]), offset, torch.zeros(2, dtype=torch.long), 1)
    assert metrics.quadrant_ink(image, torch.tensor([True])).tolist() == [[1, 0, 0, 0]]
    # as a scene without center item, the center's ink counts in every quadrant
    assert metrics.quadrant_ink(image, torch.tensor([False])).tolist() == [[1, 1, 1, 1]]


def test_ink_threshold_is_exact():
    image = torch.full((1, 3, 64, 64), -1.0)
    image[0, 2, 2, 2:2 + metrics.INK_PIXELS] = 2 * metrics.INK_LEVEL - 1 + 0.01
    assert metrics.quadrant_ink(image, torch.tensor([False]))[0, UL]
    image[0, 2, 2, 2] = 2 * metrics.INK_LEVEL - 1 - 0.01
    assert not metrics.quadrant_ink(image, torch.tensor([False]))[0, UL]


@pytest.mark.parametrize("pixels", [47, 48])
def test_ink_is_a_share_of_the_pixels_in_larger_scenes(pixels):
    """Planted fault: a number of pixels that grows with the side and not with the area."""
    image = torch.full((1, 3, 128, 128), -1.0)
    image[0, 1, 10, 5 : 5 + pixels] = 1.0
    assert metrics.quadrant_ink(image, torch.tensor([False]))[0, UL] == (pixels == 48)


def test_places_are_read_in_slot_order():
    """A classifier that answers with the brightest pixel and channel of its crop."""
    def predict(crops):
        assert crops.shape[1:] == (3, 28, 28)
        peak = crops.amax((2, 3))  # (M, 3)
        return peak.amax(1).mul(10).round().long(), peak.argmax(1)

    place = np.array([[LR, UL, U, U], [CENTER, U, U, U]], dtype=np.uint8)
    images = torch.full((2, 3, 64, 64), -1.0)
    images[0, 1, 50, 50], images[0, 2, 5, 5], images[1, 0, 30, 30] = 0.3, 0.7, 0.9
    label, colour = metrics.read_places(images, place, predict)
    assert label.tolist() == [[3, 7, U, U], [9, U, U, U]]
    assert colour.tolist() == [[1, 2, U, U], [0, U, U, U]]


# ------------------------------------------------------------------------------------ captions

TRUTH = [Clause(UL, 0, 2), Clause(LR, 3, 9)]


@pytest.mark.parametrize("text, expected", [
    # official, digit, precision, recall, f1, exact, well formed: (right, out of)
    ("the upper left is white two, and blue nine at the lower right.",
     [(2, 2), (2, 2), (2, 2), (2, 2), (4, 4), (1, 1), (1, 1)]),
    ("the upper left is red two, and blue nine at the lower right.",  # a colour wrong
     [(2, 2), (2, 2), (1, 2), (1, 2), (2, 4), (0, 1), (1, 1)]),
    ("the upper left is white two.",  # one missing
     [(1, 2), (1, 2), (1, 1), (1, 2), (2, 3), (0, 1), (1, 1)]),
    ("the upper left is white two, blue nine at the lower right, the top right is red one.",
     [(2, 2), (2, 2), (2, 3), (2, 2), (4, 5), (0, 1), (1, 1)]),  # one invented
    ("the upper left is white two, the upper left is white two, the upper left is white two.",
     [(3, 2), (0, 2), (0, 3), (0, 2), (0, 5), (0, 1), (0, 1)]),  # a repeat scores officially
    ("the upper left is white two, blue nine at the lower right",  # no full stop
     [(2, 2), (0, 2), (0, 2), (0, 2), (0, 4), (0, 1), (0, 1)]),
    ("two top left, nine bottom right",
     [(2, 2), (0, 2), (0, 2), (0, 2), (0, 4), (0, 1), (0, 1)]),
    ("", [(0, 2), (0, 2), (0, 1), (0, 2), (0, 3), (0, 1), (0, 1)]),
])
def test_caption_scores_by_hand(text, expected):
    scores = score_captions([text], [TRUTH], NAMES)
    assert tuple(scores) == metrics.CAPTION_METRICS
    assert [(int(s.correct[0]), int(s.n[0])) for s in scores.values()] == expected


def test_a_missing_place_counts_as_center_officially():
    scores = score_captions(["white two", "white two"], [[Clause(CENTER, 0, 2)], TRUTH], NAMES)
    assert scores["official_digit"].correct.tolist() == [1, 0]
    assert scores["digit"].total() == (0, 3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.permutations(range(4)), st.integers(1, 4), st.integers(0, 3),
                          st.integers(0, 9)), min_size=1, max_size=5), st.integers(0, 999))
def test_true_captions_score_fully_and_swapped_classes_never(rows, seed):
    truths = [[Clause(place, colour, label) for place in places[:count]]
              for places, count, colour, label in rows]
    texts = [paraphrases(truth, 1, seed, NAMES)[0] for truth in truths]
    scores = score_captions(texts, truths, NAMES)
    assert all(score.value == 1 for score in scores.values())
    others = [[c._replace(label=(c.label + 1) % 10) for c in truth] for truth in truths]
    scores = score_captions(texts, others, NAMES)
    assert {m for m, score in scores.items() if score.value > 0} == {"well_formed"}


def test_a_score_of_nothing_is_not_a_number():
    assert math.isnan(Score(np.zeros(3), np.zeros(3)).value)
    assert Score(np.array([1, 2]), np.array([2, 4])).value == 0.5
