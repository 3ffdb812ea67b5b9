"""Items from the user's own files: a folder of pictures per class, or files in the IDX format."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tevq.config import SettingsError

PICTURES = (".png", ".jpg", ".jpeg")
TEST_EVERY = 5  # without folders train and test: the 5th, 10th, ... picture of a class is for test
LEAST = {"train": 1, "test": 2}  # items of a class; one half of test is for validation
_IDX_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def folder_names(folder: Path) -> tuple[str, ...]:
    """The classes of a folder: its sub-folders in order of their names, or those of `train`.

    Raises SettingsError when there are none, or others in `test` than in `train`.
    """
    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}")
    found = [_folders(part) for part in _parts(folder).values()]
    if found[0] != found[-1]:
        odd = sorted(set(found[0]) ^ set(found[-1]))
        raise SettingsError(f"{folder}/train and {folder}/test differ in their classes: {odd[0]!r} "
                            "is in one of them only")
    return found[0]


def read_folder(folder: Path, part: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a part as images uint8 (N, size, size), and their labels int64 (N,).

    `folder/train/<class>/*` and `folder/test/<class>/*`; with `folder/<class>/*` every fifth
    picture of a class is for test. Pictures whose names are different whole numbers come in the
    order of these (a data set that was written out keeps its order); otherwise every class is
    spread evenly over all items. Raises SettingsError for what cannot be used.
    """
    places = _parts(folder)
    found = []  # (name as a number, place within the class from 0 to 1, label, file)
    for label, name in enumerate(folder_names(folder)):
        files = sorted((file for file in (places[part] / name).iterdir()
                        if file.suffix.lower() in PICTURES), key=_natural)
        if len(set(places.values())) == 1:
            files = [file for i, file in enumerate(files)
                     if (i % TEST_EVERY == TEST_EVERY - 1) == (part == "test")]
        if len(files) < LEAST[part]:
            raise SettingsError(f"class {name!r} of {folder} has {len(files)} pictures for {part}; "
                                f"at least {LEAST[part]} are needed (without folders train and "
                                f"test, every {TEST_EVERY}th picture of a class is for test)")
        found += [(int(file.stem) if file.stem.isdecimal() else -1, (i + 0.5) / len(files), label,
                   file) for i, file in enumerate(files)]
    numbers = {number for number, *_ in found}
    numbered = len(numbers) == len(found) and -1 not in numbers
    found.sort(key=lambda row: row[0] if numbered else row[1:3])
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda row: read_picture(row[3], size), found)))
    rim = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    if rim.mean() > 127 or images.max((1, 2)).mean() < 51:
        raise SettingsError(f"pictures of {folder} must show bright items on a dark background "
                            "(transparent pixels count as black); invert them")
    return images, np.array([label for _, _, label, _ in found], dtype=np.int64)


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
            if "A" in picture.getbands() or "transparency" in picture.info:
                black = Image.new("RGBA", picture.size, "black")
                picture = Image.alpha_composite(black, picture.convert("RGBA"))
            grey = picture.convert("L")
            if grey.size != (size, size):
                grey = ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR, color=0)
            return np.array(grey)
    except Exception as error:  # Pillow has no common class for what damage raises
        reason = " ".join(str(error).split())
        raise SettingsError(f"cannot read the picture {path} ({reason}); delete or replace it"
                            ) from None


def read_idx(base: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W) and labels int64 (N,) from two IDX files, plain or gzipped.

    `base` is a folder with files named as MNIST's (`train-images-idx3-ubyte`), or the beginning of
    the files' names (`raw/emnist-balanced`). Raises SettingsError for absent or damaged files.
    """
    images = _read_array(_find(base, part, "images-idx3-ubyte"), 3)
    return images, _read_array(_find(base, part, "labels-idx1-ubyte"), 1).astype(np.int64)


def idx_names(base: Path) -> tuple[str, ...]:
    """Class words, one a line, of a `classes.txt` beside IDX files; empty when there is none."""
    path = (base if base.is_dir() else base.parent) / "classes.txt"
    if not path.is_file():
        return ()
    text = path.read_text(encoding="utf-8", errors="replace")
    return tuple(line.strip() for line in text.strip().splitlines())


def _find(base: Path, part: str, kind: str) -> Path:
    start = f"{base}/" if base.is_dir() else f"{base}-"
    names = [f"{start}{prefix}-{kind}{end}"
             for prefix in _IDX_PREFIXES[part] for end in ("", ".gz")]
    if found := next((path for path in map(Path, names) if path.is_file()), None):
        return found
    raise SettingsError(f"no IDX file {' or '.join(names)}")


def _read_array(path: Path, dimensions: int) -> np.ndarray:
    try:
        content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
        if content[:4] != bytes((0, 0, 8, dimensions)):  # 8: unsigned bytes
            raise ValueError(f"it starts with {content[:4].hex()}, not 000008{dimensions:02}")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise SettingsError(f"{path} is no IDX file of {dimensions} dimensions, or is damaged "
                            f"({error})") from None


def _parts(folder: Path) -> dict[str, Path]:
    """Where the classes of either part lie: the same place when there is no folder `train`."""
    if (folder / "train").is_dir():
        return {part: folder / part for part in ("train", "test")}
    return dict.fromkeys(("train", "test"), folder)


def _folders(place: Path) -> tuple[str, ...]:
    found = sorted(path.name for path in place.iterdir() if path.is_dir()
                   and not path.name.startswith(".")) if place.is_dir() else []
    if not found:
        raise SettingsError(f"{place} holds no folders, one for every class")
    return tuple(found)


def _natural(path: Path) -> tuple:
    """Sorts `a2` before `a10`."""
    words = re.split(r"(\d+)", path.stem)
    return [int(word) if word.isdecimal() else word for word in words], path.name
