"""Sources of items: the 28x28 digits, garments or your own pictures that scenes are made of.

A source is one entry of `SOURCES`: its class words, and a loader of its items. `digits` comes with
scikit-learn, `mnist` and `fashion` are downloaded once. Entries that end with a colon make a source
out of the rest of its name:

    folder:PATH          pictures in `PATH/train/<class>/` and `PATH/test/<class>/`, or all in
                         `PATH/<class>/`
    idx:PATH             IDX files, plain or gzipped, with an optional `classes.txt` beside them
    idx-transposed:PATH  the same with rows and columns exchanged, as EMNIST is distributed
    torchvision:NAME     KMNIST, QMNIST, EMNIST/balanced ...: 28x28 data sets of torchvision

A PATH that is not absolute starts at `data_root()`. Every class is one word of the captions.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tevq.config import SettingsError, expand, unknown
from tevq.data import files
from tevq.data.captions import COLOURS, MOST_CLASSES, vocabulary

ITEM_SIZE = 28
PARTS = ("train", "test")
LEAST_CLASSES = 4  # every quadrant has a class whose held-out combination lies there
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GARMENTS = (
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)
_DIGITS_TEST_PER_CLASS = 50  # 500 test items, 1,297 train items
_DIGITS_INK = 20  # pixels: side of the box the 8x8 digits are resized to, as in MNIST
_IDX_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)
# `SourceImages.sha256` of the official files, train and test
OFFICIAL = {
    "mnist": ("c41b322ede5b4fc991fbf5440b21cefc76cb0418e0ebf66b8f78109632b41509",
              "f5147f7baa1787ec4b3cd00068f8ec8a61d969373b74639b6aef5c981fc5a5b2"),
    "fashion": ("c9471586015d65bcd36bd44575c3f83a8bfa8fd40cef404845336f3b15684d87",
                "6abb7165a4c55f50d4bc6b1bc8255d64b9a5cf1de989e99310039add74923235"),
}
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, s, s), 0 = background; labels (N,)


class Source(NamedTuple):
    """What an entry of SOURCES says."""

    names: tuple[str, ...]  # one word for every class, in the order of the labels
    load: Callable[[str], Arrays]  # "train" or "test" -> items; labels are 0 ... classes - 1


class SourceImages(NamedTuple):
    """Grey items and their classes."""

    images: torch.Tensor  # uint8 (N, s, s), 0 = background
    labels: torch.Tensor  # int64 (N,), 0 ... classes - 1

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
    return expand(os.environ.get("TEVQ_CACHE") or "~/.cache/tevq")


def data_root() -> Path:
    """Folder of the data sets: `TEVQ_DATA`, else the cache folder."""
    told = os.environ.get("TEVQ_DATA")
    return expand(told) if told else cache_folder()


def _below_root(path: str) -> Path:
    return expand(path if path.startswith("~") else data_root() / path)


# ---------------------------------------------------------------------------------- finding


def find(name: str, size: int = ITEM_SIZE) -> Source:
    """The source of a name (see the head of this file). Raises SettingsError for a bad one.

    size: what pictures of a folder are brought to; other items keep their own size.
    """
    kind, colon, rest = name.partition(":")
    if kind + colon not in SOURCES or bool(colon) != bool(rest):
        raise unknown("item source", name, SOURCES)
    return _made(kind + colon, rest, size, data_root()) if colon else SOURCES[name]


@functools.lru_cache(maxsize=8)
def _made(kind: str, rest: str, size: int, root: Path) -> Source:
    source = SOURCES[kind](rest, size)
    if len(source.names) < LEAST_CLASSES:
        raise SettingsError(f"{kind}{rest} has {len(source.names)} classes; scenes need at least "
                            f"{LEAST_CLASSES}, one to be held out in every quadrant")
    check_names(source.names)
    return source


def class_names(source: str) -> tuple[str, ...]:
    """The class words of a source. Raises SettingsError for an unknown source."""
    return find(source).names


def load_source(source: str, part: str, size: int = ITEM_SIZE) -> SourceImages:
    """Items of a source; part: "train" or "test"; size: pixels of their side.

    Raises SettingsError with one line when files are missing and cannot be downloaded, are damaged,
    or are not the data set that the name promises.
    """
    find(source)
    if part not in PARTS:
        raise unknown("part of the items", part, PARTS)
    return _load(source, part, size, data_root())


@functools.lru_cache(maxsize=8)
def _load(source: str, part: str, size: int, root: Path) -> SourceImages:
    entry = find(source, size)
    images, labels = entry.load(part)
    try:
        _check(images, labels, len(entry.names))
    except ValueError as error:
        raise SettingsError(f"{part} items of {source} cannot be used: {error}") from None
    items = SourceImages(torch.from_numpy(np.array(images)), torch.from_numpy(labels))
    if source in OFFICIAL and (found := items.sha256()) != OFFICIAL[source][PARTS.index(part)]:
        other = next((name for name, known in OFFICIAL.items() if found in known), "another set")
        raise SettingsError(f"the {part} files of {source} in {root} are not the official ones but "
                            f"{other}; delete them to download them, or name yours idx:PATH")
    if images.shape[-1] != size:
        items = items._replace(images=_resized(items.images, size))
    return items


def _resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, without aliasing when it reduces: uint8 (N, s, s) -> uint8 (N, size, size)."""
    scale = functools.partial(torch.nn.functional.interpolate, size=(size, size), mode="bilinear",
                              antialias=True)
    return torch.cat([scale(part[:, None].float())[:, 0].round().to(torch.uint8)
                      for part in images.split(4096)])


def _check(images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images have shape {images.shape}, which is not (N, s, s)")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    if not np.array_equal(np.unique(labels), np.arange(classes)):
        raise ValueError(f"labels are not the classes 0 to {classes - 1}")


def check_names(names: tuple[str, ...]) -> None:
    """Raises SettingsError for class words that captions cannot hold.

    The official scoring rule searches parts of words, so no class word may hide in another word,
    and no colour in a class word.
    """
    if len(names) > MOST_CLASSES:
        raise SettingsError(f"{len(names):,} classes; captions can name at most {MOST_CLASSES}")
    words = vocabulary(names)
    for name in names:
        if not re.fullmatch(r"\w[\w-]*", name):
            raise SettingsError(f"class {name!r} is not one word of letters, digits, _ and -")
        if words.count(name) > 1:
            raise SettingsError(f"class {name!r} is also another word of the captions; rename it")
        for word in words:
            if word != name and (name in word or (word in COLOURS and word in name)):
                raise SettingsError(f"of class {name!r} and the word {word!r} one hides in the "
                                    "other, so captions could be misread; rename the class")


# ---------------------------------------------------------------------------------- loaders


def _digits(part: str) -> tuple[np.ndarray, np.ndarray]:
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
    return images, labels[chosen].astype(np.int64)


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


def _torchvision(name: str, part: str, classes: int = 0) -> Arrays:
    """Items of a torchvision data set; downloads it once if it is absent. classes: 0 = any."""
    from torchvision import datasets

    name, _, split = name.partition("/")
    known = {key: kind for key, kind in vars(datasets).items()
             if isinstance(kind, type) and issubclass(kind, datasets.MNIST)}
    if name not in known:
        raise unknown("torchvision data set of 28x28 images", name, known)
    if name == "EMNIST" and split not in known[name].splits:
        raise unknown("split of EMNIST", f"EMNIST/{split}",
                      [f"EMNIST/{split}" for split in known[name].splits])
    make = functools.partial(known[name], str(data_root()), train=part == "train",
                             **({"split": split} if name == "EMNIST" else {}))
    folder = data_root() / name / "raw"
    what = "its files" if name in ("EMNIST", "QMNIST") else ", ".join(_IDX_FILES)
    advice = (f"put {what} into {folder} (TEVQ_DATA chooses the root), "
              'or use source "digits", which works offline')
    try:
        data = _downloaded(make, name, advice)
        images, labels = data.data.numpy(), data.targets.numpy().astype(np.int64)
        if name == "EMNIST":  # stored with rows and columns exchanged; letters count from 1
            images, labels = images.transpose(0, 2, 1), labels - (split == "letters")
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class, then its origin
        _check(images, labels, classes or int(labels.max()) + 1)
    except SettingsError:
        raise
    except Exception as error:  # torchvision: AssertionError, RuntimeError, ... by kind of damage
        raise SettingsError(f"{name} files in {folder} are damaged ({_reason(error)}); delete them "
                            f"to download again, {advice}") from None
    return images, labels


def _downloaded(make: Callable, name: str, advice: str):
    try:
        return make(download=False)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise
    print(f"tevq: downloading {name} to {data_root()}", file=sys.stderr)
    try:
        return make(download=True)
    except Exception as error:  # URLError, RuntimeError, OSError, ... all mean: no files
        raise SettingsError(f"cannot download {name} ({_reason(error)}); {advice}") from None


def _reason(error: Exception) -> str:
    """An error on one line; of a long one the end, where the cause stands."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"… {text[-118:]}"


def _from_folder(path: str, size: int) -> Source:
    folder = _below_root(path)
    return Source(files.folder_names(folder),
                  functools.partial(files.read_folder, folder, size=size))


def _from_idx(path: str, size: int, transposed: bool = False) -> Source:
    base = _below_root(path)

    def load(part: str) -> Arrays:
        images, labels = files.read_idx(base, part)
        return images.transpose(0, 2, 1) if transposed else images, labels

    return Source(files.idx_names(base) or _default_names(load("train")[1]), load)


def _from_torchvision(name: str, size: int) -> Source:
    load = functools.partial(_torchvision, name)
    return Source(_default_names(load("train")[1]), load)


def _default_names(labels: np.ndarray) -> tuple[str, ...]:
    """zero ... nine for up to ten classes, else class00, class01, ..."""
    count = int(labels.max(initial=-1)) + 1
    return _NUMBERS[:count] if count <= 10 else tuple(
        f"class{i:0{len(str(count - 1))}}" for i in range(count))


# `Source`s; behind a colon, functions that make one of the rest of the name and the items' size
SOURCES: dict[str, Any] = {
    "digits": Source(_NUMBERS, _digits),
    "mnist": Source(_NUMBERS, functools.partial(_torchvision, "MNIST", classes=10)),
    "fashion": Source(_GARMENTS, functools.partial(_torchvision, "FashionMNIST", classes=10)),
    "folder:": _from_folder,
    "idx:": _from_idx,
    "idx-transposed:": functools.partial(_from_idx, transposed=True),
    "torchvision:": _from_torchvision,
}
