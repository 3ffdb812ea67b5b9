"""Trained networks that come with the repository, to try without training.

    python -m tevq.pretrained            # puts them into the run folders, where notebooks look
    python -m tevq.pretrained --save     # writes them, and their card, from trained run folders

`results/laptop/models` holds the classifier, and quantizer and generator of two variants, rounded
to float16 (half the size). In a program: `load("te").paint(["the upper left is blue nine."])`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tevq.config import Settings, SettingsError, UserError
from tevq.evaluate.evaluate import DECODINGS, SPLITS
from tevq.evaluate.evaluator import Evaluator, encode_scenes, split_of
from tevq.grid import COMPARED, Grid, choose
from tevq.models import transformer, vqgan
from tevq.models.transformer import Transformer
from tevq.report import tables
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree, write_atomically

PRESET, SEED = "laptop", "0"
CHECKED = 200  # validation scenes on which rounding is measured


@dataclass(frozen=True)
class Generator:
    """A trained generator with its quantizer: captions to images and back."""

    settings: Settings
    evaluator: Evaluator
    model: Transformer

    def paint(self, captions: Sequence[str], seed: int = 0, greedy: bool = False) -> torch.Tensor:
        """One image per caption: (N, 3, 64, 64) in [-1, 1].

        Raises SettingsError for a word outside the grammar or a caption that is too long.
        """
        tokenizer = self.evaluator.tokenizer
        text = torch.zeros(len(captions), tokenizer.length, dtype=torch.long)
        for row, caption in zip(text, captions, strict=True):
            ids = tokenizer.encode(caption)
            if len(ids) > len(row):
                raise SettingsError(f"caption of {len(ids) - 2} tokens; at most {len(row) - 2} "
                                    "fit, that is four clauses")
            row[: len(ids)] = torch.tensor(ids)
        codes = self.evaluator.paint(self.model, text, self.settings.evaluation, seed, greedy)
        return self.evaluator.decode(codes)

    @torch.no_grad()
    def describe(self, images: torch.Tensor, seed: int = 0, greedy: bool = True) -> list[str]:
        """One caption per image (N, 3, 64, 64) in [-1, 1]."""
        codes = self.evaluator.vqgan.codes(images.to(self.evaluator.device))
        return self.evaluator.image_to_text(self.model, codes, self.settings.evaluation, seed, greedy)


def load(variant: str = "te", results: str | Path | None = None) -> Generator:
    """The pretrained generator of a variant; puts it into the run folders first, if need be.

    Raises SettingsError for a variant that does not come with the repository.
    """
    if variant not in COMPARED:
        raise SettingsError(f"no pretrained networks of {variant!r}; there are some of "
                            f"{', '.join(COMPARED)}")
    grid = dataclasses.replace(chosen(results), variants=(variant,))
    install(grid)
    settings = grid.settings
    evaluator = Evaluator.load(settings, grid.results, devices.detect("float32").device)
    return Generator(settings, evaluator, transformer.load(settings, grid.results, evaluator.device))


def chosen(results: str | Path | None = None, overrides: Any = "",
           preset: str = PRESET) -> Grid:
    """The cells whose networks come with the repository."""
    return choose(preset, COMPARED, SEED, "", overrides, str(results or ""))


def runs_of(grid: Grid) -> list[Run]:
    """The trained runs of a study: the classifier, then both stages of every cell."""
    return [open_run(grid.settings, "classifier", grid.results)] + [
        open_run(cell, kind, grid.results)
        for cell in grid.cells for kind in ("stage1", "stage2")]


def stem(run: Run) -> str:
    """Name of the file that holds a run's weights, without its checksum."""
    return run.name.replace("/", "-")


def install(grid: Grid) -> list[str]:
    """Puts pretrained weights into run folders that have none; returns their names.

    Raises SettingsError when there are none for a run, or damaged ones.
    """
    placed = []
    for run in runs_of(grid):
        if run.has_weights:
            continue
        files = sorted((grid.folder / "models").glob(f"{stem(run)}.*.safetensors"))
        if not files or not run.done:
            raise SettingsError(f"no pretrained weights of {run.name} in {grid.folder / 'models'} "
                                "(other settings?); train it: ./run_all.sh --help")
        try:
            weights = load_tree(files[0])
        except DamagedFileError as error:
            raise SettingsError(f"{error}; get it again from the repository") from None
        save_tree(run.folder / "state", "weights", in_type(weights, torch.float32))
        placed.append(run.name)
    return placed


def save(grid: Grid) -> list[Path]:
    """Writes the weights of trained runs and the card; files of other runs go.

    Raises SettingsError when a run is not trained or evaluated, or has rounded weights itself.
    """
    folder, found, counts = grid.folder / "models", [], []
    scores = _scores(grid)
    for run in runs_of(grid):
        weights = run.weights()
        if _same(weights, in_type(in_type(weights, torch.float16), torch.float32)):
            raise SettingsError(f"{run.name} holds pretrained weights, not its own; train it again")
        found.append(save_tree(folder, stem(run), in_type(weights, torch.float16)))
        counts.append(sum(x.numel() for x in weights.values() if x.is_floating_point()))
    for old in set(folder.glob("*.safetensors")) - set(found):
        old.unlink()
    card = CARD.format(preset=grid.preset, seed=SEED, files=_files(grid, found, counts),
                       scores=scores, rounding=_rounding(grid), checked=CHECKED)
    write_atomically(folder / "README.md", card.encode())
    return found


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def in_type(tree: Any, dtype: torch.dtype) -> Any:
    """Nested weights with all floating-point numbers in `dtype`."""
    if isinstance(tree, torch.Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    return {key: in_type(value, dtype) for key, value in tree.items()}


def _rounding(grid: Grid) -> str:
    """Share of the codes of some validation scenes that rounding leaves as they were."""
    where, parts = devices.detect("float32"), []
    for cell in grid.cells:
        scenes, items = split_of(cell, "val", CHECKED)
        model = vqgan.load(cell, grid.results, where.device)
        before = encode_scenes(model, scenes, items, where)
        model.load_state_dict(in_type(in_type(model.state_dict(), torch.float16), torch.float32))
        same = (encode_scenes(model, scenes, items, where) == before).float().mean()
        parts.append(f"{cell.variant} {same:.2%}")
    return ", ".join(parts)


def _files(grid: Grid, files: list[Path], counts: list[int]) -> str:
    """The files: what is in them and where it was trained."""
    lines = ["| File | Numbers | Trained on | Minutes | Commit |",
             "| --- | --- | --- | --- | --- |"]
    for file, count, run in zip(files, counts, runs_of(grid), strict=True):
        on = run.made_on
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

The digit classifier, and quantizer and generator of `sc` (VQGAN) and `te` (TE-VQGAN: the same plus
orthogonal codes). Written by `python -m tevq.pretrained --save`; nothing here is typed by hand.

```bash
python -m tevq.pretrained    # puts them into the run folders: notebooks 02 to 05 find them trained
```

```python
from tevq import pretrained
te = pretrained.load("te")
text = "the lower right is blue nine, and the white two is on the upper left."
images = te.paint([text], greedy=True)  # or seed=0, seed=1, ...: sampled
print(te.describe(images))              # images: (1, 3, 64, 64) in [-1, 1]
```

{files}

Digit accuracy before rounding, mean of Quad1–4 (captions: the official, lenient rule); from the
same runs as `../tables/table1.csv`:

{scores}

**Rounded** to float16. Of the codes of {checked} validation scenes this leaves unchanged:
{rounding}. Tables and figures were made with the unrounded weights,
so numbers made with these differ in the last digits.

**For** looking at codes, painting captions of this grammar and describing such scenes. **Not for**
anything else: they have seen coloured MNIST digits in five places and a few dozen words.

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
            for path in save(grid):
                print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
        else:
            placed = install(grid)
            print("\n".join(f"{name}: in place" for name in placed) or "all were in place")
            if placed:
                print("rounded to float16: what is trained or evaluated on them differs from what "
                      "is committed in the last digits")
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
