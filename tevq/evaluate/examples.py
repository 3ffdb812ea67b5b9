"""The examples that every evaluation keeps: what was painted and written for the same few scenes.

They are the first scenes of every case, chosen before any result was known. `examples.json.gz`
holds codes, captions and what the classifier reads; `examples.png` the painted images, one row per
split and decoding, so that figures need no trained weights.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from tevq.config import Settings
from tevq.data.scenes import CASES, Scenes
from tevq.evaluate.evaluator import Evaluator
from tevq.evaluate.metrics import read_places
from tevq.runs.run import Run, open_run
from tevq.runs.storage import write_atomically

PER_CASE = 4
RECORD, PICTURES = "examples.json.gz", "examples.png"


class Painted(NamedTuple):
    """Images that a generator painted, and what the classifier reads at every named place."""

    images: torch.Tensor  # (n, 3, S, S) in [-1, 1]
    label: np.ndarray  # (n, 4), 255 = unused
    colour: np.ndarray


def first_of_each_case(case: np.ndarray) -> np.ndarray:
    """Positions (n,) of the first PER_CASE scenes of every case, in the order of the cases."""
    return np.concatenate([np.flatnonzero(case == i)[:PER_CASE] for i in range(len(CASES))])


def paint(evaluator: Evaluator, codes: torch.Tensor, scenes: Scenes) -> Painted:
    """Codes (n, h, w) painted for `scenes` as images, and what is read in them."""
    images = evaluator.decode(codes)
    return Painted(images.cpu(), *read_places(images, scenes.place, evaluator.classifier.predict))


def save(run: Run, found: dict[str, dict[str, Any]], painted: dict[tuple[str, str], Painted]
         ) -> None:
    """Writes both files. `found`: per split; `painted`: per split and decoding."""
    for (split, decoding), part in painted.items():
        found[split] |= {f"t2i_{decoding}_label": part.label.tolist(),
                         f"t2i_{decoding}_colour": part.colour.tolist()}
    tree = {"rows": list(painted), "splits": found}
    write_atomically(run.folder / RECORD, gzip.compress(json.dumps(tree).encode(), mtime=0))
    if painted:
        rows = pad_sequence([part.images for part in painted.values()], batch_first=True,
                            padding_value=-1)  # (rows, n, 3, S, S); a small split lacks some
        sheet = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 3, 1, 4, 2)
        # with 256 colours: half the bytes, and the eye sees no difference
        picture = Image.fromarray(sheet.flatten(2, 3).flatten(0, 1).numpy()).quantize(
            256, dither=Image.Dither.NONE)
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        write_atomically(run.folder / PICTURES, file.getvalue())


def load(settings: Settings, split: str, results: str | None) -> dict[str, Any] | None:
    """Codes, captions and readings of one split of a finished evaluation, or None."""
    tree = _read(open_run(settings, "evaluation", results))
    return tree and tree["splits"].get(split)


def load_painted(settings: Settings, split: str, results: str | None, index: Sequence[int],
                 decoding: str = "sampled") -> Painted | None:
    """What was painted for the examples at `index`, or None when there is no picture of it."""
    run = open_run(settings, "evaluation", results)
    tree, path = _read(run), run.folder / PICTURES
    if not tree or [split, decoding] not in tree["rows"] or not path.exists():
        return None
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGB")))
    size, index = settings.data.scene, list(index)
    top = tree["rows"].index([split, decoding]) * size
    row = sheet[top : top + size].view(size, -1, size, 3).permute(1, 3, 0, 2)  # (n, 3, S, S)
    read = [np.array(tree["splits"][split][f"t2i_{decoding}_{what}"], dtype=np.uint8)[index]
            for what in ("label", "colour")]
    return Painted(row[index].float() / 127.5 - 1, *read)


def _read(run: Run) -> dict[str, Any] | None:
    path = run.folder / RECORD
    return json.loads(gzip.decompress(path.read_bytes())) if run.done and path.exists() else None
