"""Trained networks that come with the repository, to try without training.

    python -m tevq.pretrained    # puts them into the run folders, where notebooks look

`results/laptop/models` holds the classifier, and VQGAN and generator of two variants, rounded to
float16 (half the size). In a program: `load("te").paint("the upper left is blue nine.")`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from tevq.config import SettingsError, UserError, unknown
from tevq.data.captions import Tokenizer
from tevq.data.source import class_names
from tevq.evaluate.evaluator import Evaluator, Generator
from tevq.grid import COMPARED, Grid, choose
from tevq.models import classifier, transformer, vqgan
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree

PRESET, SEED = "laptop", "0"  # what the repository brings, by results/laptop/models/make.py


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
    tokenizer = Tokenizer(class_names(settings.data.source, settings.data.words))
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


def in_type(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights with all floating-point numbers in `dtype`."""
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.items()}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 for what cannot be done."""
    options = argparse.ArgumentParser("python -m tevq.pretrained", description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", default="", metavar="DIR")
    try:
        placed = install(chosen(options.parse_args(arguments).results))
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{name}: in place" for name in placed) or "all were in place")
    return 0


if __name__ == "__main__":
    sys.exit(main())
