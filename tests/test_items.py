"""Items: the embedded digits by a second route, and what happens to bad or missing files."""

import itertools
import struct
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from tevq.config import SettingsError
from tevq.data import source as items
from tevq.data.source import SourceImages, cache_folder, data_root, load_source


@pytest.fixture(scope="module")
def digits():
    return {part: load_source("digits", part) for part in items.PARTS}


def test_digits_are_all_of_scikit_learns_enlarged_once(digits):
    pixels = torch.from_numpy(load_digits().images)
    expected = F.interpolate(pixels[:, None] * 255 / 16, size=20, mode="bilinear")[:, 0]
    expected = F.pad(expected, [4] * 4)
    made = torch.cat([digits["train"].images, digits["test"].images]).double()
    nearest = torch.cdist(made.flatten(1), expected.flatten(1)).argmin(1)
    assert sorted(nearest.tolist()) == list(range(1797))  # train and test share nothing
    assert (made - expected[nearest]).abs().max() <= 0.5 + 1e-6  # rounded, not cut
    labels = torch.cat([digits["train"].labels, digits["test"].labels])
    assert labels.tolist() == load_digits().target[nearest].tolist()


def test_digits_split_is_stratified(digits):
    assert (len(digits["train"].labels), len(digits["test"].labels)) == (1297, 500)
    for half in digits["test"].labels.split(250):
        assert half.bincount(minlength=10).tolist() == [25] * 10


def test_digits_have_a_margin_and_full_range(digits):
    images = digits["train"].images
    assert images.dtype == torch.uint8 and images.shape[1:] == (28, 28)
    assert images[:, 4:24, 4:24].sum() == images.sum() > 0
    assert images.max() == 255


def test_class_words_are_single_and_different():
    for source in items.SOURCES:
        names = items.class_names(source)
        assert len(set(names)) == 10 and all(name.isalpha() for name in names)


@pytest.mark.promise("input")
@pytest.mark.parametrize("arguments, hint", [
    (("mnst", "train"), "mnist"), (("digits", "training"), "train")])
def test_unknown_names_are_refused_with_a_hint(arguments, hint):
    with pytest.raises(SettingsError, match=f"(?s)allowed.*did you mean '{hint}'"):
        load_source(*arguments)


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TEVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TEVQ_DATA", raising=False)
    assert cache_folder() == data_root() == tmp_path / "cache"
    monkeypatch.setenv("TEVQ_DATA", str(tmp_path / "data"))
    assert data_root() == tmp_path / "data" and cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TEVQ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tevq"


def test_hash_sees_pixels_and_labels(digits):
    images, labels = digits["test"]
    changed, moved = images.clone(), labels.clone()
    changed[3, 14, 14] += 1
    moved[3] += 1
    hashes = {SourceImages(*pair).sha256() for pair in
              [(images, labels), (changed, labels), (images, moved), (images[:-1], labels[:-1])]}
    assert len(hashes) == 4
    assert SourceImages(images.clone(), labels.clone()).sha256() in hashes


# -------------------------------------------------------------------- files in the IDX format


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def raw(monkeypatch, tmp_path):
    """A small, valid MNIST folder: 30 train and 20 test items."""
    monkeypatch.setenv("TEVQ_DATA", str(tmp_path))
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 20)):
        pixels = np.arange(count * 784).reshape(count, 28, 28) % 251
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder


def test_idx_files_load(raw):
    train, test = load_source("mnist", "train"), load_source("mnist", "test")
    assert train.images.shape == (30, 28, 28) and test.images.shape == (20, 28, 28)
    assert train.images[7, 3, 5] == (7 * 784 + 3 * 28 + 5) % 251
    assert test.labels.dtype == torch.int64 and test.labels.tolist() == [*range(10)] * 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def scramble(path):
    path.write_bytes(b"<html>404</html>" + path.read_bytes())


@pytest.mark.promise("input")
@pytest.mark.parametrize("name, damage", [
    ("train-images-idx3-ubyte", truncate),
    ("train-images-idx3-ubyte", scramble),
    ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"")),
    ("train-images-idx3-ubyte", lambda path: write_idx(path, np.zeros((30, 27, 28)))),
    ("train-labels-idx1-ubyte", truncate),
    ("train-labels-idx1-ubyte", lambda path: write_idx(path, np.arange(29) % 10)),
    ("train-labels-idx1-ubyte", lambda path: write_idx(path, np.arange(30) % 11)),
    ("train-labels-idx1-ubyte", lambda path: write_idx(path, np.arange(30) % 9)),
])
def test_damaged_files_end_in_one_clear_line(raw, name, damage):
    damage(raw / name)
    with pytest.raises(SettingsError) as error:
        load_source("mnist", "train")
    text = str(error.value)
    assert "\n" not in text and "damaged" in text and str(raw) in text and '"digits"' in text


@pytest.mark.promise("input")
def test_failed_download_says_which_files_go_where(monkeypatch, tmp_path, capsys):
    """Of a long message, as torchvision's about its mirrors, the end is kept: the cause."""
    failures = itertools.cycle([URLError("no route to host"), RuntimeError(
        "Tried a mirror, got: nothing\n" * 9 + "<urlopen error no route to host>\n")])

    def no_network(self):
        raise next(failures)

    monkeypatch.setattr(MNIST, "download", no_network)
    monkeypatch.setenv("TEVQ_DATA", str(tmp_path))
    for source, folder in (("mnist", "MNIST"), ("fashion", "FashionMNIST")):
        with pytest.raises(SettingsError) as error:
            load_source(source, "test")
        text = str(error.value)
        assert "\n" not in text and "no route to host" in text and '"digits" ' not in text[:20]
        assert str(tmp_path / folder / "raw") in text and 'source "digits"' in text
        assert all(name in text for name in items._IDX_FILES)
    assert capsys.readouterr().err.count("downloading") == 2


def test_missing_files_are_downloaded_once(monkeypatch, raw):
    """One file of four missing starts a download; complete folders never do."""
    path = raw / "t10k-labels-idx1-ubyte"
    content, calls = path.read_bytes(), []

    def fetch(self):
        calls.append(path.write_bytes(content))

    monkeypatch.setattr(MNIST, "download", fetch)
    path.unlink()
    assert len(load_source("mnist", "test").labels) == 20 and len(calls) == 1
    load_source("mnist", "train")
    assert len(calls) == 1
