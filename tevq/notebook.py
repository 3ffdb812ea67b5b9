"""What the notebooks share: checked parameters, source on display, saved figures.

A notebook begins with a cell that makes `tevq` importable, its parameters cell, and

    grid = notebook.start(globals(), "03_stage1")
    settings = grid.settings
"""

from __future__ import annotations

import inspect
import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tevq.config import ROOT, SettingsError, unknown
from tevq.grid import Grid, choose
from tevq.pipeline import NOTEBOOKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INJECTED = "# Parameters\n"  # first line of the cell that papermill inserts


def start(namespace: dict[str, Any], name: str) -> Grid:
    """The grid that a notebook's parameters describe.

    namespace: `globals()` of the notebook; name: its file name without `.ipynb`.

    papermill injects a misspelt name without complaint, so every name that it injected must be a
    parameter of the notebook. Other names in the namespace may come from anywhere, for example from
    a startup file of IPython. Raises SettingsError for an unknown name and for any bad value.
    """
    allowed = NOTEBOOKS[name]
    for cell in namespace.get("_ih", ()):  # IPython's list of the cells that were run
        if cell.startswith(INJECTED):
            for found in re.findall(r"^(\w+) = ", cell, re.MULTILINE):
                if found not in allowed:
                    raise unknown(f"parameter of {name}", found, allowed)
    if missing := [parameter for parameter in allowed if parameter not in namespace]:
        raise SettingsError(f"{missing[0]} is not set; run the parameters cell first")
    values = {parameter: namespace[parameter] for parameter in allowed}
    here = Path.cwd().parent
    if (here / "tevq" / "notebook.py").exists() and not here.samefile(ROOT):
        print(f"tevq comes from {ROOT}, not from {here}; so do its results")
    if "variant" in values:  # a notebook about one training
        values |= {"variants": [values.pop("variant")], "seeds": [values.pop("seed")]}
    return choose(**values)


def source(*things: Callable | type) -> None:
    """Shows the source of functions or classes of `tevq`, with the file they live in."""
    from IPython.display import Markdown, display

    for thing in things:
        code = textwrap.dedent(inspect.getsource(thing)).rstrip()
        place = thing.__module__.replace(".", "/") + ".py"
        display(Markdown(f"`{place}`\n\n```python\n{code}\n```"))


def save(figure: Figure, grid: Grid, name: str, folder: Path | None = None) -> None:
    """Saves a figure as `results/<preset>/figures/<name>.png`, shows that file, closes the figure.

    folder: another place than `figures`.

    The notebook shows what was saved, so the two cannot differ.
    """
    from IPython import display
    from matplotlib import pyplot
    from PIL import Image

    path = (folder or grid.folder / "figures") / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    with Image.open(drawn) as image:  # 256 colours look the same in a third of the bytes
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    display.display(display.Image(filename=str(path)))
