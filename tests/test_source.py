"""Sources: the embedded digits by a second route, own pictures and IDX files, and bad files."""

import dataclasses
import gzip
import itertools
import struct
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from small import tiny
from torchvision import datasets
from torchvision.datasets import MNIST

from tevq import config, presets
from tevq.config import DataConfig, SettingsError
from tevq.data import scenes
from tevq.data import source as items
from tevq.data.captions import Tokenizer, parse
from tevq.data.source import SourceImages, cache_folder, data_root, load_source
from tevq.evaluate import evaluate
from tevq.evaluate.evaluator import Evaluator
from tevq.models import transformer
from tevq.pretrained import Generator
from tevq.train import stage1, stage2

FIXED = [name for name in items.SOURCES if not name.endswith(":")]


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
    for source in FIXED:
        names = items.class_names(source)
        assert len(set(names)) == 10 and all(name.isalpha() for name in names)


@pytest.mark.promise("input")
@pytest.mark.parametrize("arguments, hint", [
    (("mnst", "train"), "mnist"), (("digits", "training"), "train")])
def test_unknown_names_are_refused_with_a_hint(arguments, hint):
    with pytest.raises(SettingsError, match=f"did you mean '{hint}'[?] Allowed: "):
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


@pytest.mark.promise("input")
def test_unknown_home_folders_end_in_one_line(monkeypatch):
    for name, value in (("TEVQ_DATA", "~nobody-of-that-name/x"), ("TEVQ_CACHE", "~nobody-2")):
        monkeypatch.setenv(name, value)
        with pytest.raises(SettingsError, match="^folder '~nobody.* used: .* the whole path"):
            load_source("mnist", "train")
        monkeypatch.delenv(name)

    def expanduser(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(type(cache_folder()), "expanduser", expanduser)
    with pytest.raises(SettingsError, match="^folder '~/.cache/tevq' cannot be used"):
        cache_folder()


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
    monkeypatch.setattr(items, "OFFICIAL", {})
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
    ("images-idx3", truncate),
    ("images-idx3", scramble),
    ("images-idx3", lambda path: path.write_bytes(b"")),
    ("images-idx3", lambda path: write_idx(path, np.zeros((30, 27, 28)))),
    ("labels-idx1", truncate),
    ("labels-idx1", lambda path: write_idx(path, np.arange(29) % 10)),
    ("labels-idx1", lambda path: write_idx(path, np.arange(30) % 11)),
    ("labels-idx1", lambda path: write_idx(path, np.arange(30) % 9)),
])
def test_damaged_files_end_in_one_clear_line(raw, name, damage):
    damage(raw / f"train-{name}-ubyte")
    message = f"damaged files and .*{raw}.* or use --set|train items of mnist cannot be used"
    with pytest.raises(SettingsError, match=message) as error:
        load_source("mnist", "train")
    assert "\n" not in str(error.value)


@pytest.mark.promise("input")
def test_failed_download_says_where_files_go(monkeypatch, tmp_path):
    """Planted faults: the words of all mirrors cut in the middle; damage seen where none is."""
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
        assert text.startswith(f"no network: {folder} could not be downloaded (no route to host); "
                               f"put its files into {tmp_path / folder / 'raw'} ")
        assert "\n" not in text and "damage" not in text and "--set data.source=digits" in text


def test_missing_files_are_downloaded(monkeypatch, raw):
    path = raw / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    monkeypatch.setattr(MNIST, "download", lambda self: path.write_bytes(content))
    path.unlink()
    assert len(load_source("mnist", "test").labels) == 20


@pytest.mark.promise("input")
def test_other_files_in_the_place_of_mnist_are_named(monkeypatch, raw):
    """Planted fault: the content of the files is not looked at."""
    test = load_source("mnist", "test")
    items._load.cache_clear()
    monkeypatch.setattr(items, "OFFICIAL", {"mnist": ("", test.sha256())})
    assert load_source("mnist", "test").sha256() == test.sha256()
    with pytest.raises(SettingsError, match="train files of mnist in .* not the official ones"):
        load_source("mnist", "train")


# ------------------------------------------------------------------------------- own pictures

DATA = DataConfig(source="digits", train=60, val=20, test=20, seed=1)


def write_digits(folder):
    """The digits as a folder of pictures, named by their place in the data set."""
    for part in items.PARTS:
        for i, (image, label) in enumerate(zip(*load_source("digits", part), strict=True)):
            path = folder / part / items.class_names("digits")[label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(path)


def write_few(folder, per_class=10, size=28, names=("apple", "pear", "plum", "fig")):
    """A few grey squares of every class, brighter with every picture."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            pixels = np.zeros((size, size), np.uint8)
            pixels[size // 4: -size // 4, size // 4: -size // 4] = 100 + k
            Image.fromarray(pixels).save(folder / name / f"{name}_{k + 1:03}.png")
    return f"folder:{folder}"


def test_a_written_out_data_set_gives_the_same_items(digits, tmp_path):
    """Planted faults: items in the order of their classes; classes in another order."""
    write_digits(tmp_path)
    names = sorted(items.class_names("digits"))
    assert items.class_names(f"folder:{tmp_path}") == tuple(names)
    for part in items.PARTS:
        found = load_source(f"folder:{tmp_path}", part)
        pictures = [{(image.numpy().tobytes(), words[label]) for image, label
                     in zip(*source, strict=True)}
                    for source, words in ((found, names), (digits[part],
                                                           items.class_names("digits")))]
        assert pictures[0] == pictures[1] and len(found.labels) == len(digits[part].labels)
        assert all(half.unique().tolist() == list(range(10)) for half in found.labels.split(100))


def test_single_level_folders_have_a_fixed_split(tmp_path):
    source = write_few(tmp_path, 10)
    train, test = load_source(source, "train"), load_source(source, "test")
    assert (len(train.labels), len(test.labels)) == (32, 8)
    assert test.labels.tolist() == [0, 1, 2, 3] * 2  # sorted class by class: apple, fig, pear, plum
    assert test.images.amax((1, 2)).tolist() == [104] * 4 + [109] * 4  # the 5th, then the 10th
    for split in scenes.SPLITS:
        assert len(scenes.build(dataclasses.replace(DATA, source=source), split,
                                load_source(source, scenes.part_of(split)).labels.numpy()))


def test_a_rare_class_is_in_both_halves_of_the_test_items(tmp_path):
    write_few(tmp_path, 100, names=("pear", "plum", "fig"))
    source = write_few(tmp_path, 10, names=("apple",))
    labels = load_source(source, "test").labels
    assert labels.bincount().tolist() == [2, 20, 20, 20]
    assert all(set(half.tolist()) == {0, 1, 2, 3} for half in labels.split(31))


def test_pictures_of_every_kind_become_the_same_grey_item(tmp_path):
    grey = np.zeros((28, 28), np.uint8)
    grey[5:20, 8:12] = np.arange(100, 160).reshape(15, 4)
    image = Image.fromarray(grey)
    white = Image.merge("LA", (Image.new("L", (28, 28), 255), image))  # white, seen by its alpha
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    kinds = {"L": image, "RGB": image.convert("RGB"), "P": image.convert("P"), "LA": white,
             "RGBA": white.convert("RGBA"), "16": deep, "wide": Image.fromarray(
                 np.pad(grey, ((7, 7), (0, 0)))).resize((56, 84), Image.Resampling.NEAREST)}
    for name, picture in kinds.items():
        picture.save(tmp_path / f"{name}.png")
        found = items.read_picture(tmp_path / f"{name}.png", 28).astype(int)
        if name == "wide":  # fits in height: every second column is black
            assert found.shape == (28, 28) and found[:, :4].max() == found[:, -4:].max() == 0
        else:
            assert np.array_equal(found, grey), name
    image.save(tmp_path / "photo.jpeg", quality=95)
    assert np.abs(items.read_picture(tmp_path / "photo.jpeg", 28).astype(int) - grey).mean() < 3
    red = Image.new("RGB", (28, 28), (255, 0, 0))
    red.save(tmp_path / "red.png")
    assert (items.read_picture(tmp_path / "red.png", 28) == 76).all()  # 0.299 x 255


def broken(folder):
    path = next(folder.glob("apple/*.png"))
    path.write_bytes(path.read_bytes()[:60])


def one_class(folder):
    for name in ("pear", "plum", "fig"):
        (folder / name).rename(folder / f".{name}")


def emptied(folder):
    for path in sorted(folder.glob("plum/*.png"))[3:]:
        path.unlink()


def inverted(folder):
    for path in folder.glob("*/*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def odd_test(folder):
    for part in ("train", "test"):
        write_few(folder / part, 2)
    (folder / "test" / "fig").rename(folder / "test" / "date")


@pytest.mark.promise("input")
@pytest.mark.parametrize("damage, message", [
    (broken, "cannot read the picture .*apple_.*; delete or replace it"),
    (one_class, "has 1 class.* 4 to 200"),
    (emptied, "class 'plum' of .* has 0 pictures for test, not 2"),
    (inverted, "bright items on a dark background"),
    (odd_test, "class 'fig' of .* has 0 pictures for test"),
    (lambda folder: (folder / "fig").rename(folder / "red"), "class 'red' is also another word"),
    (lambda folder: (folder / "fig").rename(folder / "ea"), "'ea' and the word 'pear'"),
    (lambda folder: (folder / "fig").rename(folder / "redwood"), "'redwood' and the word 'red'"),
    (lambda folder: (folder / "fig").rename(folder / "a fig"), "'a fig' is not one word"),
    (lambda folder: (folder / "fig").rename(folder / "fig."), "'fig.' is not one word"),
    (lambda folder: [(folder / f"c{i}").mkdir() for i in range(3000)], "3,004 classes; .* 200"),
    (lambda folder: folder.rename(folder.parent / "gone"), "there are no folders in"),
    (lambda folder: [(folder / name).rename(folder / f".{name}")
                     for name in ("apple", "pear", "plum", "fig")], "there are no folders in"),
])
def test_bad_folders_end_in_one_line(tmp_path, damage, message):
    source = write_few(tmp_path / "mine")
    damage(tmp_path / "mine")
    with pytest.raises(SettingsError, match=message) as error:
        for part in items.PARTS:
            load_source(source, part)
    assert "\n" not in str(error.value)


def test_any_number_of_classes(tmp_path):
    """Scenes and captions follow the source. Planted fault: ten classes taken for granted."""
    names = [f"thing{i:02}" for i in range(23)]
    source = write_few(tmp_path, 10, names=names)
    data = dataclasses.replace(DATA, source=source, train=2000, test=500)
    tokenizer = Tokenizer(items.class_names(source))
    assert tokenizer.names == tuple(names)
    rule = scenes.held_out(23)
    for split in scenes.SPLITS:
        made = scenes.build(data, split, load_source(source, scenes.part_of(split)).labels.numpy())
        clauses = [clause for i in range(len(made)) for clause in made.clauses(i)]
        if len(made) >= 500:
            assert {clause.label for clause in clauses} == set(range(23))
        for i in range(len(made)):
            parsed = parse(tokenizer.decode(made.caption[i]), tokenizer.names)
            assert parsed.ok and parsed.clauses == set(made.clauses(i))
        held = {rule[c.label] == (c.colour, c.place) for c in clauses if c.place < 4}
        assert held == {split in ("val", "test")}


@pytest.mark.parametrize("size", [14, 28, 56])
def test_items_of_any_size(digits, tmp_path, size):
    """Pictures are read at the size that is asked for, other items resized. Planted fault: pixels
    are repeated or left out."""
    found = load_source("digits", "test", size)
    assert found.images.shape == (500, size, size)
    assert torch.equal(found.labels, digits["test"].labels)
    back = F.interpolate(found.images[:, None].float(), size=(28, 28), mode="bilinear",
                         antialias=True)[:, 0]
    assert (back - digits["test"].images.float()).abs().mean() < (0.01, 5, 15)[
        [28, 56, 14].index(size)]
    source = write_few(tmp_path, 10, size=112)
    assert load_source(source, "train", size).images.shape == (32, size, size)


# ----------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("prefix, end", [("", ""), ("", ".gz"), ("emnist-balanced-", "")])
def test_idx_files_by_path(digits, tmp_path, prefix, end):
    middle = {"train": "train", "test": "test" if prefix else "t10k"}
    for part, word in middle.items():
        write_idx(tmp_path / f"{prefix}{word}-images-idx3-ubyte", digits[part].images.numpy())
        write_idx(tmp_path / f"{prefix}{word}-labels-idx1-ubyte", digits[part].labels.numpy())
    for path in tmp_path.iterdir():
        if end:
            path.with_name(path.name + end).write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    source = f"idx:{tmp_path}/{prefix.rstrip('-')}".rstrip("/")
    assert items.class_names(source) == items.class_names("mnist")
    for part in items.PARTS:
        assert load_source(source, part).sha256() == digits[part].sha256()
    turned = load_source(source.replace("idx:", "idx-transposed:"), "test")
    assert torch.equal(turned.images, digits["test"].images.transpose(1, 2))
    for cache in (items._made, items._load):
        cache.cache_clear()
    kana = "o ki su tsu na ha ma ya re wo".replace(" ", "\n")
    (tmp_path / "classes.txt").write_text(kana, encoding="utf-8")
    with pytest.raises(SettingsError, match="class 'o'"):
        load_source(source, "train")
    words = tuple(f"kana{i}" for i in range(10))
    (tmp_path / "classes.txt").write_text("\n".join(words), encoding="utf-8")
    assert items.class_names(source) == words


@pytest.mark.promise("input")
@pytest.mark.parametrize("damage, message", [
    (lambda raw: (raw / "train-images-idx3-ubyte").unlink(), "no IDX file .*train-images-idx3"),
    (lambda raw: scramble(raw / "train-images-idx3-ubyte"), "no IDX file of 3 .* not 00000803"),
    (lambda raw: truncate(raw / "train-labels-idx1-ubyte"), "or is damaged"),
    (lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(b""), "it starts with , not"),
    (lambda raw: (raw / "train-labels-idx1-ubyte").rename(raw / "train-labels-idx1-ubyte.gz"),
     "or is damaged"),
    (lambda raw: write_idx(raw / "train-images-idx3-ubyte", np.zeros((30, 8, 9))), "not .N, s, s"),
    (lambda raw: write_idx(raw / "train-labels-idx1-ubyte", np.arange(30) % 11 * 2), "from 0 to"),
    (lambda raw: write_idx(raw / "train-labels-idx1-ubyte", np.arange(30) % 2), "has 2 classes"),
])
def test_bad_idx_files_end_in_one_line(raw, damage, message):
    damage(raw)
    with pytest.raises(SettingsError, match=message) as error:
        load_source(f"idx:{raw}", "train")
    assert "\n" not in str(error.value)


def test_data_sets_of_torchvision_by_name(raw, monkeypatch):
    raw.parent.rename(raw.parent.with_name("KMNIST"))
    assert load_source("torchvision:KMNIST", "test").labels.tolist() == [*range(10)] * 2
    folder = raw.parent.with_name("EMNIST") / "raw"
    folder.mkdir(parents=True)
    pixels, labels = np.zeros((60, 28, 28)), np.arange(60) % 26 + 1
    pixels[:, 3, 20] = 200
    for word in ("train", "test"):
        write_idx(folder / f"emnist-letters-{word}-images-idx3-ubyte", pixels)
        write_idx(folder / f"emnist-letters-{word}-labels-idx1-ubyte", labels)
    letters = load_source("torchvision:EMNIST/letters", "train")
    assert letters.images[0, 20, 3] == 200 and letters.labels[:2].tolist() == [0, 1]
    assert items.class_names("torchvision:EMNIST/letters")[25] == "class25"
    for name, hint in (("KMNST", "KMNIST"), ("EMNIST", "argument split"), ("CIFAR10", "28x28")):
        with pytest.raises(SettingsError, match=hint):
            load_source(f"torchvision:{name}", "train")

    class QMNIST:  # its labels say more than the class
        data = torch.zeros(8, 28, 28, dtype=torch.uint8)
        targets = torch.stack([torch.arange(8), torch.arange(8) + 50], 1)

    class Set(MNIST):
        __new__ = lambda *_, **__: QMNIST  # noqa: E731

    monkeypatch.setattr(datasets, "QMNIST", Set)
    assert load_source("torchvision:QMNIST", "train").labels.tolist() == [*range(8)]


def test_a_new_source_is_one_entry(monkeypatch):
    """As the package's README shows it."""
    def stripes(part):
        labels = np.arange({"train": 200, "test": 80}[part]) % 4
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4:24, 6 + 4 * label: 8 + 4 * label] = 255
        return images, labels

    monkeypatch.setitem(items.SOURCES, "stripes", items.Source(("first", "second", "third", "last"),
                                                               stripes))
    cell = presets.load("smoke", "te", 0, {"data.source": "stripes"})
    made = scenes.build(cell.data, "val", load_source("stripes", "test").labels.numpy())
    text = Tokenizer(items.class_names("stripes")).decode(made.caption[0])
    assert parse(text, items.class_names("stripes")).clauses == set(made.clauses(0))


def test_settings_accept_the_names_of_sources(tmp_path):
    """What `config` allows is what SOURCES knows, and a path names a run's folder safely."""
    made = presets.load("smoke", "te", 0, {"data.source": "folder:/data/my digits/"})
    assert made.data.source == "folder:/data/my digits/" and made.data.word == "my-digits"
    assert DataConfig(source="torchvision:KMNIST").word == "KMNIST"
    assert config.Settings().data.word == "digits"
    with pytest.raises(SettingsError, match="data.source = 'faces' is not one of digits"):
        presets.load("smoke", "te", 0, {"data.source": "faces"})
    for name in ("folder", "folder:", "faces:x", "digits:x"):
        with pytest.raises(SettingsError, match="unknown item source"):
            load_source(name, "train")


def test_a_study_of_own_pictures_with_other_classes_and_size(tmp_path, monkeypatch):
    """Twelve classes, scenes of 96 pixels: both stages are trained, evaluated and used."""
    monkeypatch.setenv("TEVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 100)
    source = write_few(tmp_path / "mine", 10, 60, [f"thing{i:02}" for i in range(12)])
    cell = tiny(**{"data.source": source, "data.scene": 96})
    stage1.train(cell, tmp_path)
    stage2.train(cell, tmp_path)
    for run in (evaluate.evaluate(cell, tmp_path), evaluate.evaluate_quantizer(cell, tmp_path)):
        assert run.folder.name.startswith("mine-te-s0-") and run.done
    rows = evaluate.open_run(cell, "quantizer", tmp_path).summary()["rows"]
    assert {row["metric"] for row in rows} >= {"digit", "empty"}
    empty = [row["value"] for row in rows
             if (row["task"], row["metric"]) == ("ceiling-real", "empty")]
    assert set(empty) == {1.0}  # the ink is where the larger offsets say
    judged = Evaluator.load(cell, tmp_path)
    made = Generator(cell, judged, transformer.load(cell, tmp_path))
    x = made.paint("the center is red thing11.", greedy=True)
    assert x.shape == (1, 3, 96, 96) and len(made.describe(-x.abs())) == 1
    assert evaluate.load_painted(cell, "test", tmp_path, [0]).images.shape == (1, 3, 96, 96)
