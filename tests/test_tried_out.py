"""The shipped networks as users try them: files, samples, moves, the command line."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from check import ROOT
from PIL import Image

from tevq import pretrained
from tevq.config import SettingsError
from tevq.data import captions, scenes, source
from tevq.pictures import Pictures, as_images
from tevq.report import style
from tevq.runs import devices

NINE = "the upper left is blue nine."
NAMES = source.class_names("mnist")


@pytest.fixture(scope="module")
def te():
    return pretrained.load("te", ROOT / "results")


@pytest.fixture(scope="module")
def nine(te):
    return te.paint(NINE, greedy=True)


def drawn(count: int = 3) -> torch.Tensor:
    """Scenes of a digit each, black around it."""
    items = source.load_source("digits", "test")
    number = torch.arange(count)
    return scenes.draw(items.images[:count], number % 4, torch.tensor([[10, 12]] * count), number,
                       count)


def test_several_samples_of_each_caption(te):
    """Planted faults: the seed of a sample depends on how many there are; samples interleaved."""
    texts = [NINE, "the center is red two."]
    both = te.paint(texts, seed=5, samples=3)
    assert both.shape == (6, 3, 64, 64) and both.words == [texts[0]] * 3 + [texts[1]] * 3
    assert len(torch.unique(both.codes, dim=0)) == 6
    assert torch.equal(both.codes[2], te.paint(NINE, seed=7).codes[0])
    for bad in ({"samples": 0}, {"samples": 1.5}, {"samples": 2, "greedy": True}):
        with pytest.raises(SettingsError, match="samples = "):
            te.paint(NINE, **bad)


def test_temperature_and_top_k_reach_the_sampler(te, nine):
    assert torch.equal(te.paint(NINE, top_k=1).codes, nine.codes)
    assert torch.equal(te.paint(NINE, temperature=1e-6).codes, nine.codes)
    assert not torch.equal(te.paint(NINE, temperature=3.0, top_k=None).codes,
                           te.paint(NINE, temperature=3.0).codes)
    for bad in ({"temperature": 0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_k": 2.5}):
        with pytest.raises(SettingsError, match=f"{next(iter(bad))} = "):
            te.paint(NINE, **bad)


def test_progress_is_told_for_many_only(te, capsys, monkeypatch):
    whole = te.codes(drawn(3))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(pretrained, "AT_ONCE", 2)
    codes = te.codes(drawn(3))
    assert "encoded 2 of 3, about " in (said := capsys.readouterr().err) and said.endswith("\n")
    assert torch.equal(codes, whole)


@pytest.mark.promise("input")
@pytest.mark.parametrize("text, meant", [
    ("The upper left is bleu 9", NINE), ("A BLUE NINE IN THE TOP LEFT", NINE),
    ("red five", "the center is red five."),
    ("a red five in the top left and the white two is on the lower right",
     "the upper left is red five, and the lower right is white two."),
    ("", ""), ("hello", ""), ("the upper left is red two, the upper left is blue one.", ""),
    ("a nine", ""), ("the upper left is blue nine, and something.", ""), ("é 9\n", ""),
])
def test_what_was_probably_meant(te, text, meant):
    assert captions.nearest(text, NAMES) == meant
    with pytest.raises(SettingsError) as error:
        te.paint(text)
    hint = f"did you mean {meant!r}" if meant else f"a good one: {NINE!r}"
    assert str(error.value).endswith(hint)


def test_every_caption_is_its_own_nearest():
    for text in captions.paraphrases([captions.Clause(0, 3, 9), captions.Clause(3, 0, 2)], 40, 0,
                                     NAMES):
        found = captions.parse(captions.nearest(text, NAMES), NAMES)
        assert found.clauses == captions.parse(text, NAMES).clauses


FILES = {  # name -> how it is made of an RGB picture, what is said of it
    "rgb.png": (lambda x: x, ""), "rgba.png": (lambda x: x.convert("RGBA"), "transparent"),
    "palette.gif": (lambda x: x.convert("P"), ""), "jpeg.jpg": (lambda x: x, ""),
    "grey.png": (lambda x: x.convert("L"), "grey"),
    "two.png": (lambda x: x.convert("1"), "grey"),
    "deep.png": (lambda x: Image.fromarray(np.asarray(x.convert("L")).astype("u2") * 257),
                 "values from 0 to 65535; grey"),
    "large.png": (lambda x: x.resize((128, 128)), "128 x 128 pixels, resized to 64 x 64"),
    "wide.png": (lambda x: x.resize((300, 100)), "100 x 300 pixels, resized to 21 x 64"),
    "small.png": (lambda x: x.crop((12, 10, 40, 38)), "28 x 28 pixels, in the middle of 64 x 64"),
}


@pytest.mark.promise("input")
@pytest.mark.parametrize("name", FILES)
def test_picture_files_of_every_kind(name, tmp_path, capsys):
    """Planted faults: 16 bits cut off; a small picture blown up; shapes not kept."""
    make, said = FILES[name]
    Pictures.of(drawn(1)).save(tmp_path / "x.png")
    white = Image.open(tmp_path / "x.png")
    make(white).save(tmp_path / name)
    for given in (str(tmp_path / name), tmp_path / name, Image.open(tmp_path / name)):
        x = as_images(given, 64)
        assert x.shape == (1, 3, 64, 64) and -1 <= x.min() < -0.9 and 0.4 < x.max() <= 1
        assert said in capsys.readouterr().err
        if name not in ("wide.png", "small.png", "jpeg.jpg", "two.png"):
            assert (x - drawn(1)).abs().mean() < 0.03


@pytest.mark.promise("input")
def test_files_that_are_no_pictures(te, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((64, 64), "u1")).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "cut.png", "absent.png", ""):
        with pytest.raises(SettingsError, match="cannot read the picture") as error:
            te.describe(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_list_may_mix_kinds_and_oddities_are_named(te, nine, tmp_path, capsys):
    nine.save(tmp_path / "x.png")
    mixed = [tmp_path / "x.png", nine, np.asarray(Image.open(tmp_path / "x.png"))]
    assert te.describe(mixed) == te.describe(nine) * 3
    capsys.readouterr()
    te.codes(torch.full((1, 3, 64, 64), -1.0))
    te.codes(torch.full((64, 64), 250))
    said = capsys.readouterr().err
    assert "black, with nothing to see" in said and "bright, where" in said


def test_pictures_are_tensors_that_save_and_show_themselves(te, nine, tmp_path):
    again = te.reconstruct(nine)
    assert isinstance(again, Pictures) and type(nine + 1) is type(nine[0]) is torch.Tensor
    assert repr(nine) == "<1 x 64 x 64 pixels>" and nine.words == [NINE]
    assert nine.save(tmp_path / "x.png") == [tmp_path / "x.png"]
    assert torch.equal(te.codes(tmp_path / "x.png"), te.codes(as_images(tmp_path / "x.png", 64)))
    many = te.paint(NINE, samples=2)
    assert [path.name for path in many.save(tmp_path / "y.png")] == ["y-0.png", "y-1.png"]
    for bad in (tmp_path / "none" / "x.png", tmp_path / "x.what"):
        with pytest.raises(SettingsError, match="cannot write .*; use a name such as x.png"):
            nine.save(bad)
    assert many._repr_png_().startswith(b"\x89PNG")


def test_moves_by_whole_cells_move_the_codes(te):
    """Planted faults: right and down exchanged; the map moved the other way."""
    x = drawn(3)
    for right, down in ((8, 0), (0, 8), (-8, 4), (4, -8)):
        moved = te.move(x, right, down)
        ink = (x.amax(1) > 0).nonzero()
        seen = (moved.amax(1) > 0).nonzero()
        assert torch.equal(seen - ink, torch.tensor([[0, down, right]]).expand(len(ink), 3))
        assert moved.agreement > 0.8 and moved.kappa > 0.8
        assert torch.equal(moved.codes, te.codes(moved))
    assert te.move(x, 2, 0).agreement < 0.7 < te.move(x, 0, 0).agreement == 1
    changed = te.move(x, 1, 0)
    share = 1 - (changed.changed & changed.ink).sum() / changed.ink.sum()
    assert share.item() == pytest.approx(changed.agreement)
    for bad in (64, 0.5, "1"):
        with pytest.raises(SettingsError, match="cannot move by"):
            te.move(x, bad)


class OnGpu(torch.Tensor):
    """Numbers that meet no others: only `cpu` gives plain ones."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        assert function is torch.Tensor.cpu, f"{function} of a number on the GPU"
        return arguments[0].as_subclass(torch.Tensor)


def test_a_move_on_a_gpu(te, nine, monkeypatch):
    """Planted fault: the ink, which is here, beside codes and features there."""
    wanted, plain = te.move(nine, 1, 0), pretrained.encode

    def there(*x):
        found = plain(*x)
        return replace(found, features=found.features.as_subclass(OnGpu),
                       codes=found.codes.as_subclass(OnGpu))

    monkeypatch.setattr(pretrained, "encode", there)
    assert te.move(nine, 1, 0).kappa == wanted.kappa


@pytest.mark.parametrize("words, idle", [
    ("describe x.png --out y.txt", "--out"), ("install --greedy", "--greedy"),
    ("codes x.png --samples 2 --top-k 5", "--samples, --top-k")])
def test_options_of_painting_are_refused_elsewhere(words, idle, capsys):
    assert pretrained.main(words.split()) == 2
    assert f"takes no {idle}" in capsys.readouterr().err


def test_both_variants_side_by_side(nine, tmp_path):
    """Planted fault: the generator's own codes before the move, those of the picture after it."""
    nine.save(tmp_path / "x.png")
    by_caption = pretrained.compare(NINE, greedy=True)
    assert list(by_caption) == ["sc", "sc moved", "te", "te moved"]
    assert by_caption["te"].words == [NINE]
    before, moved = by_caption["te"], by_caption["te moved"]
    same = ~moved.changed  # a pixel is no cell: unframed codes are those of the picture before
    assert torch.equal(before.codes[same], moved.codes[same])
    assert (before.codes[moved.changed] != moved.codes[moved.changed]).all()
    assert 0 < by_caption["te moved"].agreement < 1
    of_file = pretrained.compare(str(tmp_path / "x.png"), right=4)
    assert of_file["te moved"].agreement > by_caption["te moved"].agreement
    assert by_caption._repr_png_().startswith(b"\x89PNG") and "codes kept" in repr(of_file)


@pytest.mark.parametrize("load, threads", [(0.0, 3), (99.0, 1)])
def test_one_thread_while_the_machine_is_busy(monkeypatch, load, threads):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError), devices.fewer_threads():
            assert torch.get_num_threads() == threads
            raise ZeroDivisionError  # restored after an error, too
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line."""
    try:
        code = pretrained.main([*words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_the_command_line(te, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said, _ = run(capsys, "paint", NINE, "--out", "x.png", "--greedy")
    assert code == 0 and said == f"x.png: {NINE}\n"
    code, said, _ = run(capsys, "describe", "x.png")
    assert code == 0 and said == te.describe("x.png")[0] + "\n"
    code, said, _ = run(capsys, "codes", "x.png", "--variant", "te")
    assert code == 0 and [list(map(int, line.split())) for line in said.splitlines()
                          ] == te.codes("x.png")[0].tolist()
    code, said, _ = run(capsys, "paint", "--out", "y.png", "--samples", "2", "--seed", "3",
                        "--top-k", "5", "--temperature", "0.7", NINE)
    assert code == 0 and said == f"y-0.png: {NINE}\ny-1.png: {NINE}\n"
    te.paint(NINE, 3, samples=2, top_k=5, temperature=0.7).save("z.png")
    for k in range(2):
        assert (tmp_path / f"y-{k}.png").read_bytes() == (tmp_path / f"z-{k}.png").read_bytes()


@pytest.mark.promise("input")
@pytest.mark.parametrize("words", [
    ["fly"], ["paint"], ["paint", NINE], ["paint", "blue nine", "--out", "x.png"], ["describe"],
    ["paint", NINE, "--out", "no/x.png"], ["paint", NINE, "--out", "x.what"],
    ["paint", NINE, "--out", "x.png", "--samples", "two"], ["describe", "absent.png"],
    ["paint", NINE, "--out", "x.png", "--temperature", "0"], ["codes", "x.png", "--variant", "mb"],
    ["paint", NINE, "--out", "x.png", "--seed", "-1"], ["--results", "absent"], ["--fast"],
])
def test_errors_of_the_command_line_are_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said, error = run(capsys, *words)
    assert code == 2 and said == "" and error.startswith("tevq: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_widget_says_what_is_wrong_and_keeps_its_picture(monkeypatch):
    """Planted fault: an error of the drawing function ends the cell."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)

    def draw(caption: str):
        if caption != NINE:
            raise SettingsError("no caption")
        return style.new()[0]

    style.explore(draw, caption=NINE)
    control, said, picture = shown[0].children
    before = picture.value
    control.value = "nine"
    assert said.value == "no caption" and picture.value == before and before
    control.value = NINE
    assert said.value == ""
