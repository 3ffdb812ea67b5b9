"""Trained networks that come with the repository, to try without training.

    python -m tevq.pretrained            # puts them into the run folders, where notebooks look
    python -m tevq.pretrained --save     # writes them, and their card, from trained run folders

`results/laptop/models` holds the classifier, and VQGAN and generator of two variants, rounded to
float16 (half the size). In a program: `load("te").paint("the upper left is blue nine.")`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from tevq.config import SettingsError, UserError, unknown
from tevq.data.captions import Tokenizer
from tevq.data.source import class_names
from tevq.evaluate.evaluator import Evaluator, encode_scenes, split_of
from tevq.evaluate.generator import Generator
from tevq.evaluate.metrics import DECODINGS, SPLITS
from tevq.grid import COMPARED, Grid, choose
from tevq.models import classifier, transformer, vqgan
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree, write_atomically

PRESET, SEED = "laptop", "0"
CHECKED = 200  # validation scenes on which rounding is measured


def load(variant: str = "te", results: str | Path | None = None) -> Generator:
    """The pretrained generator of a variant. Reads files where they lie; writes nothing.

    results: the folder that holds `laptop/models`, by default the repository's results folder.
    Raises SettingsError for a variant that does not come with the repository, or absent files.
    """
    if variant not in COMPARED:
        raise unknown("pretrained network", variant, COMPARED)
    grid = dataclasses.replace(chosen(results), variants=(variant,))
    settings, device = grid.settings, devices.detect("float32").device
    networks = reader, model, generator = (
        classifier.build(settings), vqgan.VQGAN(settings.stage1), transformer.build(settings))
    for network, run in zip(networks, runs_of(grid), strict=True):
        network.load_state_dict(_read(run, grid.find("models")))
        network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    tokenizer = Tokenizer(class_names(settings.data.source))
    return Generator(settings, Evaluator(model, reader, tokenizer, device), generator)


def _read(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    """The pretrained weights of a run in float32."""
    if not (found := sorted(folder.glob(f"{stem(run)}.*.safetensors"))):
        raise SettingsError(f"no pretrained weights of {run.name} in {folder}; they come with the "
                            "repository (name its folder results), for its own settings only")
    try:
        return in_type(load_tree(found[0]), torch.float32)
    except (DamagedFileError, OSError) as error:
        raise SettingsError(f"{error}; get it again from the repository") from None


def chosen(results: str | Path | None = None, overrides: Any = "", preset: str = PRESET) -> Grid:
    """The cells whose networks come with the repository."""
    return choose(preset, COMPARED, SEED, "", overrides, str(results or ""))


def runs_of(grid: Grid) -> list[Run]:
    """The trained runs of a grid: the classifier, then both stages of every cell."""
    return [open_run(grid.settings, "classifier", grid.results)] + [
        open_run(cell, kind, grid.results)
        for cell in grid.cells for kind in ("stage1", "stage2")]


def stem(run: Run) -> str:
    """Name of the file that holds a run's weights, without its checksum."""
    return run.name.replace("/", "-")


def install(grid: Grid) -> list[str]:
    """Puts pretrained weights into run folders that have none; returns their names."""
    placed = []
    for run in runs_of(grid):
        if run.has_weights:
            continue
        weights = _read(run, grid.find("models"))
        if not run.done:
            raise SettingsError(f"{run.folder} lacks its summary.json; get it from the repository")
        save_tree(run.folder / "state", "weights", weights)
        placed.append(run.name)
    return placed


def save(grid: Grid) -> list[Path]:
    """Writes the weights of trained runs and the card; files of other runs go.

    Raises SettingsError when a run is not trained or evaluated, or has rounded weights itself.
    """
    folder, found, scores = grid.folder / "models", [], _scores(grid)
    for run in runs_of(grid):
        weights = run.weights()
        if all(torch.equal(x, weights[name]) for name, x in _rounded(weights).items()):
            raise SettingsError(f"{run.name} holds pretrained weights, not its own; train it again")
        found.append(save_tree(folder, stem(run), in_type(weights, torch.float16)))
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    card = CARD.format(preset=grid.preset, seed=SEED, files=_files(grid, found),
                       scores=scores, rounding=_rounding(grid), checked=CHECKED)
    write_atomically(folder / "README.md", card.encode())
    return found


def in_type(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights with all floating-point numbers in `dtype`."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.items()}


def _rounded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return in_type(in_type(weights, torch.float16), torch.float32)


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
    for file, run in zip(files, runs_of(grid), strict=True):
        on, weights = run.made_on, run.weights()
        count = sum(x.numel() for x in weights.values() if x.is_floating_point())
        lines.append(f"| `{file.name}` | {count:,} | {on['device_name']}, {on['precision']}, "
                     f"{on['threads']} thread{'s' * (on['threads'] > 1)} | "
                     f"{run.summary()['seconds'] / 60:.0f} | {on['commit'][:7]} |")
    return "\n".join(lines)


def _scores(grid: Grid) -> str:
    """Digit accuracy by task, split and decoding, from the evaluations of these runs."""
    from tevq.report import tables  # needs pandas, which painting does not

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
rounded to float16. `python -m tevq.pretrained --save` wrote all of this page. In a program:

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


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for what cannot be done."""
    options = argparse.ArgumentParser("python -m tevq.pretrained", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--save", action="store_true", help="write them from trained run folders")
    options.add_argument("--results", default="", metavar="DIR")
    told = options.parse_args(arguments)
    try:
        grid = chosen(told.results)
        if told.save:
            print("\n".join(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" for path in save(grid)))
        else:
            print("\n".join(f"{name}: in place" for name in install(grid)) or "all were in place")
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
