"""Networks that come with the repository: rounded, put in place, tried out."""

import shutil

import pytest
import torch
from small import FEATURES, TINY

from tevq import pretrained
from tevq.config import SettingsError
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate import evaluator
from tevq.models import transformer
from tevq.report import tables
from tevq.runs.run import open_run
from tevq.train import stage1, stage2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study with both variants trained, evaluated and saved, tiny."""
    stage1.KMEANS_VECTORS, evaluation.PROBE_ITEMS = FEATURES, 6
    grid = pretrained.chosen(tmp_path_factory.mktemp("results"), TINY, "smoke")
    for cell in grid.cells:
        stage1.train(cell, grid.results)
        stage2.train(cell, grid.results)
        evaluation.evaluate(cell, grid.results)
    tables.write(grid, tables.build(grid))
    pretrained.save(grid)
    return grid


@pytest.fixture
def clone(trained, tmp_path):
    """What somebody else gets: everything but the `state` folders."""
    shutil.copytree(trained.folder, tmp_path / trained.preset,
                    ignore=shutil.ignore_patterns("state"))
    return pretrained.chosen(tmp_path, TINY, trained.preset)


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
    card = (trained.folder / "models" / "README.md").read_text()
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
    assert stray not in pretrained.save(trained) and not stray.exists()


def test_damage_and_other_settings_are_refused_in_one_line(clone):
    other = pretrained.chosen(clone.results, TINY | {"stage1.steps": 7}, "smoke")
    with pytest.raises(SettingsError, match="no pretrained weights of stage1/digits-sc"):
        pretrained.install(other)
    file = next((clone.folder / "models").glob("classifier-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    shutil.rmtree(open_run(clone.settings, "classifier", clone.results).folder / "state")
    with pytest.raises(SettingsError, match="damaged"):
        pretrained.install(clone)
    with pytest.raises(SettingsError, match="no pretrained networks of 'mb'; there are some of sc"):
        pretrained.load("mb")


def test_paints_and_describes(trained):
    cell = trained.cells[1]
    judged = evaluator.Evaluator.load(cell, trained.results)
    te = pretrained.Generator(cell, judged, transformer.load(cell, trained.results))
    scenes, _ = evaluator.split_of(cell, "val", 4)
    texts = [judged.tokenizer.decode(row) for row in scenes.caption]
    images = te.paint(texts, seed=3)
    assert images.shape == (4, 3, 64, 64) and images.abs().max() <= 1
    codes = judged.text_to_image(te.model, scenes, cell.evaluation, 3)  # second route
    assert torch.equal(images, judged.decode(codes))
    assert len(te.describe(images)) == 4
    with pytest.raises(SettingsError, match="'purple' is not in the vocabulary"):
        te.paint(["the center is purple two."])
    with pytest.raises(SettingsError, match="tokens; at most"):
        te.paint([", ".join(["the upper left is white two"] * 9) + "."])


def test_rounded_weights_are_not_saved_as_trained_ones(clone):
    pretrained.install(clone)
    with pytest.raises(SettingsError, match="holds pretrained weights"):
        pretrained.save(clone)
