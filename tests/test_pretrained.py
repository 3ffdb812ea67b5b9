"""Networks that come with the repository: rounded, put in place, tried out."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import FEATURES, TINY

from tevq import pretrained
from tevq.config import SettingsError
from tevq.data.scenes import render
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate import evaluator
from tevq.models import transformer
from tevq.pretrained import Generator
from tevq.report import tables
from tevq.runs.run import open_run
from tevq.train import stage1, stage2

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = importlib.util.spec_from_file_location("make", ROOT / "results/laptop/models/make.py")
make = importlib.util.module_from_spec(SCRIPT)
SCRIPT.loader.exec_module(make)


def test_the_card_is_what_the_script_writes():
    """Planted fault: a card of an older script."""
    card = (ROOT / "results/laptop/models/README.md").read_text(encoding="utf-8")
    fixed = map(re.escape, re.split(r"\{\w+\}", make.CARD))
    assert re.fullmatch(".+".join(fixed), card, re.DOTALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A grid with both variants trained, evaluated and saved, tiny."""
    stage1.KMEANS_VECTORS, evaluation.PROBE_ITEMS = FEATURES, 6
    grid = pretrained.chosen(tmp_path_factory.mktemp("results"), TINY, "smoke")
    for cell in grid.cells:
        stage1.train(cell, grid.results)
        stage2.train(cell, grid.results)
        evaluation.evaluate(cell, grid.results)
    tables.write(grid, tables.build(grid))
    make.save(grid)
    return grid


@pytest.fixture
def clone(trained, tmp_path):
    """What somebody else gets: everything but the `state` folders."""
    shutil.copytree(trained.folder, tmp_path / trained.preset,
                    ignore=shutil.ignore_patterns("state"))
    return pretrained.chosen(tmp_path, TINY, trained.preset)


@pytest.fixture
def te(trained):
    """The generator of variant te, with a tokenizer of ten numbers."""
    cell = trained.cells[1]
    judged = evaluator.Evaluator.load(cell, trained.results)
    return Generator(cell, judged, transformer.load(cell, trained.results))


def test_a_clone_has_the_rounded_weights(trained, clone):
    runs = pretrained.runs_of(clone)
    assert len(runs) == 5 and not any(run.has_weights for run in runs)
    assert pretrained.install(clone) == [run.name for run in runs]
    for original, run in zip(pretrained.runs_of(trained), runs, strict=True):
        assert run.has_weights
        for name, tensor in original.weights().items():
            got = run.weights()[name]
            assert got.dtype == tensor.dtype
            assert torch.equal(got, tensor.half().float() if got.is_floating_point() else tensor)
    assert pretrained.install(clone) == []  # nothing is put twice


def test_trained_weights_are_never_replaced(trained):
    before = open_run(trained.cells[0], "stage2", trained.results).weights()
    pretrained.install(trained)
    after = open_run(trained.cells[0], "stage2", trained.results).weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_card_names_every_file_and_the_tables_numbers(trained):
    card = (trained.folder / "models" / "README.md").read_text(encoding="utf-8")
    files = list((trained.folder / "models").glob("*.safetensors"))
    assert len(files) == 5 and all(f"`{file.name}`" in card for file in files)
    table = tables.select(tables.read(trained, "table1"), task="t2i", split="test", metric="digit",
                          decoding="greedy")
    sc, te = (tables.select(table[table["case"] != "center"], variant=v)["value"].mean()
              for v in ("sc", "te"))
    assert f"| t2i | test | greedy | {sc:.3f} | {te:.3f} |" in card


def test_saving_again_leaves_no_file_of_another_run(trained):
    stray = trained.folder / "models" / "stage1-other.0123.safetensors"
    stray.write_bytes(b"")
    assert stray not in make.save(trained) and not stray.exists()


def test_damage_and_other_settings_are_refused_in_one_line(clone):
    other = pretrained.chosen(clone.results, TINY | {"stage1.steps": 7}, "smoke")
    with pytest.raises(SettingsError, match="no pretrained weights of stage1/digits-sc"):
        pretrained.install(other)
    file = next((clone.folder / "models").glob("classifier-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    shutil.rmtree(open_run(clone.settings, "classifier", clone.results).folder / "state")
    with pytest.raises(SettingsError, match="damaged"):
        pretrained.install(clone)
    with pytest.raises(SettingsError, match="unknown pretrained network 'mb'; allowed: sc, te"):
        pretrained.load("mb")


def test_rounded_weights_are_not_saved_as_trained_ones(clone):
    pretrained.install(clone)
    with pytest.raises(SettingsError, match="holds pretrained weights"):
        make.save(clone)


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_loading_writes_nothing_and_works_from_anywhere(tmp_path):
    """Another working folder, no home, read-only results. Planted fault: weights are installed."""
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results" / "laptop" / "models", results / "laptop" / "models")
    for path in [*results.rglob("*"), results]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(results)
    script = (f"from tevq import pretrained\nte = pretrained.load('te', {str(results)!r})\n"
              "print(repr(te), tuple(te.paint('the center is red two.', greedy=True).shape))")
    home = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    found = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=tmp_path / "elsewhere", capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home),
                                     "TEVQ_CACHE": str(home / "cache")})
    for path in [results, *results.rglob("*")]:
        path.chmod(0o755)
    assert found.stdout == "<generator 'te' of scenes of mnist> (1, 3, 64, 64)\n", found.stderr
    assert listing(results) == before and not home.exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_absent_weights_are_named_with_the_folder(tmp_path):
    with pytest.raises(SettingsError, match=f"no pretrained weights .* in {tmp_path}.laptop"):
        pretrained.load("te", tmp_path)


def test_paints_and_describes(trained, te):
    scenes, items = evaluator.split_of(te.settings, "val", 4)
    texts = [te.evaluator.tokenizer.decode(row) for row in scenes.caption]
    images = te.paint(texts, seed=3)
    assert images.shape == (4, 3, 64, 64) and images.abs().max() <= 1
    codes = te.evaluator.text_to_image(te.model, scenes.caption, te.settings.evaluation, 3)
    assert torch.allclose(images, te.evaluator.decode(codes), atol=1e-5)
    alone = te.paint(texts[0], seed=3)  # a text alone is one caption
    assert torch.allclose(alone, images[:1], atol=1e-5)  # the last bits depend on the threads
    x = render(scenes, items)
    assert len(te.describe(x)) == 4
    assert torch.equal(te.codes(x), te.evaluator.vqgan.codes(x))
    assert torch.allclose(te.reconstruct(x), te.evaluator.decode(te.codes(x)), atol=1e-5)
    assert torch.equal(te.codes(x.double()), te.codes(x))
    assert repr(te) == "<generator 'te' of scenes of digits>"


@pytest.mark.promise("input")
@pytest.mark.parametrize("captions, message", [
    ("the center is purple two.", "word 'purple'; known: the .* white red .*; a good one"),
    ("the centre is red two.", "word 'centre'; did you mean 'the center is red two.'$"),
    ("The center is red two.", "word 'The'; did you mean 'the center is red two.'$"),
    ("", "caption '': it is empty"),
    ("  ", "caption '  ': it is empty"),
    ("the center is red two", "no full stop"),
    ("the upper left is red two, the top left is red one.", "contradictory clauses: upper left"),
    (", ".join(["the upper left is white two"] * 9) + ".", "duplicate clauses: upper left 9"),
    ("red two the center.", "not a clause"),
    ([], "takes a caption or a list"),
    ([3], "3 is no text; paint takes captions"),
    (["the center is red two.", ""], "caption '': it is empty"),
])
def test_bad_captions_are_refused_in_one_line(te, captions, message):
    with pytest.raises(SettingsError, match=message) as error:
        te.paint(captions)
    assert "\n" not in str(error.value)


X = torch.full((2, 3, 64, 64), -1.0)
X[:, :, 20:30, 20:30] = 1.0


@pytest.mark.promise("input")
@pytest.mark.parametrize("images, message", [
    (X[:0], r"shape \(0, 3, 64, 64\) is no picture; wanted a picture file"),
    (X[:, :, :0], r"shape \(2, 3, 0, 64\) is no picture"),
    (torch.cat([X, X[:, :2]], 1), r"the shape \(2, 5, 64, 64\)"),
    (X * 900, "from -900 to 900; allowed: 0 to 1, 0 to 255"),
    (X.clone().index_fill_(3, torch.tensor([4]), float("nan")), "from nan to nan"),
    (X * float("inf"), "from -inf to inf"),
    (None, "NoneType is no picture"),
    ([], "there is no picture"),
    ("image", "cannot read the picture 'image'"),
])
def test_bad_images_are_refused_in_one_line(te, images, message):
    for use in (te.describe, te.codes, te.reconstruct):
        with pytest.raises(SettingsError, match=message) as error:
            use(images)
        assert "\n" not in str(error.value)


@pytest.mark.promise("input")
@pytest.mark.parametrize("images, assumed", [
    (X[0], ""), (X.numpy(), ""), (X[:, :1], "grey"),
    (((X + 1) * 127.5).byte(), "values from 0 to 255"), ((X + 1) * 127.5, "values from 0 to 255"),
    ((X + 1) / 2, "values from 0 to 1"),
    (torch.cat([X, torch.full_like(X[:, :1], 1.0)], 1), "transparent, laid on black"),
])
def test_other_images_are_taken_as_the_same_and_it_is_said(te, images, assumed, capsys):
    """Planted fault: images in [0, 1] taken as they are, whose range looks sound."""
    assert torch.equal(te.codes(images)[0], te.codes(X)[0])
    assert capsys.readouterr().err == (f"tevq: pictures taken as {assumed}\n" if assumed else "")


@pytest.mark.promise("input")
@pytest.mark.parametrize("seed", [-1, 1 << 31, 0.5, "1"])
def test_bad_seeds_are_refused(te, seed):
    with pytest.raises(SettingsError, match="is not a whole number from 0"):
        te.paint("the center is red two.", seed=seed)
    with pytest.raises(SettingsError, match="is not a whole number from 0"):
        te.describe(X, seed=seed)


@pytest.mark.promise("input")
@pytest.mark.parametrize("words, says", [
    (["paint", "the center is red two."], 'paint needs --out FILE: paint "the'),
    (["paint", "--out", "x.png"], "paint needs a caption: "),
    (["paint"], "paint needs a caption and --out FILE: "),
    (["describe"], "describe needs a picture file: describe x.png"),
    (["codes"], "codes needs a picture file: codes x.png"),
])
def test_the_command_line_says_what_is_missing(words, says, capsys):
    """Planted fault: one line for everything, which leaves the search to the reader."""
    assert pretrained.main(words) == 2
    assert capsys.readouterr().err.startswith(f"tevq: {says}")


def test_a_python_without_torch_is_told_which_one_to_use():
    """Planted fault: the traceback of an import."""
    program = ("import runpy, importlib.util as u\nfind = u.find_spec\n"
               "u.find_spec = lambda name, *more: name != 'torch' and find(name, *more)\n"
               "runpy.run_module('tevq.pretrained', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("tevq: this Python has no torch; use ")
    assert done.stderr.count("\n") == 1
