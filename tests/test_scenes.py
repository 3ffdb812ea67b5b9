"""Scenes: the held-out rule and leakage on the built data, determinism."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tevq.config import DataConfig, SettingsError
from tevq.data.captions import (
    BOS,
    CENTER,
    COLOURS,
    EOS,
    PAD,
    PLACES,
    TEMPLATES,
    UNUSED,
    Tokenizer,
    official_units,
    parse,
)
from tevq.data.scenes import CASES, HELD_OUT, SPLITS, build, load_scenes, part_of
from tevq.data.source import class_names, load_source

DATA = DataConfig(source="digits", train=5000, val=1000, test=1000, seed=3)
NAMES = class_names("digits")
TOKENIZER = Tokenizer(NAMES)
SHA256 = {"train": "cfe56b4f2e4d3b7ac330162e6c71cfcaaf96e176b4ccf29e3fecba1ada013c1b",
          "test": "d4aaff5fa4583e418abcb88acf5f41699243829177df7c8268f70a02b8ec1cf0"}


def labels_of(split):
    return load_source("digits", part_of(split)).labels.numpy()


@pytest.fixture(scope="module")
def built():
    return {split: build(DATA, split, labels_of(split)) for split in SPLITS}


def seen(scenes, quadrants=True):
    """All (place, colour, class) with scene numbers, by a plain loop."""
    return [(i, clause) for i in range(len(scenes)) for clause in scenes.clauses(i)
            if (clause.place != CENTER) == quadrants]


# --------------------------------------------------------------------------------- rule, counts


def test_held_out_table_is_as_declared():
    assert HELD_OUT[0] == (COLOURS.index("white"), PLACES.index("upper left"))  # the paper's
    places = Counter(place for _, place in HELD_OUT)
    assert set(places) == {0, 1, 2, 3} and min(places.values()) >= 2
    assert {colour for colour, _ in HELD_OUT} == {0, 1, 2, 3}


def test_quadrants_follow_the_held_out_rule(built):
    for split, scenes in built.items():
        held = {(clause.colour, clause.place) == HELD_OUT[clause.label]
                for _, clause in seen(scenes)}
        assert held == {split in ("val", "test")}, split


def test_center_scenes_show_everything_in_every_split(built):
    for scenes in built.values():
        combinations = {(c.colour, c.label) for _, c in seen(scenes, quadrants=False)}
        assert len(combinations) == 40


def test_cases_are_exactly_balanced_and_mean_what_they_say(built):
    for scenes in built.values():
        assert np.bincount(scenes.case).tolist() == [len(scenes) // 5] * 5
        for i, case in enumerate(scenes.case):
            places = [clause.place for clause in scenes.clauses(i)]
            assert len(set(places)) == len(places) == (1 if CASES[case] == "center" else case + 1)
            assert (CENTER in places) == (CASES[case] == "center")
        assert (np.diff(scenes.case.astype(int)) != 0).mean() > 0.7  # shuffled


def test_sizes_that_five_does_not_divide_differ_by_one():
    scenes = build(dataclasses.replace(DATA, val=13), "val", labels_of("val"))
    assert sorted(np.bincount(scenes.case)) == [2, 2, 3, 3, 3]


def test_training_draws_are_uniform(built):
    """Chi-square tests of a fixed seed; each fails for a fair draw once in 1,000 seeds."""
    train = built["train"]
    for split in ("train", "test_seen"):
        pairs = Counter((c.place, c.label) for _, c in seen(built[split]))
        for place in range(4):
            assert chisquare([pairs[place, label] for label in range(10)]).pvalue > 1e-3
    bound = Counter(c.colour for _, c in seen(train) if (c.label, c.place) == (0, 0))
    assert bound[0] == 0 and chisquare([bound[k] for k in (1, 2, 3)]).pvalue > 1e-3
    free = Counter(c.colour for _, c in seen(train) if (c.label, c.place) == (0, 3))
    assert chisquare([free[k] for k in range(4)]).pvalue > 1e-3
    order = Counter(tuple(train.place[i]) for i in np.flatnonzero(train.case == 3))
    assert len(order) == 24 and chisquare(list(order.values())).pvalue > 1e-3
    test = Counter(c.label for _, c in seen(built["test"]) if c.place == 0)
    assert set(test) == {0, 4, 8} and chisquare(list(test.values())).pvalue > 1e-3


def test_captions_use_the_whole_grammar_evenly(built):
    train = built["train"]
    texts = [TOKENIZER.decode(train.caption[i]).removesuffix(".") for i in range(len(train))]
    units = [unit.strip() for text in texts for unit in text.split(",")]
    words = Counter(word for unit in units for word in unit.split())
    links = Counter(unit.split()[0] if unit.split()[0] in ("and", "while", "also") else ""
                    for text in texts for unit in text.split(",")[1:])
    assert len(links) == 4 and chisquare(list(links.values())).pvalue > 1e-3
    for pair in (("upper", "top"), ("lower", "bottom"), ("center", "middle")):
        assert chisquare([words[word] for word in pair]).pvalue > 1e-3
    shapes = Counter()
    for unit in units:
        for template in TEMPLATES:
            pattern = template.format(place=r"\w+( \w+)?", colour=r"\w+", label=r"\w+")
            shapes[template] += bool(re.fullmatch(rf"((and|while|also) )?{pattern}", unit))
    assert sum(shapes.values()) == len(units) == 11_000
    assert chisquare(list(shapes.values())).pvalue > 1e-3


# ------------------------------------------------------------------------------ items, captions


def test_items_have_the_classes_they_should(built):
    for split, scenes in built.items():
        labels = labels_of(split)
        for row, label in zip(scenes.item, scenes.label, strict=True):
            used = row >= 0
            assert (labels[row[used]] == label[used]).all()
            assert (label[~used] == UNUSED).all() and used.any()


def test_no_item_leaks_between_splits(built):
    """By pixels, not by index: no picture of one split is a picture of another."""
    pictures = {}
    for split, scenes in built.items():
        images = load_source("digits", part_of(split)).images.numpy()
        pictures[split] = {images[i].tobytes() for i in np.unique(scenes.item[scenes.item >= 0])}
    val = pictures["val"] | pictures["val_seen"]
    test = pictures["test"] | pictures["test_seen"]
    assert not pictures["train"] & (val | test) and not val & test
    assert len(pictures["train"]) > 1200 and len(pictures["val"]) > 200  # all items in use


def test_unused_slots_come_last(built):
    for scenes in built.values():
        unused = scenes.place == UNUSED
        assert (np.diff(unused.astype(int), axis=1) >= 0).all()
        for array, mark in ((scenes.item, -1), (scenes.label, UNUSED), (scenes.colour, UNUSED)):
            assert ((array == mark) == unused).all()


def test_captions_say_what_the_scenes_show(built):
    for scenes in built.values():
        for i in range(500):
            ids = scenes.caption[i]
            end = int((ids == EOS).argmax())
            assert ids[0] == BOS and ids[end] == EOS and (ids[end + 1:] == PAD).all()
            text = TOKENIZER.decode(ids)
            assert parse(text, NAMES) == (set(scenes.clauses(i)), (), len(scenes.clauses(i)))
            assert official_units(text, NAMES) == scenes.clauses(i)  # in slot order


# --------------------------------------------------------------------------------- determinism


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(SPLITS), st.integers(1, 700))
def test_batch_size_changes_nothing(split, batch):
    data = dataclasses.replace(DATA, train=603, val=603, test=603)
    labels = labels_of(split)
    expected = build(data, split, labels, batch=10**6)
    assert build(data, split, labels, batch).sha256() == expected.sha256()


@pytest.mark.parametrize("split", SHA256)
def test_the_hash_is_pinned(split):
    """The same data on every machine and version. Planted fault: the classes that a quadrant holds
    out, in another order."""
    data = DataConfig(source="digits", train=1000, val=100, test=100, seed=0)
    assert build(data, split, labels_of(split)).sha256() == SHA256[split]


def test_seeds_and_splits_are_different_draws(built):
    hashes = {scenes.sha256() for scenes in built.values()}
    other = build(dataclasses.replace(DATA, seed=4), "train", labels_of("train"))
    assert len(hashes | {other.sha256()}) == len(SPLITS) + 1
    for a, b in (("train", "test_seen"), ("val_seen", "test_seen"), ("val", "test")):
        same = built[a].item[:1000] == built[b].item[:1000]
        assert same[built[b].place != UNUSED].mean() < 0.05  # another stream, not a prefix


def test_the_hash_sees_every_array(built):
    scenes = built["val"].take(slice(0, 50))
    hashes = {scenes.sha256()}
    for name, array in vars(scenes).items():
        changed = array.copy()
        changed.flat[7] ^= 1
        hashes.add(dataclasses.replace(scenes, **{name: changed}).sha256())
    assert len(hashes) == 7


def test_bad_splits_and_missing_classes_are_refused():
    with pytest.raises(SettingsError, match="did you mean 'train'"):
        load_scenes(DATA, "trian")
    with pytest.raises(SettingsError, match="unknown split 'train_seen'"):
        build(DATA, "train_seen", np.arange(300) % 10)
    with pytest.raises(SettingsError, match="class 9 has no items for split 'val'"):
        build(DATA, "val", np.arange(300) % 9)
