"""Sources of items: the 28x28 digits, garments or your own pictures that scenes are made of.

A source is one entry of `SOURCES`: its class words, and a loader of its items. `digits` comes with
scikit-learn, `mnist` and `fashion` are downloaded once. Entries that end with a colon make a source
out of the rest of its name:

    folder:PATH          pictures in `PATH/<class>/`, or `PATH/train/<class>/` and `PATH/test/...`
    idx:PATH             IDX files, plain or gzipped, with an optional `classes.txt` beside them
    idx-transposed:PATH  the same with rows and columns exchanged, as EMNIST is distributed
    torchvision:NAME     KMNIST, QMNIST, EMNIST/balanced ...: 28x28 data sets of torchvision

A PATH that is not absolute starts at `data_root()`. Every class is one word of the captions.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tevq.config import SettingsError, expand, unknown
from tevq.data.captions import COLOURS, MOST_CLASSES, vocabulary

ITEM_SIZE = 28
PARTS = ("train", "test")
LEAST_CLASSES = 4  # every quadrant has a class whose held-out combination lies there
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_GARMENTS = (
    "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)
_TEST_EVERY = 5  # in folders without `train`: every fifth picture of a class is for test
_LEAST = {"train": 1, "test": 2}  # pictures of a class; one half of test is for validation
_IDX_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
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
    return expand(os.environ.get("TEVQ_DATA") or cache_folder())


def find(name: str, size: int = ITEM_SIZE) -> Source:
    """The source of a name (see the head of this file). Raises SettingsError for a bad one.

    size: what pictures of a folder are brought to; other items keep their own size.
    """
    kind, colon, rest = name.partition(":")
    if kind + colon not in SOURCES or bool(colon) != bool(rest):
        raise unknown("item source", name, [key + "*" * key.endswith(":") for key in SOURCES])
    return _made(kind + colon, rest, size, data_root()) if colon else SOURCES[name]


@functools.lru_cache(maxsize=8)
def _made(kind: str, rest: str, size: int, root: Path) -> Source:
    source = SOURCES[kind](rest, size)
    if not LEAST_CLASSES <= len(source.names) <= MOST_CLASSES:
        raise SettingsError(f"{kind}{rest} has {len(source.names):,} classes; scenes and captions "
                            f"need {LEAST_CLASSES} to {MOST_CLASSES}")
    check_names(source.names)
    return source


def check(name: str) -> None:
    """Raises SettingsError for a source that is not there; downloads nothing."""
    kind, _, rest = name.partition(":")
    _data_set(rest.partition("/")[0]) if kind == "torchvision" else find(name)


def class_names(source: str, words: str = "names") -> tuple[str, ...]:
    """The class words of a source. Raises SettingsError for an unknown source.

    words: "numerals" for 0 ... 9 in place of zero ... nine; other words stay.
    """
    names = find(source).names
    return tuple("0123456789") if words == "numerals" and names == _NUMBERS else names


def check_names(names: tuple[str, ...]) -> None:
    """Raises SettingsError for class words that captions cannot hold.

    The official scoring rule searches parts of words, so no class word may hide in another word,
    and no colour in a class word.
    """
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


def load_source(source: str, part: str, size: int = ITEM_SIZE) -> SourceImages:
    """Items of a source; part: "train" or "test"; size: pixels of their side.

    Raises SettingsError for missing or damaged files, and for others than the name promises.
    """
    if part not in PARTS:
        raise unknown("part of the items", part, PARTS)
    return _load(source, part, size, data_root())


@functools.lru_cache(maxsize=8)
def _load(source: str, part: str, size: int, root: Path) -> SourceImages:
    entry = find(source, size)
    images, labels = entry.load(part)
    wanted = np.arange(len(entry.names))
    if (images.dtype != np.uint8 or images.ndim != 3 or images.shape[1] != images.shape[2]
            or len(images) != len(labels) or not np.array_equal(np.unique(labels), wanted)):
        raise SettingsError(f"{part} items of {source} cannot be used: images {images.shape} are "
                            f"not (N, s, s), or the {len(labels)} labels are not one for each of "
                            f"them, of all classes from 0 to {len(wanted) - 1}")
    items = SourceImages(torch.from_numpy(np.array(images)), torch.from_numpy(labels))
    if source in OFFICIAL and items.sha256() != OFFICIAL[source][PARTS.index(part)]:
        raise SettingsError(f"the {part} files of {source} in {root} are not the official ones; "
                            "delete them to download them, or name yours idx:PATH")
    if images.shape[-1] != size:
        scale = functools.partial(torch.nn.functional.interpolate, size=(size, size),
                                  mode="bilinear", antialias=True)
        items = items._replace(images=torch.cat(
            [scale(some[:, None].float())[:, 0].round().to(torch.uint8)
             for some in items.images.split(4096)]))
    return items


def _default_names(labels: np.ndarray) -> tuple[str, ...]:
    """zero ... nine for up to ten classes, else class00, class01, ..."""
    count = int(labels.max(initial=-1)) + 1
    return _NUMBERS[:count] if count <= 10 else tuple(
        f"class{i:0{len(str(count - 1))}}" for i in range(count))


def _digits(part: str) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels, enlarged to 28x28.

    Test is 50 items of each class in turn (0, 1, ..., 9, 0, 1, ...), so both of its halves hold
    every class equally often; train is the rest. Whole numbers only, so that the pixels (and the
    hash of the data) are the same on every machine.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    # a shuffle of the raw bit stream, which NumPy never changes between versions
    keys = np.random.Philox(key=1797).random_raw(len(labels))
    order = np.argsort(keys, kind="stable")
    by_class = [order[labels[order] == c] for c in range(10)]
    chosen = (np.stack([rows[:50] for rows in by_class], axis=1).ravel() if part == "test"
              else np.sort(np.concatenate([rows[50:] for rows in by_class])))
    # bilinear from 8 to 20 pixels, the box of MNIST's digits, in tenths of a pixel
    position = np.clip(4 * np.arange(20) - 3, 0, 70)  # 10 x ((i + 1/2) x 8 / 20 - 1/2)
    weights = np.maximum(10 - np.abs(position[:, None] - 10 * np.arange(8)), 0)  # (20, 8)
    large = weights @ pixels[chosen].astype(np.int64).reshape(-1, 8, 8) @ weights.T  # (N, 20, 20)
    large = (large * 255 + 800) // 1600  # 16 grey levels x 10 x 10 -> 255, rounded
    images = np.pad(large.astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
    return images, labels[chosen].astype(np.int64)


def _data_set(name: str) -> Any:
    """The class of a torchvision data set."""
    from torchvision import datasets

    known = {key: kind for key, kind in vars(datasets).items()
             if isinstance(kind, type) and issubclass(kind, datasets.MNIST)}
    if name not in known:
        raise unknown("torchvision data set of 28x28 images", name, known)
    return known[name]


def _torchvision(name: str, part: str) -> Arrays:
    """Items of a torchvision data set, which downloads its files if they are absent."""
    name, _, split = name.partition("/")
    kind, options = _data_set(name), {"split": split} if name == "EMNIST" else {}
    try:
        data = kind(str(data_root()), train=part == "train", download=True, **options)
        images, labels = data.data.numpy(), data.targets.numpy().astype(np.int64)
    except Exception as error:  # URLError, RuntimeError, AssertionError, ... by kind of damage
        causes = re.findall("<urlopen error (.*?)>", str(error))  # one for every mirror
        told = (f"no network: {name} could not be downloaded ({causes[-1]});" if causes else
                f"cannot read or download {name} ({_reason(error)}); delete damaged files and")
        raise SettingsError(
            f"{told} put its files into {data_root() / name / 'raw'} (TEVQ_DATA chooses the root), "
            "or use --set data.source=digits, which needs no download") from None
    if name == "EMNIST":  # stored with rows and columns exchanged; letters count from 1
        images, labels = images.transpose(0, 2, 1), labels - (split == "letters")
    return images, labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: class, then origin


def _reason(error: Exception) -> str:
    """The last line of an error, or its last 120 characters: at the end stands the cause."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][-120:]


def _from_torchvision(name: str, size: int) -> Source:
    load = functools.partial(_torchvision, name)
    return Source(_default_names(load("train")[1]), load)


def _from_folder(path: str, size: int) -> Source:
    """A folder of pictures (see the head of this file); its classes in the order of their names."""
    folder = data_root() / os.path.expanduser(path)
    split = (folder / "train").is_dir()
    place = folder / "train" if split else folder
    names = sorted(path.name for path in place.glob("[!.]*") if path.is_dir())
    if not names:
        raise SettingsError(f"there are no folders in {place}, one for every class")
    return Source(tuple(names), functools.partial(_read_folder, folder, split, names, size))


def _read_folder(folder: Path, split: bool, names: list[str], size: int, part: str) -> Arrays:
    """Pictures of a part; every class is spread evenly over all items."""
    found = []  # (place within the class from 0 to 1, label, file)
    for label, name in enumerate(names):
        place = folder / part / name if split else folder / name
        files = sorted(file for file in place.glob("*")
                       if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not split:
            test = files[_TEST_EVERY - 1::_TEST_EVERY]
            files = test if part == "test" else sorted(set(files) - set(test))
        if len(files) < _LEAST[part]:
            raise SettingsError(f"class {name!r} of {folder} has {len(files)} pictures for {part}, "
                                f"not {_LEAST[part]} (in folders without `train`, every "
                                f"{_TEST_EVERY}th picture of a class is for test)")
        found += [((i + 0.5) / len(files), label, file) for i, file in enumerate(files)]
    found.sort()
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda row: read_picture(row[2], size), found)))
    rim = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    if rim.mean() > 127 or images.max((1, 2)).mean() < 51:
        raise SettingsError(f"pictures of {folder} must show bright items on a dark background "
                            "(transparent pixels count as black); invert them")
    return images, np.array([label for _, label, _ in found], dtype=np.int64)


def read_picture(path: Path, size: int) -> np.ndarray:
    """A picture of any size and mode as grey values uint8 (size, size), bright on dark.

    Colours become their luminance (ITU-R 601). What is transparent is laid on black. Pictures of
    another size are resized to fit, keeping their shape, and centred on black.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I"):  # 16 bits a pixel, which `convert` would cut off
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        black = Image.new("RGBA", picture.size, "black")
        grey = Image.alpha_composite(black, picture.convert("RGBA")).convert("L")
        return np.array(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR, color=0))
    except Exception as error:  # Pillow has no common class for what damage raises
        raise SettingsError(f"cannot read the picture {path} ({_reason(error)}); delete or replace "
                            "it") from None


def _from_idx(path: str, size: int, transposed: bool = False) -> Source:
    """A folder with files named as MNIST's, or how the names begin (`raw/emnist-balanced`).

    The class words are the lines of a `classes.txt` beside the files, if there is one.
    """
    base = data_root() / os.path.expanduser(path)

    def load(part: str) -> Arrays:
        images = _read_idx(base, part, "images-idx3-ubyte", 3)
        labels = _read_idx(base, part, "labels-idx1-ubyte", 1).astype(np.int64)
        return images.transpose(0, 2, 1) if transposed else images, labels

    words = (base if base.is_dir() else base.parent) / "classes.txt"
    if words.is_file():
        return Source(tuple(words.read_text(encoding="utf-8", errors="replace").split()), load)
    return Source(_default_names(load("train")[1]), load)


def _read_idx(base: Path, part: str, kind: str, dimensions: int) -> np.ndarray:
    """The array of an IDX file of bytes, plain or gzipped."""
    start = f"{base}/" if base.is_dir() else f"{base}-"
    paths = [Path(f"{start}{prefix}-{kind}{end}")
             for prefix in _IDX_PREFIXES[part] for end in ("", ".gz")]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        raise SettingsError(f"no IDX file {' or '.join(map(str, paths))}")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        if content[:4] != bytes((0, 0, 8, dimensions)):  # 8: unsigned bytes
            raise ValueError(f"it starts with {content[:4].hex()}, not 000008{dimensions:02}")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise SettingsError(f"{path} is no IDX file of {dimensions} dimensions, or is damaged "
                            f"({error})") from None


# `Source`s; behind a colon, functions that make one of the rest of the name and the items' size
SOURCES: dict[str, Any] = {
    "digits": Source(_NUMBERS, _digits),
    "mnist": Source(_NUMBERS, functools.partial(_torchvision, "MNIST")),
    "fashion": Source(_GARMENTS, functools.partial(_torchvision, "FashionMNIST")),
    "folder:": _from_folder,
    "idx:": _from_idx,
    "idx-transposed:": functools.partial(_from_idx, transposed=True),
    "torchvision:": _from_torchvision,
}
