"""What reaches which step: items, scenes, seeds, options, weights; followed through a whole study.

The items of this study are marked by their brightness: 250 for training, 200 for validation, 100
for test. So every picture that a network sees tells where it is from.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import tiny

from tevq.config import SettingsError
from tevq.data import scenes, source
from tevq.evaluate import equivariance, evaluator
from tevq.evaluate import evaluate as evaluation
from tevq.models import classifier as networks
from tevq.models import losses, transformer, vqgan
from tevq.models.sampling import generate_captions, generate_images
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.train import classifier, loop, stage1, stage2

SEED = 3
CHANGES = {"data.source": "marked", "evaluation.top_k": 5, "evaluation.temperature": 0.8}


def marked(part: str):
    images, labels = source.load_source("digits", part)
    light = np.full(len(labels), 250)
    if part == "test":
        light[: len(labels) // 2], light[len(labels) // 2 :] = 200, 100
    return ((images.numpy() > 127) * light[:, None, None]).astype(np.uint8), labels.numpy()


def lights(x: torch.Tensor) -> set[int]:
    """Brightness of every image (B, 3, H, W)."""
    return set(((x.detach().amax((1, 2, 3)) + 1) * 127.5).round().int().tolist())


def watch_methods(spy, note, patch) -> None:
    """Notes what is asked of sampling, and every learning rate."""
    for method in ("text_to_image", "image_to_text"):
        spy(evaluator.Evaluator, method, lambda self, model, x, options, seed, greedy=False,
            method=method: note(method, (len(x), options, seed, greedy)))
    for module in (stage1, stage2):
        spy(module.Trainer, "train", lambda self: note("trainer", self))
        rate = module.set_rate
        patch.setattr(module, "set_rate", lambda optimizer, share, rate=rate: (
            note(type(optimizer).__name__, share), rate(optimizer, share)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study through all steps, and what was seen on the way."""
    seen, phase = {}, ["none"]
    patch = pytest.MonkeyPatch()

    def spy(owner, name: str, look):
        original = getattr(owner, name)

        def noted(self, *words, **more):
            look(self, *words, **more)
            return original(self, *words, **more)

        patch.setattr(owner, name, noted)

    def note(what, value):
        seen.setdefault((phase[0], what), []).append(value)

    def step(name: str, work):
        phase[0] = name
        return work(s, results)

    patch.setenv("TEVQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setitem(source.SOURCES, "marked", source.Source(source.class_names("digits"), marked))
    patch.setattr(stage1, "KMEANS_VECTORS", 400)
    spy(vqgan.VQGAN, "encode", lambda self, x: note("encoded", lights(x)))
    spy(networks.Classifier, "forward", lambda self, x: note(f"training {self.training}",
                                                             lights(x)))
    spy(loop.Batches, "__init__", lambda self, *words: note("batches", words))
    spy(equivariance.Probe, "__init__", lambda self, items, *words: (
        note("probe", words[:2]), phase.__setitem__(0, "probe")))
    watch_methods(spy, note, patch)
    s, results = tiny("te", SEED, **CHANGES), tmp_path_factory.mktemp("results")
    step("classifier", classifier.train)
    step("stage1", stage1.train)
    step("stage2", stage2.train)
    step("quantizer", evaluation.evaluate_quantizer)
    step("evaluation", evaluation.evaluate)
    phase[0] = "none"
    yield SimpleNamespace(s=s, results=results, seen=seen,
                          judge=evaluator.Evaluator.load(s, results))
    patch.undo()


def split(study, name: str):
    """Scenes of a split and their images, built here."""
    items = source.load_source("marked", "train" if name == "train" else "test")
    made = scenes.build(study.s.data, name, items.labels.numpy())
    return made, scenes.render(made, items)


def test_every_step_sees_its_own_items(study):
    """Planted faults: a classifier trained on test items; val and test exchanged; curves on test
    scenes; a quantizer that sees what it is tested on."""
    def found(*key):
        return set().union(*study.seen[key])

    assert found("classifier", "training True") == {250}
    assert found("classifier", "training False") == {200, 100}
    assert found("stage1", "encoded") == {250}
    assert study.seen["stage2", "encoded"][0] == {250} and found("stage2", "encoded") == {250, 200}
    assert found("quantizer", "encoded") == {100} and found("evaluation", "encoded") == {100}
    assert found("probe", "encoded") <= {200, 100}


def test_seeds_reach_the_order_of_the_data_and_sampling(study):
    """Planted faults: 0 in place of the seed; the seed of the scenes; the same for all scenes."""
    for stage, batch in (("stage1", 4), ("stage2", 4)):
        assert study.seen[stage, "batches"] == [(60, batch, SEED)]
    assert study.seen["quantizer", "probe"] == [(2, 0)]  # 10 // 5 items, the seed of the scenes
    first, second = (loop.Batches(60, 4, seed) for seed in (SEED, 0))
    order = torch.randperm(60, generator=devices.generator(SEED, 0))
    assert torch.equal(first[0], order[:4]) and not torch.equal(second[0], order[:4])
    for phase in ("stage2", "evaluation"):
        for method in ("text_to_image", "image_to_text"):
            assert {call[2] for call in study.seen[phase, method]} == {SEED}


def test_curves_are_painted_at_random_and_written_greedily(study):
    for method, greedy in (("text_to_image", False), ("image_to_text", True)):
        calls = study.seen["stage2", method]
        assert len(calls) == 2 * 2  # two points of two splits
        assert {(call[0], call[3]) for call in calls} == {(10, greedy)}
    trainer, = study.seen["stage2", "trainer"]
    assert list(trainer.curve.probes) == ["val", "val_seen"]
    for name, (part, _) in trainer.curve.probes.items():
        assert part.sha256() == split(study, name)[0].sha256()


def test_learning_rates_arrive_at_every_step(study):
    """The cosine of Stage 1 for both of its optimizers; warm-up and last 40 % of Stage 2."""
    cosine = [0.001 * (0.55 + 0.45 * math.cos(math.pi * step / 6)) for step in range(6)]
    assert study.seen["stage1", "Adam"] == pytest.approx(np.repeat(cosine, 2))
    shares = np.array([0.5, 1, 1, 1, 1, 0.625])  # two steps of warm-up, then four
    assert study.seen["stage2", "Muon"] == pytest.approx(0.01 * shares)
    assert study.seen["stage2", "Adam"] == pytest.approx(0.003 * shares)


@pytest.mark.parametrize("stage, load", [("stage1", vqgan.load), ("stage2", transformer.load)])
def test_what_is_kept_are_the_weights_after_the_last_step(study, stage, load):
    """Planted fault: an average of earlier weights."""
    trainer, = study.seen[stage, "trainer"]
    kept, judge = load(study.s, study.results), networks.load(study.s, study.results)
    for (name, a), b in zip(kept.state_dict().items(), trainer.model.state_dict().values(),
                            strict=True):
        assert torch.equal(a, b), name
    assert not kept.training and not any(p.requires_grad for p in kept.parameters())
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())


@pytest.mark.parametrize("name", ["test", "test_seen"])
def test_evaluated_is_what_its_labels_say(study, name):
    """Every number again, from the scenes on. Planted faults: greedy under the name of sampled,
    test_seen under that of test, options or seeds that do not arrive."""
    made, images = split(study, name)
    kept = evaluation.load_examples(study.s, name, study.results)
    order = np.array(kept["scene"])  # ten scenes, two of each case: all are kept
    truth = study.judge.vqgan.codes(images)
    assert kept["truth"] == truth[order].tolist()
    model, rows = transformer.load(study.s, study.results), open_run(
        study.s, "evaluation", study.results).summary()["rows"]
    seeds = SEED * 2**32 + torch.arange(10)
    text = torch.from_numpy(made.caption).long()
    for decoding, options in (("sampled", {"temperature": 0.8, "top_k": 5}),
                              ("greedy", {"greedy": True})):
        painted = torch.cat([generate_images(model, text[i : i + 1], seeds[i : i + 1], **options)
                             for i in range(10)])
        assert kept[f"t2i_{decoding}"] == painted[order].tolist()
        written = [study.judge.tokenizer.decode(row) for row in
                   generate_captions(model, truth, seeds, **options).tolist()]
        assert kept[f"i2t_{decoding}"] == [written[i] for i in order]
        scores = study.judge.score_images(study.judge.decode(painted), made)
        for task, found in (("t2i", scores), ("i2t", study.judge.score_texts(written, made))):
            for metric, score in found.items():
                told = [r for r in rows if (r["split"], r["task"], r["decoding"], r["metric"])
                        == (name, task, decoding, metric)]
                assert sum(r["correct"] for r in told) == score.correct.sum(), metric
                assert sum(r["n"] for r in told) == score.n.sum()
    assert kept["t2i_sampled"] != kept["t2i_greedy"] and kept["i2t_sampled"] != kept["i2t_greedy"]


@pytest.mark.parametrize("name", ["test", "test_seen"])
def test_reconstructions_are_measured_in_zero_to_one(study, name):
    """L1 in [0, 1], the perceptual distance and the use of codes, on all scenes of a split."""
    _, images = split(study, name)
    line, = (line for line in open_run(study.s, "quantizer", study.results).summary()[
        "reconstruction"] if line["split"] == name)
    y, codes = study.judge.vqgan.reconstruct(images)
    assert line["l1"] == pytest.approx(float((images - y).abs().mean() / 2), rel=1e-4)
    distance = losses.feature_distance(study.judge.classifier)
    with torch.no_grad():
        assert line["perceptual"] == pytest.approx(float(distance(images, y)), rel=1e-3)
    assert line["codes_used"] == len(codes.unique()) and line["n"] == 10
    ceiling = [r for r in open_run(study.s, "quantizer", study.results).summary()["rows"]
               if (r["split"], r["metric"]) == (name, "digit")]
    for task, x in (("ceiling-real", images), ("ceiling-reconstruction", y)):
        right = study.judge.score_images(x, split(study, name)[0])["digit"].correct.sum()
        assert sum(r["correct"] for r in ceiling if r["task"] == task) == right


def test_how_many_are_handled_at_a_time_changes_nothing(study, monkeypatch):
    made, images = split(study, "test")
    items = source.load_source("marked", "test")
    found = []
    for chunk in (128, 3):
        monkeypatch.setattr(evaluator, "CHUNK", chunk)
        codes = evaluator.encode_scenes(study.judge.vqgan, made, items,
                                        devices.detect("float32")).long()
        scores = study.judge.score_codes(codes, made)
        found.append((codes.tolist(), {k: v.correct.tolist() for k, v in scores.items()}))
        torch.testing.assert_close(study.judge.decode(codes),
                                   study.judge.vqgan.reconstruct(images)[0], rtol=1e-4, atol=1e-4)
    assert found[0] == found[1]


def test_how_many_are_reconstructed_at_a_time_changes_nothing(study, monkeypatch):
    """Planted faults: use of codes in the last chunk only; a mean of means of unequal chunks."""
    found = []
    for chunk in (128, 3):  # of ten scenes
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        rows, line = evaluation._reconstruction(study.s, study.judge, "test")
        found.append((rows, {k: v for k, v in line.items() if isinstance(v, (int, float))}))
    assert found[0][0] == found[1][0] and found[1][1] == pytest.approx(found[0][1], rel=1e-4)


@pytest.mark.parametrize("work", [evaluation.evaluate, evaluation.evaluate_quantizer])
def test_networks_are_evaluated_in_float32_whatever_trains_them(work, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "detect", lambda *names: asked.append(names) or devices.Device(
        torch.device("cpu"), torch.float32))
    with pytest.raises(SettingsError, match="no trained quantizer"):
        work(tiny(precision="bfloat16"), tmp_path)
    assert asked == [("float32",)]
    monkeypatch.undo()
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert devices.detect(name).dtype == dtype


@pytest.mark.parametrize("work", [classifier.train, stage1.train, stage2.train])
def test_trainings_ask_for_the_precision_of_their_settings(work, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def detect(name):
        raise Asked(name)

    monkeypatch.setattr(devices, "detect", detect)
    monkeypatch.setattr(stage1, "train_classifier", lambda *_: None)
    with pytest.raises(Asked, match="bfloat16"):
        work(tiny(precision="bfloat16"), tmp_path)
