"""Guards: numbers that must stay as they are when code is moved.

They hold the names of run folders (for every committed run, and for every preset, variant and kind
of run), the shipped models and what they paint and describe, the committed tables, the scenes,
captions and pixels, the order of the data, sampled codes, the codebook's measures, seeded random
numbers, the statistics, the scores, and what a tiny training logs. MNIST and Fashion-MNIST are
looked at when TEVQ_DATA has them; nothing is downloaded.

What is compared is `guards/numbers.json` and `guards/painted.npz`, written on one CPU thread,
before the package was split, by

    PYTHONPATH=. TEVQ_DATA=... python tests/test_guards.py --record

Only do that when a number is meant to change, and read the difference: a guard that turns red after
code was only moved says that the move is wrong, not the guard.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import study

from tevq import config as settings
from tevq import presets, pretrained
from tevq.data import captions, scenes
from tevq.data import source as items
from tevq.evaluate import equivariance
from tevq.evaluate import metrics as scoring
from tevq.models import classifier, quantizer, sampling, transformer, vqgan
from tevq.report import stats, tables, why
from tevq.runs import devices, storage
from tevq.runs import run as runs
from tevq.train import loop, stage1, stage2

ROOT = Path(__file__).resolve().parent.parent
LAPTOP = ROOT / "results" / "laptop"
FIXTURES = Path(__file__).resolve().parent / "guards"
COMMITTED_RUNS = 134  # at least so many; an empty folder would pass every loop
SHIPPED = ("sc", "te")
TEXTS = (
    "the lower right is blue nine, and the white two is on the upper left.",
    "the upper left is white zero.",
    "the center is red two.",
)
SMALL = settings.DataConfig(source="digits", train=60, val=10, test=15, seed=3)
TINY = {
    "precision": "float32", "data.train": 60, "data.val": 10, "data.test": 10,
    "classifier.width": 4, "classifier.steps": 4, "classifier.batch": 16,
    "stage1.channels": 4, "stage1.codes": 12, "stage1.code_dim": 12, "stage1.warmup_steps": 2,
    "stage1.steps": 6, "stage1.batch": 4, "stage1.disc_start": 3, "stage1.disc_channels": 4,
    "stage1.disc_layers": 1, "stage1.stride": 8,
    "stage2.dim": 16, "stage2.depth": 1, "stage2.heads": 2, "stage2.head_dim": 8,
    "stage2.steps": 6, "stage2.batch": 4, "stage2.warmup_steps": 2, "stage2.probe_every": 3,
    "stage2.probe_scenes": 10, "evaluation.batch": 4,
}
# clock, hashes of rounded sums, and what is logged since the record
NOT_A_NUMBER_OF_THE_RUN = {"seconds", "finished", "weights", "nats"}
# (relative, absolute) tolerance of a group; exact if absent. Shipped models and trainings pass
# through many float32 sums, whose order depends on the processor.
TOLERANCES = {"codebook": (1e-6, 1e-9), "statistics": (1e-9, 1e-12), "equivariance": (0, 0.02),
              "judged": (0, 1), "training": (1e-6, 1e-9)}
LOSSES = ("l1", "loss", "text_loss", "image_loss")  # compared within 10 % on another processor


# ------------------------------------------------------------------------------ what is measured


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def run_names() -> dict:
    """Folder of every kind of run of many settings, by preset and cell."""
    found: dict = {}
    for preset in ("smoke", "laptop", "gpu", "paper"):
        for variant in ("mb", "mp", "cb", "sc", "te"):
            for seed in (0, 7):
                for fraction in (1.0, 1 / 3):
                    for stride in (0, 8):
                        changes = {"stage2.fraction": fraction}
                        changes |= {"stage1.stride": stride} if stride else {}
                        cell = presets.load(preset, variant, seed, changes)
                        key = f"{preset} {variant} {seed} {fraction:.2f} {stride}"
                        found[key] = {
                            kind: runs.open_run(cell, kind, "results").folder.name
                            for kind in ("classifier", "stage1", "stage2", "evaluation",
                                         "quantizer")}
    return found


def labels_of(source: str, split: str) -> np.ndarray:
    return items.load_source(source, scenes.part_of(split)).labels.numpy()


def digit_scenes() -> dict:
    """Scenes of a small data set: hashes, captions, pixels."""
    words = captions.Tokenizer(items.class_names("digits"))
    found: dict = {"vocabulary": list(words.words), "length": words.length}
    for split in ("train", "val", "val_seen", "test", "test_seen"):
        made = scenes.build(SMALL, split, labels_of("digits", split))
        shown = items.load_source("digits", scenes.part_of(split))
        x = scenes.render(made, shown, slice(0, 10))
        pixels = ((x + 1) * 127.5).round().to(torch.uint8).numpy()
        clauses = made.clauses(0)
        found[split] = {
            "items": shown.sha256(), "scenes": made.sha256(), "pixels": sha256(pixels),
            "shape": list(pixels.shape),
            "captions": [words.decode(row) for row in made.caption[:6]],
            "paraphrases": captions.paraphrases(clauses, 4, 5, words.names),
        }
    return found


def real_scenes() -> dict:
    """Scenes of MNIST and Fashion-MNIST: a small data set, and all of preset laptop."""
    found: dict = {}
    for source in ("mnist", "fashion"):
        small = settings.DataConfig(source=source, train=200, val=20, test=20, seed=0)
        whole = dataclasses.replace(presets.load("laptop").data, source=source)
        for split in scenes.SPLITS:
            labels = labels_of(source, split)
            found[f"{source} {split}"] = {
                "items": items.load_source(source, scenes.part_of(split)).sha256(),
                "small": scenes.build(small, split, labels).sha256(),
                "laptop": scenes.build(whole, split, labels).sha256(),
            }
    return found


def without_real_data() -> str:
    """Why MNIST cannot be looked at; empty when it can."""
    root = os.environ.get("TEVQ_DATA")
    if not root:
        return "TEVQ_DATA is not set"
    names = [f"{part}-{kind}" for part in ("train", "t10k")
             for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    absent = [str(path) for source in ("MNIST", "FashionMNIST") for name in names
              if not (path := Path(root).expanduser() / source / "raw" / name).is_file()]
    return f"{absent[0]} is absent" if absent else ""


def order_of_the_data() -> dict:
    """Batches of several epochs, and the generators behind every seeded draw."""
    batches = loop.Batches(23, 5, 4)
    return {
        "batches": {str(step): batches[step].tolist() for step in (0, 1, 3, 4, 5, 11, 2)},
        "generator": {str(numbers): torch.randint(
            0, 1 << 31, (4,), generator=devices.generator(*numbers)).tolist()
            for numbers in ((0,), (1, 2), (7, 0, 3))},
        "uniform": sampling.uniform(torch.tensor([0, 1, 5 << 32, (5 << 32) + 1]), 3).tolist(),
        "turns": "".join(stage2.direction_of(step, settings.Stage2Config(t2i_share=0.75))[0]
                         for step in range(12)),
        "rates": [round(stage2.schedule(name, step, 40, 5), 9)
                  for name in ("linear", "restarts", "constant") for step in (0, 3, 5, 20, 39)],
    }


def sampled_codes() -> dict:
    """What a small transformer with seeded weights writes and paints."""
    torch.manual_seed(0)
    model = transformer.Transformer(11, 7, 8, 4, dim=32, depth=2, head_dim=16, window=3,
                                    neighbours=1)
    for head in (model.text_head, model.image_head):  # zero at the start of training
        torch.nn.init.normal_(head.weight, std=0.4)
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(3, 11, (3, 8), generator=draw)
    text[:, 0] = sampling.BOS
    codes, seeds = torch.randint(0, 7, (3, 4, 4), generator=draw), torch.arange(100, 103)
    found = {"parameters": {name: list(value.shape) for name, value in
                            model.state_dict().items()}}
    for name, options in {"sampled": {}, "greedy": {"greedy": True},
                          "few": {"temperature": 0.7, "top_k": 3}}.items():
        found[name] = {
            "images": sampling.generate_images(model, text, seeds, **options).tolist(),
            "captions": sampling.generate_captions(model, codes, seeds, **options).tolist(),
        }
    return found


def codebook() -> dict:
    """Equations 3 and 5 on a seeded codebook."""
    draw = torch.Generator().manual_seed(2)
    book, vectors = torch.randn(12, 16, generator=draw), torch.randn(40, 16, generator=draw)
    codes = quantizer.nearest_codes(vectors, book)
    return {
        "nearest": codes.tolist(),
        "orthogonality": float(quantizer.orthogonality(book)),
        "of the identity": float(quantizer.orthogonality(torch.eye(16)[:12])),
        "health": quantizer.codebook_health(book, torch.bincount(codes, minlength=12)),
    }


def statistics() -> dict:
    """Every statistic on fixed samples."""
    sample = [0.031, 0.012, -0.004, 0.027, 0.019, 0.008]
    draw = np.random.Generator(np.random.PCG64(0))
    n = draw.integers(1, 4, (3, 20))
    a, b = (stats.Counts(np.minimum(n, draw.integers(0, 4, (3, 20))), n) for _ in range(2))
    case = np.arange(20) % 4
    return {
        "mean_sd": [list(stats.mean_sd(sample[:k])) for k in (1, 2, 6)],
        "t_interval": [list(stats.t_interval(sample)), list(stats.t_interval(sample[:3], 0.9))],
        "contrast": [list(x) if isinstance(x, tuple) else x for x in stats.contrast(
            [(1, stats.Group(0.81, 0.012)), (-1, stats.Group(0.74, 0.02))])],
        "sign_flip": [stats.sign_flip(sample), stats.sign_flip(sample[:3])],
        "holm": stats.holm([0.04, 0.01, 0.03, 0.2]),
        "bootstrap": list(stats.bootstrap_difference(a, b, case, draws=500, seed=1)),
    }


def caption_scores() -> dict:
    """Scores of right, wrong and odd captions: {metric: [correct, n] per scene}."""
    names = items.class_names("digits")
    words = captions.Tokenizer(names)
    made = scenes.build(SMALL, "test", labels_of("digits", "test"))
    right = [words.decode(row) for row in made.caption]
    odd = [text.replace("blue", "red").replace(" is ", " ", 1) for text in right]
    truths = [made.clauses(i) for i in range(len(made))]
    return {kind: {metric: [score.correct.tolist(), score.n.tolist()] for metric, score in
                   scoring.score_captions(texts, truths, names).items()}
            for kind, texts in {"right": right, "next": right[1:] + right[:1],
                                "odd": odd}.items()}


def training() -> dict:
    """What a training of a few steps logs, for two variants and all kinds of training."""
    found: dict = {"processor": processor()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEVQ_CACHE", folder)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(stage1, "KMEANS_VECTORS", 400)
        for variant in ("mb", "te"):
            cell = presets.load("smoke", variant, 1, TINY)
            stage1.train(cell, folder)
            stage2.train(cell, folder)
            for kind in ("classifier", "stage1", "stage2"):
                run = runs.open_run(cell, kind, folder)
                found[run.name] = {
                    "metrics": [clean(row) for row in run.metrics()],
                    "size of the weights": {name: float(value.double().square().mean().sqrt())
                                            for name, value in run.weights().items()},
                }
    torch.set_num_threads(threads)
    return found


def processor() -> dict:
    """What decides the rounding of sums, which a training magnifies."""
    on = devices.record(devices.Device(torch.device("cpu"), torch.float32))
    return {"name": on["device_name"], "torch": torch.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "limit": os.environ.get("ONEDNN_MAX_CPU_ISA", "")}


def losses_of(trained: dict) -> dict:
    """The numbers of `training` that are nearly the same on every processor."""
    return {run: [{key: row[key] for key in LOSSES if key in row} for row in found["metrics"]]
            for run, found in trained.items() if run != "processor"}


def clean(tree):
    """Without what differs from run to run."""
    if isinstance(tree, dict):
        return {key: clean(value) for key, value in tree.items()
                if key not in NOT_A_NUMBER_OF_THE_RUN}
    return [clean(value) for value in tree] if isinstance(tree, list) else tree


# -------------------------------------------------------------------------------- shipped models


@functools.lru_cache(maxsize=2)
def shipped(variant: str) -> pretrained.Generator:
    """A shipped generator, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return pretrained.load(variant, results=ROOT / "results")


def painted(variant: str) -> dict[str, np.ndarray]:
    """Pixels uint8 (N, 3, 64, 64) that a shipped generator paints."""
    model = shipped(variant)
    return {f"{variant}_{name}": ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
            for name, x in (("greedy", model.paint(TEXTS, greedy=True)),
                            ("sampled", model.paint(TEXTS, seed=0)))}


def described(pixels: dict[str, np.ndarray]) -> dict:
    """Captions of painted images; the images are the recorded ones, so no error adds up."""
    found: dict = {}
    for name, images in pixels.items():
        model = shipped(name.partition("_")[0])
        x = torch.from_numpy(images).float() / 127.5 - 1
        found[name] = {"greedy": model.describe(x), "sampled": model.describe(x, 2, False)}
    return found


def judged() -> dict:
    """Scores that the shipped classifier gives to drawn scenes and to reconstructions."""
    made = scenes.build(SMALL, "test", labels_of("digits", "test"))
    x = scenes.render(made, items.load_source("digits", "test"))
    found: dict = {}
    for variant in SHIPPED:
        evaluator = shipped(variant).evaluator
        codes = evaluator.vqgan.codes(x)
        for name, scores in (("drawn", evaluator.score_images(x, made)),
                             ("reconstructed", evaluator.score_codes(codes, made))):
            found[f"{variant} {name}"] = {metric: [float(score.correct.sum()), int(score.n.sum())]
                                          for metric, score in scores.items()}
    return found


def equivariances() -> dict:
    """Equation 2 of the shipped quantizers on a few digits."""
    probe = equivariance.Probe(items.load_source("digits", "test"), 5, 0)
    return {variant: [{key: row[key] for key in ("measure", "cells", "agreement", "kappa")}
                      for row in equivariance.measure(
                          equivariance.compare(shipped(variant).evaluator.vqgan, probe))]
            for variant in SHIPPED}


MEASURED = {"run names": run_names, "scenes": digit_scenes, "order": order_of_the_data,
            "sampling": sampled_codes, "codebook": codebook, "statistics": statistics,
            "captions scored": caption_scores, "training": training, "judged": judged,
            "equivariance": equivariances}


# -------------------------------------------------------------------------------------- comparing


@functools.lru_cache(maxsize=1)
def recorded() -> dict:
    return json.loads((FIXTURES / "numbers.json").read_text())


@functools.lru_cache(maxsize=1)
def recorded_pixels() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "painted.npz") as file:
        return dict(file)


def differences(found, wanted, relative: float = 0, absolute: float = 0, path: str = "") -> list:
    """Where two nested values differ, as lines of text; numbers may differ by a tolerance."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [line for key in dict.fromkeys([*wanted, *found])
                for line in differences(found.get(key, "absent"), wanted.get(key, "absent"),
                                        relative, absolute, f"{path}/{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        return [line for i, (a, b) in enumerate(zip(found, wanted, strict=True))
                for line in differences(a, b, relative, absolute, f"{path}/{i}")]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (found, wanted))
    if numbers and (relative or absolute):
        same = (math.isclose(found, wanted, rel_tol=relative, abs_tol=absolute)
                or (math.isnan(found) and math.isnan(wanted)))
    else:
        same = type(found) is type(wanted) and found == wanted
    return [] if same else [f"{path}: {found!r} instead of {wanted!r}"]


def plain(tree):
    """As JSON gives it back."""
    return json.loads(json.dumps(tree))


@pytest.mark.parametrize("group", MEASURED)
def test_measured_numbers_are_the_recorded_ones(group):
    got, wanted, tolerance = plain(MEASURED[group]()), recorded()[group], TOLERANCES.get(group, ())
    if group == "training" and got["processor"] != wanted["processor"]:
        got, wanted, tolerance = losses_of(got), losses_of(wanted), (0.1, 1e-3)
    found = differences(got, wanted, *tolerance)
    assert not found, "\n".join(found[:20])


def test_differences_are_seen():
    """The comparison itself: a guard that cannot fail guards nothing."""
    assert differences({"a": [1, 2.0]}, {"a": [1, 2.0]}) == []
    assert differences({"a": [1, 2.0]}, {"a": [1, 2.1]}) == ["/a/1: 2.0 instead of 2.1"]
    assert differences({"a": 1.0}, {"a": 1.0 + 1e-7}, 1e-6) == []
    for found, wanted in (({}, {"a": 1}), ({"a": 1}, {}), ([1], [1, 2]), (1, "1"), (None, 1)):
        assert differences(found, wanted, 1e-3, 1e-3)


# ---------------------------------------------------------------------------- committed run folders


def committed_runs() -> list[Path]:
    return sorted(path.parent for path in ROOT.glob("results/*/runs/*/*/config.json"))


def rebuilt(preset: str, tree: dict) -> settings.Settings:
    """Settings from the part of them that a run stores; the rest is the preset's."""
    made = presets.load(preset, tree.get("variant", "te"), tree.get("seed", 0))
    groups = {name: dataclasses.replace(getattr(made, name), **{
        key: tuple(value) if isinstance(value, list) else value for key, value in part.items()})
        for name, part in tree.items() if isinstance(part, dict)}
    return dataclasses.replace(made, precision=tree["precision"], **groups)


def test_the_repository_is_found():
    assert devices.ROOT == ROOT
    assert tables.PAPER.is_file() and len(tables.published(1))


def test_committed_runs_have_the_names_of_their_settings():
    found = committed_runs()
    assert len(found) >= COMMITTED_RUNS
    for folder in found:
        tree = json.loads((folder / "config.json").read_text())["settings"]
        preset, kind = folder.parts[-4], folder.parent.name
        assert settings.digest(tree) == folder.name[-8:], folder
        run = runs.open_run(rebuilt(preset, tree), kind, ROOT / "results")
        assert (run.folder, run.config) == (folder, tree)
        assert run.done, folder


def test_the_published_cells_are_the_committed_runs():
    """Seeds 3 to 5 were trained for the main comparison only: the tables call the rest missing."""
    grid = study.published_grid()
    assert Path(grid.results) == ROOT / "results"
    told = {(run, state) for name in tables.NAMES for run, state in zip(
        *(tables.read(grid, name)[column] for column in ("run", "state")), strict=True)}
    found, used = set(), set()
    for cell in tables.cells(grid):
        kinds = {cell.kind, "classifier", "stage1"} | (
            {"stage2"} if cell.kind == "evaluation" else set())
        opened = [runs.open_run(cell.settings, kind, cell.results) for kind in sorted(kinds)]
        found.add((cell.run().name, "done" if cell.run().done else "missing"))
        if cell.run().done:
            assert all(run.done for run in opened), cell.run().name
            used |= {run.folder for run in opened}
        if (measured := cell.run("measures")).done:  # it also needs the judge apart
            apart = classifier.second_judge(cell.settings)
            used |= {measured.folder, runs.open_run(apart, "classifier", cell.results).folder}
    for arm, seed in itertools.product(why.GROUP_OF, (*why.SEEDS, *why.MORE)):  # of the plan
        of_plan = [runs.open_run(grid.cell(arm, seed), kind, grid.results)
                   for kind in ("stage1", "quantizer", "stage2", "evaluation", "measures")]
        assert len({run.done for run in of_plan}) == 1, (arm, seed)  # whole cells only
        used |= {run.folder for run in of_plan if run.done}
    assert found == told
    assert used == set(committed_runs())  # nothing that is committed has become unreachable


# ---------------------------------------------------------------------------------- shipped models


def test_shipped_weights_fit_the_networks_exactly():
    files = sorted((LAPTOP / "models").glob("*.safetensors"))
    runs_with_weights = {pretrained.stem(run): run for run in
                         pretrained.runs_of(pretrained.chosen(ROOT / "results"))}
    assert sorted(file.name.split(".")[0] for file in files) == sorted(runs_with_weights)
    assert len(files) == 5
    for file in files:
        weights = pretrained.in_type(storage.load_tree(file), torch.float32)
        kind, _, variant = file.name.split("-")[:3]
        cell = presets.load("laptop", variant if variant in SHIPPED else "te", 0)
        if kind == "classifier":
            model = classifier.Classifier(cell.classifier.width)
        elif kind == "stage1":
            model = vqgan.VQGAN(cell.stage1)
        else:
            model = transformer.build(cell)
        model.load_state_dict(weights, strict=True)


@pytest.mark.parametrize("variant", SHIPPED)
def test_shipped_models_paint_the_recorded_pixels(variant):
    for name, pixels in painted(variant).items():
        wanted = recorded_pixels()[name]
        assert pixels.shape == wanted.shape == (len(TEXTS), 3, 64, 64)
        assert np.abs(pixels.astype(int) - wanted).max() <= 1, name


def test_shipped_models_describe_the_recorded_pixels():
    found = differences(described(recorded_pixels()), recorded()["described"])
    assert not found, "\n".join(found)


# -------------------------------------------------------------------------------- committed tables


def test_tables_rebuilt_from_the_runs_are_the_committed_ones(tmp_path):
    grid = study.published_grid()
    elsewhere = dataclasses.replace(grid, results=str(tmp_path))
    written = tables.write(elsewhere, tables.build(grid) | {"why": why.table(grid)})
    committed = sorted((LAPTOP / "tables").glob("*.csv"))
    assert sorted(path.name for path in written) == [path.name for path in committed]
    for path in committed:
        found = (elsewhere.folder / "tables" / path.name).read_text().split("\n")
        wanted = path.read_text().split("\n")
        assert len(found) == len(wanted), path.name
        for number, (a, b) in enumerate(zip(found, wanted, strict=True), 1):
            assert a == b, f"{path.name}, line {number}"


# ---------------------------------------------------------------------------------- MNIST, Fashion


@pytest.mark.skipif(bool(without_real_data()), reason=without_real_data() or "it is there")
def test_scenes_of_mnist_are_the_recorded_ones():
    found = differences(real_scenes(), recorded()["real scenes"])
    assert not found, "\n".join(found)


# --------------------------------------------------------------------------------------- recording


def record() -> None:
    """Rewrites the fixtures; see the head of this file."""
    FIXTURES.mkdir(exist_ok=True)
    pixels = {name: x for variant in SHIPPED for name, x in painted(variant).items()}
    np.savez_compressed(FIXTURES / "painted.npz", **pixels)
    found = {name: plain(measured()) for name, measured in MEASURED.items()}
    found["described"] = described(pixels)
    if reason := without_real_data():
        print(f"scenes of MNIST stay as recorded: {reason}")
        found["real scenes"] = recorded()["real scenes"]
    else:
        found["real scenes"] = real_scenes()
    lines = [f"{json.dumps(name)}: {{\n" + ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value)}" for key, value in group.items()) + "\n}"
        for name, group in found.items()]
    (FIXTURES / "numbers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        sys.exit("usage: PYTHONPATH=. python tests/test_guards.py --record (see the file's head)")
    record()
