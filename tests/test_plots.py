"""Figures say what the data says: what is drawn is read back and compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tevq import presets
from tevq.config import DataConfig
from tevq.data.captions import COLOURS, UNUSED
from tevq.data.scenes import CASES, HELD_OUT, Scenes, build
from tevq.data.source import class_names
from tevq.report import plots_data, plots_generator, plots_quantizer, style

NAMES = class_names("digits")


def some_scenes(split: str = "train", n: int = 300) -> Scenes:
    data = DataConfig(train=n, val=n, test=n)
    return build(data, split, np.arange(200) % 10)


def marked(axis, label: str) -> list:
    return [patch for patch in axis.patches if patch.get_label() == label]


def test_every_variant_has_its_own_colour_and_name():
    for table in (style.COLOURS_OF, style.MARKERS_OF, style.NAMES_OF):
        assert list(table) == list(presets.VARIANTS)
        assert len(set(table.values())) == len(table)
    assert list(style.CASE_COLOURS) == list(CASES)
    assert style.line_of("te")["linewidth"] > style.line_of("sc")["linewidth"]


def test_pixels_of_an_image():
    image = torch.tensor([-1.0, 0.0, 3.0]).view(3, 1, 1)
    assert style.pixels(image).tolist() == [[[0.0, 0.5, 1.0]]]


def test_combinations_agree_with_counting_clauses():
    scenes = some_scenes()
    expected = np.zeros((4, 4, 10), dtype=int)
    for i in range(len(scenes)):
        for place, colour, label in scenes.clauses(i):
            if place < 4:
                expected[place, colour, label] += 1
    assert (plots_data.combinations(scenes) == expected).all()
    assert expected.sum() == (scenes.place < 4).sum() < (scenes.place != UNUSED).sum()


def test_held_out_chart_marks_the_rule_and_shows_the_counts():
    counts = plots_data.combinations(some_scenes())
    figure = plots_data.held_out_chart(NAMES, counts)
    found = set()
    for place, axis in enumerate(figure.axes):
        assert axis.get_title(loc="center") == plots_data.QUADRANTS[place]
        assert [text.get_text() for text in axis.get_yticklabels()] == list(COLOURS)
        assert [text.get_text() for text in axis.get_xticklabels()] == list(NAMES)
        written = {text.get_position(): text.get_text() for text in axis.texts}
        for label in range(10):
            for colour in range(4):
                assert written[label, colour] == str(counts[place, colour, label])
        for patch in marked(axis, plots_data.HELD_OUT_MARK):
            label, colour = patch.get_x() + 0.46, patch.get_y() + 0.42
            found.add((round(label), round(colour), place))
    assert found == {(label, colour, place) for label, (colour, place) in enumerate(HELD_OUT)}


@pytest.mark.parametrize("seed", range(3))
def test_code_map_marks_exactly_the_cells_that_differ(seed):
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(5, (8, 8), generator=random)
    second = torch.where(torch.rand(8, 8, generator=random) < 0.3,
                         torch.randint(5, (8, 8), generator=random), first)
    image = torch.zeros(3, 32, 32)
    figure = plots_quantizer.code_maps([image] * 2, ["a", "b"], {"sc": [first, second]}, {"sc": 5})
    reference, moved = figure.axes[2:]
    assert not marked(reference, "differs")
    frames = [(round(patch.get_y() + 0.5), round(patch.get_x() + 0.5))
              for patch in marked(moved, "differs")]
    expected = [(i, j) for i in range(8) for j in range(8) if first[i, j] != second[i, j]]
    assert sorted(frames) == expected
    assert moved.get_title(loc="center") == f"{len(expected)} of 64 cells differ"
    assert (moved.images[0].get_array() == second.numpy()).all()


def test_code_image_and_code_map_share_their_colours():
    codes = torch.arange(12).view(3, 4)
    image = style.code_image(codes, 12)
    assert image.shape == (3, 3, 4) and image.min() >= -1 and image.max() <= 1
    assert len({tuple(pixel) for pixel in image.flatten(1).T.tolist()}) == 12
    expected = style.code_colours(12)(7)[:3]
    assert style.pixels(image)[1, 3] == pytest.approx(expected)


def sweep_rows(values: list[float]) -> list[dict]:
    return [{"shift": shift, "cells": cells, "agreement": value, "feature_error": 1 - value}
            for shift, value in enumerate(values) for cells in ("all", "foreground")]


def test_sweep_draws_every_variant_and_names_the_missing():
    rows = {"sc": sweep_rows([1.0, 0.2, 0.4]), "te": sweep_rows([1.0, 0.6, 0.8])}
    figure = plots_quantizer.sweep(rows, 4, [torch.zeros(3, 64, 64)] * 2, absent=["mb"])
    below = figure.axes[2]
    drawn = {line.get_color(): list(line.get_ydata()) for line in below.lines
             if line.get_color() in style.COLOURS_OF.values()}
    assert drawn[style.COLOURS_OF["sc"]] == [1.0, 0.2, 0.4]
    assert drawn[style.COLOURS_OF["te"]] == [1.0, 0.6, 0.8]
    assert any("mb" in text.get_text() for text in figure.texts)


def test_figures_without_any_quantizer_say_so():
    for figure in (plots_quantizer.sweep({}, 4), plots_quantizer.measures({}),
                   plots_quantizer.margins({})):
        texts = [text.get_text() for axis in figure.axes for text in axis.texts]
        assert any("notebook 03" in text for text in texts)


def test_a_collapsed_codebook_is_named_in_the_measures():
    rows = [{"measure": name, "cells": "foreground", "agreement": 1.0, "kappa": None}
            for name in plots_quantizer.MEASURES]
    axis = plots_quantizer.measures({"te": rows}).axes[0]
    assert [text.get_text() for text in axis.texts] == ["collapsed"] * 4


def test_curves_leave_out_what_was_not_logged():
    rows = [{"step": 20, "l1": 0.5}, {"step": 40, "l1": 0.25, "critic_loss": 1.0}]
    panels = [("L1", "", {"l1": "L1"}), ("D", "", {"critic_loss": "D"}), ("none", "", {"a": "a"})]
    first, second, third = style.curves(rows, panels).axes
    assert list(first.lines[0].get_ydata()) == [0.5, 0.25]
    assert list(second.lines[0].get_xdata()) == [40]
    assert "nothing logged" in third.texts[0].get_text()


@pytest.mark.parametrize(("last", "expected"), [(0.9, 200.0), (0.3, None)])
def test_binding_is_where_several_items_are_read(last, expected):
    cases = {"quad1": np.array([0.9, 0.9]), "center": np.array([0.9, 0.9])}
    cases |= {case: np.array([0.1, last]) for case in ("quad2", "quad3", "quad4")}
    assert plots_generator.binding(np.array([100, 200]), cases) == expected
    assert plots_generator.binding(np.array([]), {}) is None


def test_samples_frame_only_what_was_misread():
    images = [torch.zeros(3, 64, 64)] * 2
    figure = plots_generator.samples({"true": images, "made": images}, ["a", "b"],
                                     [[(2, 34)], []])
    frames = [[(p.get_y() + 0.5, p.get_x() + 0.5) for p in marked(axis, "misread")]
              for axis in figure.axes]
    assert frames == [[], [], [(2, 34)], []]


def test_sliders_redraw_and_need_no_output_widget(monkeypatch):
    """Planted fault: `ipywidgets.interactive`, whose Output widget can make papermill hang."""
    import ipywidgets
    from matplotlib.figure import Figure

    made, drawn = [], []
    construct = ipywidgets.Widget.__init__
    monkeypatch.setattr(ipywidgets.Widget, "__init__",
                        lambda self, *a, **k: (made.append(self), construct(self, *a, **k))[1])

    def draw(number, name):
        drawn.append((number, name))
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, f"{number} {name}")
        return figure

    style.explore(draw, number=(0, 9), name=["a", "b"])
    assert not any(isinstance(widget, ipywidgets.Output) for widget in made)
    slider, = (widget for widget in made if isinstance(widget, ipywidgets.IntSlider))
    picture, = (widget for widget in made if isinstance(widget, ipywidgets.Image))
    before = picture.value
    slider.value = 7
    assert drawn[-1] == (7, "a") and picture.value != before and picture.value[:4] == b"\x89PNG"
