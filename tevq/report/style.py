"""What all figures share: one colour per variant, sizes, grids of images, maps of codes.

Figures are plain `matplotlib.figure.Figure` objects made without pyplot, so nothing is shown or
kept twice; `notebook.save` stores and shows them. Functions that draw are decorated with `@styled`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from tevq.presets import VARIANTS

if TYPE_CHECKING:
    from tevq.grid import Grid

COLOURS_OF = {name: variant.colour for name, variant in VARIANTS.items()}
MARKERS_OF = {name: variant.marker for name, variant in VARIANTS.items()}
DASHES_OF = {name: variant.dashes for name, variant in VARIANTS.items()}
NAMES_OF = {name: variant.label for name, variant in VARIANTS.items()}
# Cases from few to many items get darker; the center control is orange
CASE_COLOURS = {"quad1": "#9ECAE1", "quad2": "#4F9BCB", "quad3": "#1F6CB0", "quad4": "#08306B",
                "center": "#E69F00"}
# Keywords for `sns.lineplot` and `sns.relplot` of frames with a column `variant`
LOOK = {"hue": "variant", "style": "variant", "size": "variant", "palette": COLOURS_OF,
        "markers": MARKERS_OF,
        "dashes": {"mb": (1, 1), "mp": (4, 1, 1, 1), "cb": (4, 2), "sc": "", "te": ""},
        "sizes": dict.fromkeys(COLOURS_OF, 1.8) | {"te": 3.2}}
INK = {"white": "#888888", "red": "#D62728", "green": "#2CA02C", "blue": "#1F5FD0"}  # on paper
GREY = "#666666"
OUTLINE = [Stroke(linewidth=2.5, foreground="white"), Normal()]  # of text on any colour
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # lines that are no variants
STYLE = {
    "font.size": 12, "axes.titlesize": 13, "axes.labelsize": 12, "figure.titlesize": 15,
    "legend.fontsize": 11, "xtick.labelsize": 11, "ytick.labelsize": 11,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    "lines.linewidth": 2.0, "legend.frameon": False, "image.interpolation": "nearest",
    "axes.grid": False, "grid.color": "#DDDDDD", "savefig.facecolor": "white",
}
sns.set_theme(style="ticks", palette=SERIES, rc=STYLE)
styled = rc_context(STYLE)  # a decorator, too
# Keywords for `sns.scatterplot` of such frames
POINTS = {key: LOOK[key] for key in ("hue", "style", "size", "palette", "markers")} | {
    "sizes": dict.fromkeys(COLOURS_OF, 45) | {"te": 130}, "legend": False}
MARKS = {  # of `legend`
    "one seed": {"color": GREY, "marker": "o", "linestyle": "none"},
    "mean over seeds": {"color": GREY, "linewidth": 4},
    "paper": {"color": "black", "marker": "D", "markerfacecolor": "none", "linestyle": "none"},
    "ceiling: reconstructions": {"color": "black", "linewidth": 1.4},
}
WIDTH = 10.0  # inches of a full-width figure
FEW = 12  # points of a line that are marked one by one


def new(rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = 4.0,
        title: str = "", **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns); options as for `Figure.subplots`."""
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
    """Preset, items, variant, seed and what is unusual of settings, for `stamp`."""
    words = [f"preset {settings.preset}", settings.data.source, settings.variant,
             f"seed {settings.seed}", settings.suffix]
    return " · ".join(filter(None, words))


def line_of(variant: str, **changes: Any) -> dict[str, Any]:
    """Keywords for `plot`: the variant's colour, marker, dashes; te is drawn on top and wider."""
    ours = variant == "te"
    return {"color": COLOURS_OF[variant], "marker": MARKERS_OF[variant],
            "linestyle": DASHES_OF[variant], "label": NAMES_OF[variant],
            "linewidth": 3.2 if ours else 2.0, "markersize": 11 if ours else 6,
            "zorder": 4 if ours else 3} | changes


def label_ends(axis: Axes, ends: dict[str, tuple[float, float]], gap: float = 0.06) -> None:
    """Writes each variant's name beside the end of its line, in its colour, without overlap.

    ends: variant -> (x, y) of the last point; gap: least distance in shares of the y range.
    """
    low, high = axis.get_ylim()
    last = -np.inf
    for variant, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(y, last + gap * (high - low))
        axis.annotate(variant, (x, last), (8, 0), textcoords="offset points", va="center",
                      color=COLOURS_OF[variant], annotation_clip=False,
                      fontweight="bold" if variant == "te" else "normal")


def missing(axis: Axes, text: str) -> None:
    """An empty panel that says what is missing."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, textwrap.fill(text, 60), ha="center", va="center", color=GREY,
              transform=axis.transAxes)


def legend(figure: Figure, grid: Grid, drawn: pd.DataFrame, marks: Sequence[str] = (),
           by: str = "variant") -> Figure:
    """Variants and marks under the panels; above them preset, source and the seeds drawn.

    drawn: the rows behind the figure, with columns variant and seed; marks: keys of `MARKS`; by:
    the column whose values may have different seeds.
    """
    variants = [variant for variant in grid.variants if variant in set(drawn.variant)]
    handles = [Line2D([], [], color=COLOURS_OF[v], marker=MARKERS_OF[v], linestyle="none",
                      markersize=9, label=NAMES_OF[v]) for v in variants]
    handles += [Line2D([], [], label=name, **MARKS[name]) for name in marks]
    found = figure.legend(handles=handles, ncols=3, loc="outside lower center", title_fontsize=10,
                          title=f"preset {grid.preset} · {grid.settings.data.source} · "
                                f"{seeds_of(drawn, by)}")
    found.get_title().set_color(GREY)
    return figure


def seeds_of(drawn: pd.DataFrame, by: str = "variant") -> str:
    """The seeds of rows, and of which variants where they differ: seeds 0, 1 (mb); 0, 1, 2 (te)."""
    found: dict[str, list[str]] = {}
    for name, seeds in drawn.groupby(by, sort=False).seed.unique().items():
        found.setdefault(", ".join(map(str, sorted(seeds))), []).append(name)
    texts = [seeds + f" ({', '.join(names)})" * (len(found) > 1) for seeds, names in found.items()]
    return "seeds " + "; ".join(texts) if texts else "no runs yet"


# ---------------------------------------------------------------------------------- images


def pixels(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """Image (3, H, W) in [-1, 1] -> (H, W, 3) in [0, 1]."""
    array = torch.as_tensor(image).detach().float().cpu().numpy()
    return ((array.transpose(1, 2, 0) + 1) / 2).clip(0, 1)


def show(axis: Axes, image: torch.Tensor, title: str = "", frame: str = "") -> None:
    """Draws an image (3, H, W) in [-1, 1] without ticks; `frame` is a border colour."""
    axis.imshow(pixels(image))
    bare(axis, title, frame)


def bare(axis: Axes, title: str = "", frame: str = "") -> None:
    """No ticks; a thin border, or a wide coloured one."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, loc="center", fontsize=11)
    for spine in axis.spines.values():
        spine.set(visible=True, color=frame or "#BBBBBB", linewidth=3 if frame else 0.8)


@styled
def image_rows(rows: dict[str, Sequence[torch.Tensor]], titles: Sequence[str] = (),
               title: str = "", size: float = 1.2) -> Figure:
    """One labelled row of images per entry, columns aligned; `titles` stand over the columns."""
    count = max(len(images) for images in rows.values())
    figure, axes = new(len(rows), count, size * count + 1.2, size * len(rows) + 0.35, title)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line[len(images):]:
            axis.set_axis_off()
        for axis, image in zip(line, images, strict=False):
            show(axis, image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, loc="center", fontsize=11)
    return figure


# ---------------------------------------------------------------------------------- codes


def code_colours(K: int) -> ListedColormap:
    """A colour per code, the same in every figure: hues and lightness spread by golden steps."""
    index = np.arange(K)
    hue = (index * 0.61803399) % 1
    value = 0.55 + 0.45 * ((index * 0.38196601) % 1)
    saturation = 0.45 + 0.5 * ((index * 0.7548777) % 1)
    return ListedColormap(hsv_to_rgb(np.stack([hue, saturation, value], 1)))


def differing(a: torch.Tensor | np.ndarray, b: torch.Tensor | np.ndarray) -> np.ndarray:
    """Cells (n, 2) as (row, column) at which two code maps (h, w) differ."""
    return np.argwhere(np.asarray(a) != np.asarray(b))


def code_map(axis: Axes, codes: torch.Tensor | np.ndarray, K: int, title: str = "",
             marked: np.ndarray | Sequence = (), numbers: bool = False) -> None:
    """Codes (h, w) as coloured cells; cells in `marked` (n, 2) are crossed out and framed.

    The frames carry the label "differs", so that a test can read them back.
    """
    codes = np.asarray(codes)
    axis.imshow(codes, cmap=code_colours(K), vmin=0, vmax=K - 1)
    bare(axis, title)
    for row, column in np.asarray(marked).reshape(-1, 2):
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black",
                                 linewidth=2, label="differs"))
        for slope in (-0.5, 0.5):
            axis.plot([column - 0.5, column + 0.5], [row - slope, row + slope], color="black",
                      linewidth=1)
    if numbers:
        for (row, column), code in np.ndenumerate(codes):
            axis.text(column, row, str(code), ha="center", va="center", fontsize=8,
                      path_effects=OUTLINE)


def code_image(codes: torch.Tensor | np.ndarray, K: int) -> torch.Tensor:
    """Codes (h, w) in the colours of `code_map`, as an image (3, h, w) in [-1, 1]."""
    colours = code_colours(K)(np.asarray(codes))[..., :3]  # (h, w, 3)
    return torch.from_numpy(colours).permute(2, 0, 1) * 2 - 1


def wrap(text: str, width: int = 22) -> str:
    """Text broken into lines, for captions under images."""
    return textwrap.fill(text, width)


# ---------------------------------------------------------------------------------- curves


@styled
def curves(rows: Sequence[dict], panels: Sequence[tuple[str, str, dict[str, str]]],
           title: str = "", columns: int = 3, mark: tuple[float, str] | None = None) -> Figure:
    """Logged numbers against steps.

    rows: lines of metrics.jsonl; panels: (title, unit, {logged name: label}); mark: a step and what
    happens there. A panel without numbers says so.
    """
    lines = -(-len(panels) // columns)
    figure, axes = new(lines, columns, 12.5, 2.9 * lines + 0.4, title)
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for axis, (name, unit, keys) in zip(axes.flat, panels, strict=False):
        first = axis is axes[0, 0]
        found = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                 for key in keys}
        if not any(found.values()):
            missing(axis, f"{name}: nothing logged")
            continue
        for number, (key, points) in enumerate(found.items()):
            if points:
                axis.plot(*zip(*points, strict=True), label=keys[key], color=SERIES[number],
                          linestyle=("-", "--", ":")[number % 3],
                          marker="o" if len(points) < FEW else None, markersize=4)
        if mark and mark[0] <= rows[-1]["step"]:
            axis.axvline(mark[0], color=GREY, linestyle=":", linewidth=1.2,
                         label=mark[1] if first else None)
        axis.set(title=name, xlabel="step", ylabel=unit)
        axis.grid(True)
        if len(keys) > 1 or (first and mark):
            axis.legend(fontsize=10)
    return figure


def explore(draw: Callable[..., Figure], **choices: Any) -> None:
    """Sliders and menus over the arguments of a function that returns a figure.

    choices: as for `ipywidgets.interact`. Whoever calls this also saves one of the figures, because
    a web page or an executed copy shows no widget. The picture is an Image widget: with an Output
    widget, which `interact` uses, nbclient (papermill) can wait for ever (its issue 312).
    """
    from IPython.display import display
    from ipywidgets import Image, VBox, interactive

    controls = {name: interactive.widget_from_abbrev(choice) for name, choice in choices.items()}
    picture = Image(format="png")

    def redraw(_: Any = None) -> None:
        target = io.BytesIO()
        figure = draw(**{name: control.value for name, control in controls.items()})
        figure.savefig(target, dpi=90, bbox_inches="tight")
        picture.value = target.getvalue()

    redraw()
    for name, control in controls.items():
        control.description = name
        control.observe(redraw, "value")
    widget = VBox([*controls.values(), picture])
    if not hasattr(widget, "_repr_mimebundle_"):  # ipywidgets 7 (Colab) shows itself
        display(widget)
        return
    bundle = widget._repr_mimebundle_()
    display(bundle | {"text/plain": "(sliders, in a running notebook)"}, raw=True)
