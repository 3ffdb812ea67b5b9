"""What figures share: what is drawn is read back and compared."""

import pandas as pd
import seaborn as sns
import torch

from tevq import presets
from tevq.report import style


def test_every_variant_has_its_own_look():
    for table in (style.COLOURS_OF, style.MARKERS_OF, style.NAMES_OF, style.LOOK["dashes"]):
        assert list(table) == list(presets.VARIANTS)
    for table in (style.COLOURS_OF, style.MARKERS_OF):
        assert len({table[name] for name in presets.PAPER}) == len(presets.PAPER)
    looks = {(style.COLOURS_OF[name], style.MARKERS_OF[name]) for name in presets.VARIANTS}
    assert len(looks) == len(set(style.NAMES_OF.values())) == len(presets.VARIANTS)


def test_lines_of_variants_have_their_colours():
    frame = pd.DataFrame({"x": [0, 1] * 2, "y": [0, 1, 2, 3], "variant": ["sc", "sc", "te", "te"]})
    _, axes = style.new()
    sns.lineplot(frame, x="x", y="y", ax=axes[0, 0], legend=False, **style.LOOK)
    drawn = {line.get_color(): (list(line.get_ydata()), line.get_linewidth())
             for line in axes[0, 0].lines}
    assert drawn[style.COLOURS_OF["sc"]][0] == [0, 1]
    assert drawn[style.COLOURS_OF["te"]][0] == [2, 3]
    assert drawn[style.COLOURS_OF["te"]][1] > drawn[style.COLOURS_OF["sc"]][1]


def test_pixels_of_an_image():
    _, axes = style.new()
    style.show(axes[0, 0], torch.tensor([-1.0, 0.0, 3.0]).view(3, 1, 1), "above", "below")
    assert axes[0, 0].images[0].get_array().tolist() == [[[0.0, 0.5, 1.0]]]
    assert axes[0, 0].get_title(loc="center") == "above" and axes[0, 0].get_xlabel() == "below"


def test_image_rows_put_titles_above_and_captions_below():
    rows = {"first": torch.zeros(2, 3, 4, 4), "second": torch.ones(2, 3, 4, 4)}
    _, axes = style.image_rows(rows, ["a", "b"], captions=["c", "d"])
    assert [axis.get_title(loc="center") for axis in axes.flat] == ["a", "b", "", ""]
    assert [axis.get_xlabel() for axis in axes.flat] == ["", "", "c", "d"]
    assert [line[0].get_ylabel() for line in axes] == list(rows)
    assert axes[0, 1].images[0].get_array().max() == 0.5
    assert axes[1, 0].images[0].get_array().min() == 1


def test_every_code_has_its_own_colour():
    assert len({tuple(colour) for colour in style.code_colours(256)(range(256))}) == 256


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
