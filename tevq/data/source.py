"""Items: the 28x28 digits or garments that scenes are made of, and the folders they live in."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tevq.config import SettingsError, unknown

ITEM_SIZE = 28
SOURCES = ("digits", "mnist", "fashion")
PARTS = ("train", "test")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GARMENTS = (
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)
CLASS_NAMES = {"digits": _NUMBERS, "mnist": _NUMBERS, "fashion": _GARMENTS}  # one word each

_DIGITS_TEST_PER_CLASS = 50  # 500 test items, 1,297 train items
_DIGITS_INK = 20  # pixels: side of the box the 8x8 digits are resized to, as in MNIST
_IDX_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)


class SourceImages(NamedTuple):
    """Grey items and their classes."""

    images: torch.Tensor  # uint8 (N, 28, 28), 0 = background
    labels: torch.Tensor  # int64 (N,), 0..9

    def to(self, device: str | torch.device) -> SourceImages:
        """The same items on another device; keep the result, the copy is made at every call."""
        return SourceImages(self.images.to(device), self.labels.to(device))

    def sha256(self) -> str:
        """Hash of pixels and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(np.ascontiguousarray(self.images.cpu().numpy()))
        digest.update(np.ascontiguousarray(self.labels.cpu().numpy().astype("<i8")))
        return digest.hexdigest()


def cache_folder() -> Path:
    """Folder of everything that can be rebuilt: `TEVQ_CACHE`, else ~/.cache/tevq."""
    return Path(os.environ.get("TEVQ_CACHE") or Path.home() / ".cache" / "tevq").expanduser()


def data_root() -> Path:
    """Folder of the torchvision data sets: `TEVQ_DATA`, else the cache folder."""
    return Path(os.environ.get("TEVQ_DATA") or cache_folder()).expanduser()


def class_names(source: str) -> tuple[str, ...]:
    """The ten class words of a source. Raises SettingsError for an unknown source."""
    if source not in SOURCES:
        raise unknown("item source", source, SOURCES)
    return CLASS_NAMES[source]


def load_source(source: str, part: str) -> SourceImages:
    """Items of a source: "digits" comes with scikit-learn, the others download once if absent.

    source: one of SOURCES; part: "train" or "test". Raises SettingsError with one line when the
    files are missing and cannot be downloaded, or are damaged.
    """
    class_names(source)
    if part not in PARTS:
        raise unknown("part of the items", part, PARTS)
    return _load(source, part, data_root())


@functools.lru_cache(maxsize=8)
def _load(source: str, part: str, root: Path) -> SourceImages:
    return _load_digits(part) if source == "digits" else _load_torchvision(source, part, root)


def _load_digits(part: str) -> SourceImages:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels, enlarged to 28x28.

    Test is 50 items of each class in turn (0, 1, ..., 9, 0, 1, ...), so both of its halves hold
    every class equally often; train is the rest.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # a shuffle of the raw bit stream, which NumPy never changes between versions
    keys = np.random.Philox(key=1797).random_raw(len(labels))
    order = np.argsort(keys, kind="stable")
    by_class = [order[labels[order] == c] for c in range(10)]
    if part == "test":
        chosen = np.stack([rows[:_DIGITS_TEST_PER_CLASS] for rows in by_class], axis=1).ravel()
    else:
        chosen = np.sort(np.concatenate([rows[_DIGITS_TEST_PER_CLASS:] for rows in by_class]))
    weights = _bilinear_tenths()
    large = weights @ pixels[chosen].astype(np.int64).reshape(-1, 8, 8) @ weights.T  # (N, 20, 20)
    large = (large * 255 + 800) // 1600  # 16 grey levels x 10 x 10 -> 255, rounded
    margin = (ITEM_SIZE - _DIGITS_INK) // 2
    images = np.pad(large.astype(np.uint8), ((0, 0), (margin, margin), (margin, margin)))
    return SourceImages(torch.from_numpy(images), torch.from_numpy(labels[chosen].astype(np.int64)))


def _bilinear_tenths() -> np.ndarray:
    """Bilinear 8 -> 20 enlargement along one axis: whole tenths, (20, 8), every row sums to 10.

    Whole numbers, so that the pixels (and the hash of the data) are the same on every machine.
    """
    weights = np.zeros((_DIGITS_INK, 8), dtype=np.int64)
    for i in range(_DIGITS_INK):
        position = min(max(4 * i - 3, 0), 70)  # 10 x ((i + 1/2) x 8 / 20 - 1/2), held inside
        left, tenths = min(position // 10, 6), position - 10 * min(position // 10, 6)
        weights[i, left], weights[i, left + 1] = 10 - tenths, tenths
    return weights


def _load_torchvision(source: str, part: str, root: Path) -> SourceImages:
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[source]
    folder = root / kind.__name__ / "raw"
    advice = (
        f"put {', '.join(_IDX_FILES)} into {folder} (TEVQ_DATA chooses the root), "
        'or use source "digits", which works offline'
    )
    if not all((folder / name).is_file() for name in _IDX_FILES):
        _download(kind, source, root, advice)
    try:
        data = kind(str(root), train=part == "train", download=False)
        items = SourceImages(data.data, data.targets.to(torch.int64))
        _check(items)
    except Exception as error:  # torchvision: AssertionError, RuntimeError, ... by kind of damage
        raise SettingsError(
            f"{source} files in {folder} are damaged ({_reason(error)}); delete them to download "
            f"again, {advice}"
        ) from None
    return items


def _download(kind: type, source: str, root: Path, advice: str) -> None:
    print(f"tevq: downloading {source} to {root}", file=sys.stderr)
    try:
        kind(str(root), download=True)
    except Exception as error:  # URLError, RuntimeError, OSError, ... all mean: no files
        raise SettingsError(f"cannot download {source} ({_reason(error)}); {advice}") from None


def _reason(error: Exception) -> str:
    """An error on one line; of a long one the end, where the cause stands."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"… {text[-118:]}"


def _check(items: SourceImages) -> None:
    shape = tuple(items.images.shape)
    if items.images.dtype != torch.uint8 or shape[1:] != (ITEM_SIZE, ITEM_SIZE):
        raise ValueError(f"images have shape {shape}, not (N, 28, 28)")
    if len(items.images) != len(items.labels):
        raise ValueError(f"{len(items.images)} images but {len(items.labels)} labels")
    if len(items.labels) == 0 or set(items.labels.tolist()) != set(range(10)):
        raise ValueError("labels are not the classes 0 to 9")
