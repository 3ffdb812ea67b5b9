"""Every setting does something: each is changed alone, and what it should change is looked at.

`EFFECTS` is complete (a test says so), so a setting that the code forgets to read fails here. That
the effect is the right one is tested by the tests that `test_notices.py` names.
"""

import hashlib

import pytest
import torch
from small import TINY

from tevq import config, presets
from tevq.data import scenes, source
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate import evaluator
from tevq.models import classifier as networks
from tevq.models import losses, quantizer, transformer
from tevq.models.sampling import BOS
from tevq.train import classifier, stage1, stage2

FEW = TINY | {  # scenes of 32 pixels, every loss at work, every branch reached within five steps
    "data.scene": 32, "data.train": 30, "stage1.stride": 4, "stage1.multipliers": (1, 2, 2),
    "stage1.decoder_blocks": 1, "stage1.steps": 4, "stage1.disc_start": 2, "stage1.batch": 2,
    "stage1.warmup_steps": 1, "stage1.decay": True, "stage2.steps": 6, "stage2.probe_every": 6,
    "stage2.clip": 0.05, "stage2.t2i_share": 0.5, "stage2.warmup_steps": 1,
    "evaluation.temperature": 1.5,
}


def few(**changes) -> config.Settings:
    """Preset smoke, variant te; changes may name what belongs to a variant, too."""
    return presets.load("smoke", "te", 0, FEW).override(changes)


def numbers(tree) -> str:
    """Hash of a state dict, a list of metrics, ... ; the clock left out."""
    if isinstance(tree, torch.Tensor):
        tree = f"{tuple(tree.shape)}{tree.flatten().tolist()}"
    if isinstance(tree, dict):
        tree = {key: numbers(value) for key, value in tree.items() if key != "seconds"}
    return hashlib.sha256(repr(tree).encode()).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TEVQ_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 100)
    monkeypatch.setattr(stage1, "LOG_EVERY", 1)
    monkeypatch.setattr(stage2, "LOG_EVERY", 1)
    monkeypatch.setattr(classifier, "accuracy", lambda *_: {})
    monkeypatch.setattr(losses, "lpips_vgg", lambda device: lambda x, y: (x - y).square().mean())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


# ------------------------------------------------------------ what is looked at, by kind of work


def of_the_scenes(s, results):
    """Every split, drawn."""
    return {split: numbers(scenes.render(part, items)) + part.sha256() for split in scenes.SPLITS
            for part, items in [evaluator.split_of(s, split)]}


def of_the_words(s, results):
    stage1.train(s, results)
    return {"names": evaluator.Evaluator.load(s, results).tokenizer.names}


def of_the_classifier(s, results):
    run = classifier.train(s, results)
    return {"weights": numbers(run.weights()), "items": run.summary()["items"]}


def of_the_architecture(s, results):
    return {"layers": list(networks.build(s).state_dict())}


def of_stage1(s, results):
    """Every metric of every step, the trained weights, and the images seen."""
    run = stage1.train(s, results)
    return {"metrics": numbers(run.metrics()), "weights": numbers(run.weights()),
            "images": run.summary()["images"]}


def of_stage2(s, results):
    """Likewise, and the learning curves; the quantizer is always the same."""
    stage1.train(s, results)
    run = stage2.train(s, results)
    rows, summary = run.metrics(), run.summary()
    return {"metrics": numbers([row for row in rows if "probe" not in row]),
            "weights": numbers(run.weights()), "sequences": summary["sequences"],
            "curves": numbers([row for row in rows if "probe" in row]),
            "tasks": sorted({row["task"] for row in rows if "probe" in row}),
            "scenes": summary["training_scenes"]}


def of_sampling(s, results):
    """What an untrained generator paints and writes."""
    torch.manual_seed(0)
    names = source.class_names(s.data.source)
    model = transformer.Transformer(3 + len(names), 12, 8, 8, 16, 1, 2, 8)
    for head in (model.text_head, model.image_head):
        torch.nn.init.normal_(head.weight, std=0.2)
    judge = evaluator.Evaluator(None, None, evaluator.Tokenizer(names), torch.device("cpu"))
    text = torch.randint(3, model.V, (12, 8))
    text[:, 0] = BOS
    return {"images": numbers(judge.text_to_image(model, text, s.evaluation, 1)),
            "captions": judge.image_to_text(model, torch.randint(0, 12, (12, 8, 8)), s.evaluation,
                                            1)}


def of_the_evaluation(s, results):
    stage1.train(s, results)
    stage2.train(s, results)
    rows = evaluation.evaluate(s, results).summary()["rows"]
    return {(split, metric): sum(r["n"] for r in rows if (r["split"], r["metric"]) == (
        split, metric)) for split in evaluation.SPLITS for metric in ("scene", "exact")}


LEARNED = {of_stage1: {"metrics", "weights"}, of_stage2: {"metrics", "weights"},
           of_the_classifier: {"weights"}}
EVERYWHERE = set(scenes.SPLITS)
# name: (another value, where it shows, what changes there; what is not named must stay)
EFFECTS = {
    "precision": ("bfloat16", of_stage1),
    "data.source": ("mirrored", of_the_scenes, EVERYWHERE),
    "data.train": (25, of_the_scenes, {"train"}),
    "data.val": (15, of_the_scenes, {"val", "val_seen"}),
    "data.test": (15, of_the_scenes, {"test", "test_seen"}),
    "data.seed": (1, of_the_scenes, EVERYWHERE), "data.scene": (64, of_the_scenes, EVERYWHERE),
    "data.words": ("numerals", of_the_words, {"names"}),
    "classifier.architecture": ("resnet18", of_the_architecture, {"layers"}),
    "classifier.width": (5, of_the_classifier),
    "classifier.steps": (5, of_the_classifier, {"weights", "items"}),
    "classifier.batch": (17, of_the_classifier, {"weights", "items"}),
    "classifier.lr": (1e-3, of_the_classifier), "classifier.seed": (1, of_the_classifier),
    "stage1.downsample": ("max_blurpool", of_stage1), "stage1.quantizer": ("other", of_stage1),
    "stage1.orthogonality": (1.0, of_stage1), "stage1.stride": (8, of_stage1),
    "stage1.channels": (8, of_stage1), "stage1.multipliers": ((1, 1, 2), of_stage1),
    "stage1.encoder_blocks": (2, of_stage1), "stage1.decoder_blocks": (2, of_stage1),
    "stage1.padding": ("zeros", of_stage1), "stage1.codes": (10, of_stage1),
    "stage1.code_dim": (16, of_stage1), "stage1.codebook_start": ("uniform", of_stage1),
    "stage1.warmup_steps": (2, of_stage1), "stage1.beta": (0.5, of_stage1),
    "stage1.perceptual": ("lpips-vgg", of_stage1), "stage1.perceptual_weight": (0.4, of_stage1),
    "stage1.disc_start": (3, of_stage1), "stage1.disc_weight": (0.4, of_stage1),
    "stage1.disc_channels": (5, of_stage1), "stage1.disc_layers": (2, of_stage1),
    "stage1.steps": (3, of_stage1, {"metrics", "weights", "images"}),
    "stage1.batch": (3, of_stage1, {"metrics", "weights", "images"}),
    "stage1.lr": (2e-3, of_stage1), "stage1.decay": (False, of_stage1),
    "stage1.levels": ((2, 3, 2), of_stage1), "stage1.attention": (False, of_stage1),
    "stage1.normalization": ("position", of_stage1), "stage1.penalty_on": ("unused", of_stage1),
    "stage1.revive_every": (1, of_stage1), "stage1.frozen_lengths": (True, of_stage1),
    "stage1.causal": (0.1, of_stage1), "stage1.shift_features": (0.1, of_stage1),
    "stage1.shift_decoding": (0.1, of_stage1),
    "stage2.architecture": ("official", of_stage2), "stage2.captions": ("fresh", of_stage2),
    "stage2.dim": (24, of_stage2), "stage2.depth": (2, of_stage2), "stage2.heads": (1, of_stage2),
    "stage2.head_dim": (4, of_stage2), "stage2.window": (2, of_stage2),
    "stage2.neighbours": (2, of_stage2),
    "stage2.directions": ("i2t", of_stage2, {"metrics", "weights", "tasks"}),
    "stage2.t2i_share": (0.75, of_stage2), "stage2.target_weight": (3.0, of_stage2),
    "stage2.fraction": (0.5, of_stage2, {"metrics", "weights", "scenes"}),
    "stage2.steps": (5, of_stage2, {"metrics", "weights", "sequences"}),
    "stage2.batch": (5, of_stage2, {"metrics", "weights", "sequences"}),
    "stage2.optimizer": ("adam", of_stage2), "stage2.muon_lr": (0.02, of_stage2),
    "stage2.lr": (1e-3, of_stage2), "stage2.beta2": (0.9, of_stage2),
    "stage2.warmup_steps": (3, of_stage2), "stage2.schedule": ("constant", of_stage2, {"weights"}),
    "stage2.clip": (0.02, of_stage2), "stage2.probe_every": (3, of_stage2, {"curves"}),
    "stage2.probe_scenes": (5, of_stage2, {"curves"}),
    "stage2.until": (1.0, of_stage2, {"tasks"}),  # greedy points; what they end: test_training
    "evaluation.scenes": (5, of_the_evaluation, {
        (split, metric) for split in evaluation.SPLITS for metric in ("scene", "exact")}),
    "evaluation.temperature": (1.0, of_sampling, {"images", "captions"}),
    "evaluation.top_k": (2, of_sampling, {"images", "captions"}),
    "evaluation.batch": (5, of_sampling, set()),  # how many at a time changes nothing
}
ALSO = {"stage2.architecture": {"stage2.window": 1, "stage2.neighbours": 0},
        "stage1.levels": {"stage1.quantizer": "fsq", "stage1.orthogonality": 0.0,
                          "stage1.levels": (3, 2, 2), "stage1.code_dim": 3},
        "classifier.architecture": {"stage1.perceptual": "lpips-vgg"}}
# looked at where other trainings are at hand
ELSEWHERE = {"stage1.merged_to", "measures.val", "measures.test", "measures.replaced"}


def test_every_setting_is_looked_at():
    assert set(EFFECTS) | ELSEWHERE == set(config.names()) and not ELSEWHERE & EFFECTS.keys()


class Halves(quantizer.Quantizer):
    """Another quantizer: codes that start halfway."""

    def init_codes(self, vectors, seed):
        super().init_codes(vectors / 2, seed)


@pytest.fixture
def others(monkeypatch):
    """Another quantizer and another source to be chosen."""
    mirrored = source.Source(source.class_names("digits"), lambda part: (
        source.load_source("digits", part).images.numpy()[:, ::-1].copy(),
        source.load_source("digits", part).labels.numpy()))
    monkeypatch.setitem(quantizer.QUANTIZERS, "other", Halves)
    monkeypatch.setitem(source.SOURCES, "mirrored", mirrored)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_that_is_changed_changes_what_it_should(name, results, others):
    """Planted fault: any one setting that is declared and not read."""
    value, look, *rest = EFFECTS[name]
    base = few(**ALSO.get(name, {}))
    before, after = look(base, results), look(base.override({name: value}), results)
    changed = {part for part in before if before[part] != after[part]}
    wanted = rest[0] if rest else LEARNED[look]
    assert changed - ({"curves"} - wanted) == wanted  # another network may draw the same curve


@pytest.mark.parametrize("look", dict.fromkeys(row[1] for row in EFFECTS.values()))
def test_without_a_change_everything_stays(look, results, tmp_path):
    """Done again elsewhere; else the test above could not fail."""
    assert look(few(), tmp_path) == look(few(), results)
