"""Writes the pretrained networks and their card from trained and evaluated run folders.

    python results/laptop/models/make.py [--results DIR]
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

from tevq import pretrained
from tevq.config import SettingsError, UserError
from tevq.evaluate.evaluator import encode_scenes, split_of
from tevq.evaluate.metrics import DECODINGS, SPLITS
from tevq.grid import Grid
from tevq.models import vqgan
from tevq.report import tables
from tevq.runs import devices
from tevq.runs.storage import save_tree, write_atomically

CHECKED = 200  # validation scenes on which rounding is measured


def save(grid: Grid) -> list[Path]:
    """Writes the weights of trained runs and the card; files of other runs go.

    Raises SettingsError when a run is not trained or evaluated, or has rounded weights itself.
    """
    folder, found, scores = grid.folder / "models", [], _scores(grid)
    for run in pretrained.runs_of(grid):
        weights = run.weights()
        if all(torch.equal(x, weights[name]) for name, x in _rounded(weights).items()):
            raise SettingsError(f"{run.name} holds pretrained weights, not its own; train it again")
        small = pretrained.in_type(weights, torch.float16)
        found.append(save_tree(folder, pretrained.stem(run), small))
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    card = CARD.format(preset=grid.preset, seed=pretrained.SEED, files=_files(grid, found),
                       scores=scores, rounding=_rounding(grid), checked=CHECKED)
    write_atomically(folder / "README.md", card.encode())
    return found


def _rounded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return pretrained.in_type(pretrained.in_type(weights, torch.float16), torch.float32)


def _rounding(grid: Grid) -> str:
    """Share of the codes of some validation scenes that rounding leaves as they were."""
    where, parts = devices.detect("float32"), []
    for cell in grid.cells:
        scenes, items = split_of(cell, "val", CHECKED)
        model = vqgan.load(cell, grid.results, where.device)
        before = encode_scenes(model, scenes, items, where)
        model.load_state_dict(_rounded(model.state_dict()))
        same = (encode_scenes(model, scenes, items, where) == before).float().mean()
        parts.append(f"{cell.variant} {same:.2%}")
    return ", ".join(parts)


def _files(grid: Grid, files: list[Path]) -> str:
    """The files: what is in them and where it was trained."""
    lines = ["| File | Numbers | Trained on | Minutes | Commit |",
             "| --- | --- | --- | --- | --- |"]
    for file, run in zip(files, pretrained.runs_of(grid), strict=True):
        on, weights = run.made_on, run.weights()
        count = sum(x.numel() for x in weights.values() if x.is_floating_point())
        lines.append(f"| `{file.name}` | {count:,} | {on['device_name']}, {on['precision']}, "
                     f"{on['threads']} thread{'s' * (on['threads'] > 1)} | "
                     f"{run.summary()['seconds'] / 60:.0f} | {on['commit'][:7]} |")
    return "\n".join(lines)


def _scores(grid: Grid) -> str:
    """Digit accuracy by task, split and decoding, from the evaluations of these runs."""
    table = tables.build(grid)["table1"]
    table = table[table.task.isin(tables.AS_PUBLISHED)]
    if missing := sorted(set(table.run[table.state != "done"])):
        raise SettingsError(f"not evaluated: {', '.join(missing)}; run notebook 05 first")
    lines = [f"| Task | Split | Decoding | {' | '.join(grid.variants)} |",
             "| --- " * (3 + len(grid.variants)) + "|"]
    for (task, (_, metric)), split, decoding in itertools.product(
            tables.AS_PUBLISHED.items(), SPLITS, DECODINGS):
        found = tables.by_case(table, task=task, split=split, decoding=decoding, metric=metric)
        means = " | ".join(f"{found.loc[v, 'mean'].item():.3f}" for v in grid.variants)
        lines.append(f"| {task} | {split} | {decoding} | {means} |")
    return "\n".join(lines)


CARD = """# Trained networks of preset `{preset}`, seed {seed}

The digit classifier, and VQGAN and generator of `sc` and `te` (the same plus orthogonal codes),
rounded to float16. `make.py` wrote all of this page. In a program:

```python
from tevq import pretrained
te = pretrained.load("te")
text = "the lower right is blue nine, and the white two is on the upper left."
images = te.paint(text, greedy=True)  # or seed=0, seed=1, ...: sampled
print(te.describe(images))            # images: (1, 3, 64, 64) in [-1, 1]
```

`python -m tevq.pretrained` puts them into the run folders: notebooks 02 to 05 find them trained.
Tables and figures were made before rounding, so numbers made with these differ in the last digits:
of the codes of {checked} validation scenes, rounding leaves as they were {rounding}.

{files}

Digit accuracy before rounding, mean of Quad1–4 (captions: the official, lenient rule), from the
same runs as `../tables/table1.csv`:

{scores}

They have seen coloured MNIST digits in five places and a few dozen words, and serve nothing else.
Licence: MIT, as the code. Trained on MNIST (CC BY-SA 3.0; LeCun, Cortes, Burges).
"""


if __name__ == "__main__":
    options = argparse.ArgumentParser("make.py", description=__doc__.splitlines()[0])
    options.add_argument("--results", default="", metavar="DIR")
    try:
        for path in save(pretrained.chosen(options.parse_args().results)):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    except UserError as error:
        sys.exit(f"tevq: {error}")
