"""Trained networks that come with the repository, to try without training.

    python -m tevq.pretrained paint "the upper left is red five." --out x.png
    python -m tevq.pretrained describe x.png    # or: codes x.png
    python -m tevq.pretrained    # puts them into the run folders, where notebooks look

`results/laptop/models` holds the classifier, and VQGAN and generator of two variants, rounded to
float16 (half the size). In a program: `load("te").paint("the upper left is blue nine.")`.
"""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not util.find_spec("torch"):
    sys.exit("tevq: this Python has no torch; use .venv/bin/python, or install requirements.txt")
import torch
from torch.nn.functional import max_pool2d, pad

from tevq.config import MOST_SEED, PUBLISHED, Settings, SettingsError, UserError, unknown
from tevq.data.captions import PAD, Tokenizer, nearest, parse
from tevq.data.source import class_names
from tevq.evaluate.equivariance import Agreement, Encoded, encode, nearest_cell
from tevq.evaluate.evaluator import Evaluator
from tevq.grid import COMPARED, Grid, choose
from tevq.models import classifier, transformer, vqgan
from tevq.models.sampling import check_options, generate_captions, generate_images
from tevq.models.transformer import Transformer
from tevq.pictures import Pictures, Shown, as_images
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree

PRESET, SEED = "laptop", "0"  # what the repository brings, by results/laptop/models/make.py
AT_ONCE = 64  # captions or images; after each such part it says how far it is
OFFICIAL = Settings().evaluation
PAINTING = ("out", "seed", "greedy", "samples", "temperature", "top_k")  # options of `paint`
BLACK = -0.8  # what is darker is no part of an item; painted backgrounds are not quite -1


@dataclass(frozen=True, repr=False)
class Generator:
    """A trained generator with its VQGAN. Bad captions, pictures and numbers raise SettingsError.

    Pictures are whatever `pictures.as_images` takes: files, PIL images, arrays, lists of them. S is
    the side of a scene, 64 in the networks that come with the repository.
    """

    settings: Settings
    evaluator: Evaluator
    model: Transformer

    def __repr__(self) -> str:
        return f"<generator {self.settings.variant!r} of scenes of {self.settings.data.source}>"

    def paint(self, captions: str | Sequence[str], seed: int = 0, greedy: bool = False,
              samples: int = 1, temperature: float = OFFICIAL.temperature,
              top_k: int | None = OFFICIAL.top_k) -> Pictures:
        """Images (N * samples, 3, S, S) in [-1, 1]; those of a caption follow each other.

        greedy: always the likeliest code. Otherwise codes are drawn among the `top_k` likeliest
        (None: all), below temperature 1 closer to the likeliest; sample j is that of seed + j.
        """
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, (list, tuple)) or not captions:
            raise SettingsError("paint takes a caption or a list of captions, as text")
        if type(samples) is not int or samples < 1 or greedy and samples > 1:
            raise SettingsError(f"samples = {samples!r} must be a whole number from 1"
                                + "; greedy ones would all be the same" * bool(greedy))
        check_options(temperature, top_k)
        seeds = [i + ((_seed(seed) + j) % 2**31 << 32)
                 for i in range(len(captions)) for j in range(samples)]
        words = [text for text in captions for _ in range(samples)]
        rows = torch.tensor([self._tokens(text) for text in words])
        codes = self._parts("painted", rows, torch.tensor(seeds), lambda *x: (
            generate_images(self.model, *x, temperature, top_k, greedy)))
        return self._pictures(self.evaluator.decode(codes), codes, words)

    def describe(self, pictures: Any, seed: int = 0, greedy: bool = True) -> list[str]:
        """One caption per picture."""
        codes = self.codes(pictures)
        seeds = torch.arange(len(codes)) + (_seed(seed) << 32)
        rows = self._parts("described", codes, seeds, lambda *x: generate_captions(
            self.model, *x, OFFICIAL.temperature, OFFICIAL.top_k, greedy))
        return [self.evaluator.tokenizer.decode(row) for row in rows.tolist()]

    def codes(self, pictures: Any) -> torch.Tensor:
        """Codes (N, h, w) of pictures."""
        x = as_images(pictures, self.settings.data.scene)
        with torch.no_grad():
            return self._parts("encoded", x, torch.zeros(len(x)),
                               lambda x, _: self.evaluator.vqgan.codes(x))

    def reconstruct(self, pictures: Any) -> Pictures:
        """Images (N, 3, S, S) in [-1, 1] as their codes show them."""
        codes = self.codes(pictures)
        return self._pictures(self.evaluator.decode(codes), codes)

    def show(self, pictures: Any) -> None:
        """Shows pictures in a notebook, with their codes and what `describe` says of them."""
        x = self.pictures(pictures)
        x.words = self.describe(x)
        x.show()

    def pictures(self, pictures: Any) -> Pictures:
        """Pictures as the networks see them, with their codes."""
        x = as_images(pictures, self.settings.data.scene)
        return self._pictures(x, self.codes(x), getattr(pictures, "words", ()))

    @torch.no_grad()
    def move(self, pictures: Any, right: int = 1, down: int = 0) -> Pictures:
        """Pictures moved by pixels, and how many of their codes moved along (equation 2).

        The code of a cell is compared with that of the cell it comes from, or from nearest to.
        """
        x, model = as_images(pictures, self.settings.data.scene), self.evaluator.vqgan
        size, stride = x.shape[-1], model.stride
        if not all(type(d) is int and abs(d) < size for d in (right, down)):
            raise SettingsError(f"cannot move by {right!r}, {down!r}; use whole pixels < {size}")
        moved = pad(x, (right, -right, down, -down), value=-1)  # below zero: cut off
        with devices.fewer_threads():
            both = [encode(model, y.to(self.evaluator.device)) for y in (x, moved)]
        cells = [nearest_cell(abs(d), stride) * (1 if d > 0 else -1) for d in (down, right)]
        windows = [(..., *_overlap(size // stride, *(sign * c for c in cells))) for sign in (-1, 1)]
        seen = [max_pool2d((y.amax(1) > BLACK).float(), stride) > 0 for y in (x, moved)]
        a, b = (Encoded(y.features.cpu()[at], y.codes.cpu()[at], ink[at])
                for y, ink, at in zip(both, seen, windows, strict=True))
        row = Agreement(model.quantizer.K, [(a, b)]).rows()[1]
        made = self._pictures(moved, both[1].codes.cpu())
        made.changed, made.ink = torch.zeros(2, *made.codes.shape, dtype=torch.bool)
        made.changed[windows[1]], made.ink[windows[1]] = a.codes != b.codes, a.ink | b.ink
        made.agreement, made.kappa = row["agreement"], row["kappa"]
        return made

    def _pictures(self, images, codes, words: Sequence[str] = ()) -> Pictures:
        return Pictures.of(images, codes=codes, K=self.evaluator.vqgan.quantizer.K, words=words)

    def _tokens(self, caption: str) -> list[int]:
        """A caption as padded token ids, if it is one of the grammar."""
        if not isinstance(caption, str):
            raise SettingsError(f"{caption!r} is no text; paint takes captions, as text")
        tokenizer = self.evaluator.tokenizer
        found = parse(caption, tokenizer.names).problems if caption.strip() else ("it is empty",)
        if found:
            guess = nearest(caption, tokenizer.names)
            hint, told = "did you mean" if guess else "a good one:", "; ".join(found)
            if not guess and "unknown word" in told:
                told += f"; known: {' '.join(filter(str.isalnum, tokenizer.words))}"
            raise SettingsError(f"caption {caption!r}: {told}; {hint} "
                                f"{guess or f'the upper left is blue {tokenizer.names[-1]}.'!r}")
        ids = tokenizer.encode(caption)
        return ids + [PAD] * (tokenizer.length - len(ids))

    def _parts(self, verb: str, x: torch.Tensor, seeds: torch.Tensor, work: Callable
               ) -> torch.Tensor:
        """`work` on parts of x (N, ...) and seeds (N,), together; says on stderr how far it is."""
        began, found = time.monotonic(), []
        for part in zip(x.split(AT_ONCE), seeds.split(AT_ONCE), strict=True):
            with devices.fewer_threads():
                found.append(work(*(y.to(self.evaluator.device) for y in part)).cpu())
            done, spent = sum(map(len, found)), time.monotonic() - began
            if len(x) > AT_ONCE:
                left = f"about {spent / done * (len(x) - done):.0f} s left"
                print(f"\r{verb} {done} of {len(x)}, {left}", end="", file=sys.stderr, flush=True)
        if len(x) > AT_ONCE:
            print(file=sys.stderr)
        return torch.cat(found)


def _seed(seed: int) -> int:
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise SettingsError(f"seed {seed!r} is not a whole number from 0 to {MOST_SEED}")
    return seed


def _overlap(size: int, down: int, right: int) -> tuple[slice, slice]:
    """What a window of `size` covers of its own place after a move."""
    return tuple(slice(max(d, 0), size + min(d, 0)) for d in (down, right))


def load(variant: str = "te", results: str | Path | None = None, device: Any = None) -> Generator:
    """The pretrained generator of a variant. Reads files where they lie; writes nothing.

    results: the folder that holds `laptop/models`; by default the repository or the installed
    package. device: by default a GPU if there is one. Raises SettingsError for a variant that does
    not come with it, or absent files.
    """
    if variant not in COMPARED:
        raise unknown("pretrained network", variant, COMPARED)
    grid = replace(chosen(results), variants=(variant,))
    settings, device = grid.settings, torch.device(device or devices.detect("float32").device)
    folder = grid.find("models")
    if results is None and not any(folder.glob("*.safetensors")):
        folder = _packed() or PUBLISHED / PRESET / "models"
    networks = reader, model, generator = (
        classifier.build(settings), vqgan.VQGAN(settings.stage1), transformer.build(settings))
    for network, run in zip(networks, runs_of(grid), strict=True):
        network.load_state_dict(_read(run, folder))
        network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    tokenizer = Tokenizer(class_names(settings.data.source, settings.data.words))
    return Generator(settings, Evaluator(model, reader, tokenizer, device), generator)


def compare(what: Any, right: int = 1, down: int = 0, **painting: Any) -> Shown:
    """Both variants side by side, in a notebook: images, codes, and the codes after a move.

    what: a caption or captions, painted with the options `painting` of `Generator.paint`; or
    pictures (a text that ends like .png is a file). The move is in pixels.
    """
    texts = what if isinstance(what, (list, tuple)) else [what]
    captions = texts and all(isinstance(x, str) and not re.search(r"\.[a-z]{3,4}$", x, re.I)
                             for x in texts)
    found, both = Shown(), {variant: load(variant) for variant in COMPARED}
    x = None if captions else as_images(what, both["te"].settings.data.scene)
    for variant, one in both.items():
        before = one.pictures(one.paint(what, **painting) if captions else x)  # as `move` sees it
        found[variant], found[f"{variant} moved"] = before, one.move(before, right, down)
    return found


def _packed() -> Path | None:
    """Folder of the weights that an installed wheel brought along; None without one."""
    places = [Path(__file__).parents[1] / "share/tevq/models"]  # of pip --target
    with contextlib.suppress(metadata.PackageNotFoundError):
        places += [Path(file.locate()).resolve().parent for file in metadata.files("tevq") or ()
                   if file.suffix == ".safetensors"]
    return next((place for place in places if any(place.glob("*.safetensors"))), None)


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
    options.error = lambda message: options.exit(  # one line instead of a page of usage
        2, f"tevq: {message}; see python -m tevq.pretrained --help\n")
    add = options.add_argument
    add("task", nargs="?", default="install", choices=("install", "paint", "describe", "codes"))
    add("what", nargs="*", help="captions to paint, or pictures to describe or encode")
    add("--out", metavar="FILE", help="picture to write; several become FILE-0, FILE-1, ...")
    add("--variant", default="te", metavar="NAME", help="te (default) or sc")
    add("--seed", type=int, default=0, help="the same seed paints the same picture")
    add("--greedy", action="store_true", help="always the likeliest code")
    add("--samples", type=int, default=1, help="pictures of each caption")
    add("--temperature", type=float, default=OFFICIAL.temperature)
    add("--top-k", type=int, default=OFFICIAL.top_k, help="codes to draw among")
    add("--results", metavar="DIR", help="folder that holds laptop/models")
    told = options.parse_intermixed_args(arguments)
    idle = [f"--{name.replace('_', '-')}" for name in PAINTING
            if told.task != "paint" and getattr(told, name) != options.get_default(name)]
    try:
        if idle:
            raise SettingsError(f"{told.task} takes no {', '.join(idle)}; leave it out")
        _do(told)
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    return 0


def _do(told: argparse.Namespace) -> None:
    if told.task == "install":
        placed = install(chosen(told.results))
        print("\n".join(f"{name}: in place" for name in placed) or "all were in place")
        return
    paints = told.task == "paint"
    lacks = [("a picture file", "a caption")[paints]] * (not told.what)
    if lacks := lacks + ["--out FILE"] * (paints and not told.out):
        good = '"the upper left is red five." --out x.png' if paints else "x.png"
        raise SettingsError(f"{told.task} needs {' and '.join(lacks)}: {told.task} {good}")
    one = load(told.variant, told.results)
    if told.task == "paint":
        painted = one.paint(told.what, told.seed, told.greedy, told.samples, told.temperature,
                            told.top_k)
        for path, text in zip(painted.save(told.out), painted.words, strict=True):
            print(f"{path}: {text}")
    elif told.task == "describe":
        print("\n".join(one.describe(told.what)))
    else:
        for grid in one.codes(told.what).tolist():
            print("\n".join(" ".join(f"{code:3}" for code in row) for row in grid))


if __name__ == "__main__":
    sys.exit(main())
