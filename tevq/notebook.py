"""What the notebooks share: checked parameters, source on display, saved figures.

A notebook begins with a cell that makes `tevq` importable, its parameters cell, and

    grid = notebook.start(globals(), "03_stage1")
    settings = grid.settings
"""

import inspect
import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tevq import pretrained
from tevq.config import LOCAL, ROOT, SettingsError, UserError, results_root, unknown
from tevq.data.source import load_source
from tevq.grid import COMPARED, Grid, choose
from tevq.pipeline import NOTEBOOKS
from tevq.runs.run import open_run

INJECTED = "# Parameters\n"  # first line of the cell that papermill inserts
SHOWS_TRAINED = ("02_aliasing", "04_stage2", "05_evaluation", "06_discussion")


def start(namespace: dict[str, Any], name: str) -> Grid:
    """The grid that a notebook's parameters describe.

    namespace: `globals()` of the notebook; name: its file name without `.ipynb`.
    papermill injects a misspelt name without complaint, so every name that it injected must be a
    parameter of the notebook. Other names in the namespace may come from anywhere, for example from
    a startup file of IPython. Raises SettingsError for an unknown name and for any bad value.

    Opened by hand with nothing trained, a notebook shows the networks that come with the
    repository, and says so.
    """
    allowed = NOTEBOOKS[name]
    injected = [cell for cell in namespace.get("_ih", ())  # IPython's list of the cells that ran
                if cell.startswith(INJECTED)]
    for found in re.findall(r"^(\w+) = ", "\n".join(injected), re.MULTILINE):
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
    grid = choose(**values)
    return grid if injected or name not in SHOWS_TRAINED else _or_shipped(grid, name)


def _or_shipped(grid: Grid, name: str) -> Grid:
    """`grid`, or that of the shipped networks when it has no trained quantizer.

    The whole grid is another one, so no number of the shipped networks stands in a table of `grid`.
    Other results folders than the usual one are left alone: the published runs are not read there.
    """
    quantizers = [open_run(cell, "stage1", grid.results) for cell in grid.cells]
    changed = grid.overrides or grid.fraction != 1  # asks for something of its own
    if any(run.done for run in quantizers) or changed or results_root(grid.results) != LOCAL:
        return grid
    variants = set(COMPARED) & set(grid.variants) if name == "04_stage2" else ()
    shipped = choose(pretrained.PRESET, tuple(variants) or COMPARED[-(name == "04_stage2"):],
                     pretrained.SEED)
    told = f"preset {grid.preset}: nothing is trained yet (./run_all.sh --preset {grid.preset})"
    if name != "06_discussion":  # which reads numbers only
        try:
            load_source(shipped.settings.data.source, "test")
        except UserError as error:
            print(f"{told}; the trained networks that come with tevq cannot be shown: {error}")
            return grid
    print(f"{told}. Shown instead: networks that come with tevq, preset {shipped.preset}, "
          f"{' and '.join(shipped.variants)}, seed {pretrained.SEED}")
    return shipped


def source(*things: Callable | type) -> None:
    """Shows the source of functions or classes of `tevq`, with the file they live in."""
    from IPython.display import Markdown, display

    for thing in things:
        code = textwrap.dedent(inspect.getsource(thing)).rstrip()
        place = thing.__module__.replace(".", "/") + ".py"
        display(Markdown(f"`{place}`\n\n```python\n{code}\n```"))


def save(figure: Any, grid: Grid, name: str, folder: Path | None = None) -> None:
    """Saves a figure as `<name>.png` in `results/<preset>/figures`, or in `folder`; closes it.

    figure: of matplotlib. The notebook shows what was saved, so the two cannot differ.
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
