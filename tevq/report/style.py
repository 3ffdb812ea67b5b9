"""What the figures of all notebooks share: theme, look of the variants, rows of images, codes.

Importing it sets seaborn's theme. `new` makes figures without pyplot, so nothing is shown twice;
`notebook.save` stores and shows them.
"""

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tevq.config import UserError
from tevq.presets import VARIANTS

COLOURS_OF = {name: variant.colour for name, variant in VARIANTS.items()}
MARKERS_OF = {name: variant.marker for name, variant in VARIANTS.items()}
NAMES_OF = {name: variant.label for name, variant in VARIANTS.items()}
# Keywords for `sns.lineplot` and `sns.relplot` of frames with a column `variant`
LOOK = {"hue": "variant", "style": "variant", "size": "variant", "palette": COLOURS_OF,
        "markers": MARKERS_OF,
        "dashes": {name: "" if isinstance(variant.dashes, str) else variant.dashes[1]
                   for name, variant in VARIANTS.items()},
        "sizes": dict.fromkeys(COLOURS_OF, 1.8) | {"te": 3.2}}
POINTS = {key: LOOK[key] for key in ("hue", "style", "size", "palette", "markers")} | {
    "sizes": dict.fromkeys(COLOURS_OF, 45) | {"te": 130}, "legend": False}  # of `sns.scatterplot`
GREY = "#666666"
MARKS = {  # of `legend`
    "one seed": {"color": GREY, "marker": "o", "linestyle": "none"},
    "mean over seeds": {"color": GREY, "linewidth": 4},
    "paper": {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": "none"},
    "ceiling: reconstructions": {"color": "black", "linewidth": 1.4},
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # lines that are no variants
sns.set_theme(style="ticks", palette=SERIES, rc={
    "axes.titlesize": 13, "figure.titlesize": 15, "legend.title_fontsize": 11,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "lines.linewidth": 2.0, "legend.frameon": False, "image.interpolation": "nearest",
    "grid.color": "#DDDDDD"})


def new(rows: int = 1, columns: int = 1, width: float = 10.0, height: float = 4.0,
        title: str = "", **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure (sizes in inches) and its axes (rows, columns); options of `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure, axes


def stamp(figure: Figure, text: str) -> Figure:
    """Says under the figure what it was made from, e.g. `stamp(figure, of(settings))`."""
    figure.text(0.99, -0.01, text, ha="right", va="top", fontsize=10, color=GREY)
    return figure


def of(settings: Any) -> str:
    """Preset, source, variant, seed and what is unusual of settings, for `stamp`."""
    return " · ".join(filter(None, (f"preset {settings.preset}", settings.data.source,
                                    settings.variant, f"seed {settings.seed}", settings.suffix)))


def legend(figure: Figure, grid: Any, drawn: pd.DataFrame, marks: Sequence[str] = (),
           by: str = "variant") -> Figure:
    """Variants and marks (keys of `MARKS`) under the panels, headed by preset, source and seeds.

    drawn: rows with columns variant and seed; by: the column whose values may have other seeds.
    """
    there = {NAMES_OF[v]: {"color": COLOURS_OF[v], "marker": MARKERS_OF[v], "linestyle": "none"}
             for v in grid.variants if v in set(drawn.variant)}
    handles = [Line2D([], [], label=name, **mark)
               for name, mark in (there | {name: MARKS[name] for name in marks}).items()]
    title = f"preset {grid.preset} · {grid.settings.data.source} · {seeds_of(drawn, by)}"
    figure.legend(handles=handles, ncols=3, loc="outside lower center", title=title)
    return figure


def seeds_of(drawn: pd.DataFrame, by: str = "variant") -> str:
    """The seeds of rows, and of which variants where they differ: seeds 0, 1 (mb); 0, 1, 2 (te)."""
    seeds = drawn.groupby(by, sort=False).seed.agg(lambda x: ", ".join(map(str, sorted(set(x)))))
    texts = [f"{text} ({', '.join(same.index)})" for text, same in seeds.groupby(seeds, sort=False)]
    return "seeds " + ("; ".join(texts) if len(texts) > 1 else seeds.iloc[0]) if texts else (
        "no runs yet")


def missing(axis: Axes, text: str) -> None:
    """An empty panel that says what is missing."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, textwrap.fill(text, 60), ha="center", va="center", color=GREY,
              transform=axis.transAxes)


def wrap(text: str, width: int = 22) -> str:
    """Text broken into lines, for captions under images."""
    return textwrap.fill(text, width)


def show(axis: Axes, image: torch.Tensor, title: str = "", caption: str = "") -> None:
    """Draws an image (3, H, W) in [-1, 1] without ticks, with its caption underneath."""
    pixels = (torch.as_tensor(image).detach().float().cpu().permute(1, 2, 0) + 1) / 2  # (H, W, 3)
    axis.imshow(pixels.clamp(0, 1).numpy())
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, loc="center", fontsize=11)
    axis.set_xlabel(wrap(caption, 24), fontsize=11, va="top")
    for spine in axis.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.8)


def image_rows(rows: dict[str, Sequence[torch.Tensor]], titles: Sequence[str] = (),
               size: float = 1.2, captions: Sequence[str] = ()) -> tuple[Figure, np.ndarray]:
    """A row of images per entry, named at its left; titles stand above, captions below columns."""
    count, below = len(next(iter(rows.values()))), 1.1 if captions else 0
    figure, axes = new(len(rows), count, size * count + 1.2, size * len(rows) + 0.35 + below)
    for row, (line, (name, images)) in enumerate(zip(axes, rows.items(), strict=True)):
        for column, (axis, image) in enumerate(zip(line, images, strict=True)):
            show(axis, image, titles[column] if titles and row == 0 else "",
                 captions[column] if captions and row == len(rows) - 1 else "")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure, axes


def code_colours(K: int) -> ListedColormap:
    """A colour per code, the same in every figure: hues and lightness spread by golden steps."""
    index = np.arange(K)
    hue, value, saturation = (index * step % 1 for step in (0.61803399, 0.38196601, 0.7548777))
    hsv = np.stack([hue, 0.45 + 0.5 * saturation, 0.55 + 0.45 * value], 1)
    return ListedColormap(hsv_to_rgb(hsv))


def explore(draw: Callable[..., Figure], **choices: Any) -> None:
    """Sliders and menus over the arguments of a function that returns a figure.

    choices: as for `ipywidgets.interact`, which is not used because papermill can wait for ever for
    its Output widget (nbclient issue 312). A web page shows no widget: save one figure as well.
    """
    from IPython.display import display
    from ipywidgets import Image, Label, VBox, interactive

    controls = {name: interactive.widget_from_abbrev(choice) for name, choice in choices.items()}
    picture, said = Image(format="png"), Label()

    def redraw(_: Any = None) -> None:
        try:
            figure = draw(**{name: x.value for name, x in controls.items()})
        except UserError as error:  # such as a wrong caption; the last picture stays
            said.value = str(error)
            return
        said.value, drawn = "", io.BytesIO()
        figure.savefig(drawn, dpi=90, bbox_inches="tight")
        picture.value = drawn.getvalue()

    for name, control in controls.items():
        control.description = name
        control.continuous_update = not isinstance(control.value, str)  # texts: when they are done
        control.observe(redraw, "value")
    redraw()
    display(VBox([*controls.values(), said, picture]))
