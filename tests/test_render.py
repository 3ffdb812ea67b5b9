"""Rendering: scenes in pixels, against a plain loop; crops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tevq.config import DataConfig
from tevq.data.captions import PLACES, UNUSED
from tevq.data.render import OFFSETS, RGB, crop, draw, item_size, offsets, render, scene_size
from tevq.data.scenes import build, part_of
from tevq.data.source import SourceImages, load_source


@pytest.fixture(scope="module")
def built():
    data = DataConfig(source="digits", train=1000, test=1000, seed=3)
    return {split: build(data, split, load_source("digits", part_of(split)).labels.numpy())
            for split in ("train", "test")}


def slow_draw(pictures, count):
    """Second route, pixel by pixel: pictures of (image, colour, (row, column), scene)."""
    canvas = np.zeros((count, 3, 64, 64))
    for image, colour, (top, left), scene in pictures:
        for row, column in np.argwhere(np.asarray(image)):
            y, x = top + row, left + column
            if 0 <= y < 64 and 0 <= x < 64:
                for channel in range(3):
                    value = float(image[row, column]) * RGB[colour][channel]
                    canvas[scene, channel, y, x] = max(canvas[scene, channel, y, x], value)
    return torch.from_numpy(canvas / 127.5 - 1).float()


def test_render_against_a_plain_loop(built):
    items = load_source("digits", "test")
    index = [0, 999, 5, 6, 7, 8, 9, 10]
    scenes = built["test"].take(index)
    pictures = [(items.images[scenes.item[i, s]], scenes.colour[i, s],
                 OFFSETS[scenes.place[i, s]], i)
                for i in range(len(index)) for s in range(4) if scenes.item[i, s] >= 0]
    images = render(built["test"], items, index)
    assert images.shape == (8, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() > 0.9
    assert torch.allclose(images, slow_draw(pictures, len(index)), atol=1e-6)


def test_places_are_where_their_names_say():
    for name, (row, column) in zip(PLACES, OFFSETS, strict=True):
        center = (row + 14, column + 14)
        expected = {"upper": 16, "lower": 48}.get(name.split()[0], 32), \
            {"left": 16, "right": 48}.get(name.split()[-1], 32)
        assert center == expected


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 499), st.integers(0, 3), st.integers(-40, 80),
                          st.integers(-40, 80), st.integers(0, 2)), max_size=6))
def test_draw_against_a_plain_loop(rows):
    """Any offset: parts outside are cut off, overlapping items show the brighter value."""
    images = load_source("digits", "test").images
    table = torch.tensor(rows, dtype=torch.long).reshape(-1, 5)
    found = draw(images[table[:, 0]], table[:, 1], table[:, 2:4], table[:, 4], 3)
    pictures = [(images[i], colour, (row, column), scene)
                for i, colour, row, column, scene in rows]
    assert torch.allclose(found, slow_draw(pictures, 3), atol=1e-6)


def test_draw_and_render_are_twins(built):
    items, scenes = load_source("digits", "train"), built["train"].take(slice(0, 200))
    scene, slot = np.nonzero(scenes.item >= 0)
    offset = torch.tensor(OFFSETS)[torch.from_numpy(scenes.place[scene, slot].astype(np.int64))]
    drawn = draw(items.images[torch.from_numpy(scenes.item[scene, slot]).long()],
                 torch.from_numpy(scenes.colour[scene, slot].astype(np.int64)), offset,
                 torch.from_numpy(scene), 200)
    assert torch.equal(drawn, render(scenes, items))


def test_render_takes_any_index(built):
    items, scenes = load_source("digits", "train"), built["train"]
    index = np.array([3, 1, 4, 1, 5])
    images = render(scenes, items, index)
    assert torch.equal(images, render(scenes, items, torch.from_numpy(index)))
    assert torch.equal(images, render(scenes, items, index.tolist()))
    assert torch.equal(images[0], render(scenes, items, slice(3, 4))[0])
    assert render(scenes, items, slice(0, 0)).shape == (0, 3, 64, 64)


def test_crop_is_the_inverse_of_render(built):
    items, scenes = load_source("digits", "train"), built["train"].take(slice(0, 300))
    images = render(scenes, items)
    rgb = torch.tensor(RGB)
    for slot in range(4):
        used = np.flatnonzero(scenes.place[:, slot] != UNUSED)
        crops = crop(images[used], torch.from_numpy(scenes.place[used, slot]))
        grey = items.images[torch.from_numpy(scenes.item[used, slot]).long()].float()
        colour = rgb[torch.from_numpy(scenes.colour[used, slot]).long()]
        ink = grey[:, None] * colour[:, :, None, None]
        assert torch.equal(((crops + 1) * 127.5).round(), ink)


def test_the_original_items_are_never_changed(built):
    items = load_source("digits", "train")
    before = items.sha256()
    render(built["train"], items, slice(0, 50)).zero_()
    assert SourceImages(*items).sha256() == before


@pytest.mark.parametrize("size", [32, 64, 96])
def test_scenes_of_other_sizes_are_the_same_picture(built, size):
    """Crops are the items at every size, and nothing lies between. Planted fault: an offset."""
    items = load_source("digits", "train", item_size(size))
    scenes = built["train"].take(slice(0, 100))
    images = render(scenes, items)
    assert images.shape == (100, 3, size, size) and scene_size(item_size(size)) == size
    ink = (images > -1).sum((1, 2, 3))
    for slot in range(4):
        used = np.flatnonzero(scenes.place[:, slot] != UNUSED)
        crops = crop(images[used], torch.from_numpy(scenes.place[used, slot]))
        grey = items.images[torch.from_numpy(scenes.item[used, slot]).long()]
        assert torch.equal(((crops.amax(1) + 1) * 127.5).round(), grey.float())
        ink[used] -= (crops > -1).sum((1, 2, 3))
    assert (ink == 0).all()
    if size == 64:
        assert offsets(64) == OFFSETS == ((2, 2), (2, 34), (34, 2), (34, 34), (18, 18))
