"""Both stages, end to end and tiny: learning, exact resume, order of work, what is recorded."""

import gzip
import itertools
import json
import math
import time

import pytest
import torch
from small import FEATURES, tiny

from tevq.config import SettingsError
from tevq.data.scenes import CASES
from tevq.data.source import SourceImages, load_source
from tevq.evaluate import evaluate, evaluator
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate.equivariance import Probe
from tevq.models import classifier as classifier_network
from tevq.models import losses, transformer, vqgan
from tevq.runs import devices
from tevq.runs import run as runs
from tevq.runs.run import open_run
from tevq.runs.storage import load_tree
from tevq.train import classifier, curve, loop, stage1, stage2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with te, seed 0, through both stages and evaluation."""
    results = tmp_path_factory.mktemp("results")
    stage1.KMEANS_VECTORS = FEATURES
    s = tiny()
    stage1.train(s, results)
    stage2.train(s, results)
    evaluation.PROBE_ITEMS = 6
    evaluation.evaluate_quantizer(s, results)
    evaluation.evaluate(s, results)
    return results


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_at(monkeypatch, saved_step: int):
    """Every step is saved; the process dies right after the save of `saved_step`."""
    original = loop.Loop.__init__

    def always_save(self, *words, **more):
        original(self, *words, **more | {"save_seconds": -1})

    save = runs.Run.save

    def save_and_die(self, step, state):
        save(self, step, state)
        if step == saved_step and self.folder.parent.name != "classifier":
            raise Killed

    monkeypatch.setattr(loop.Loop, "__init__", always_save)
    monkeypatch.setattr(runs.Run, "save", save_and_die)


def same_tree(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.promise("resume")
@pytest.mark.parametrize("saved_step", [0, 1, 4])  # 1, 4: around the discriminator's start
def test_stage1_resumed_is_bitwise_the_uninterrupted_run(trained, tmp_path, monkeypatch,
                                                         saved_step):
    """Planted faults: the critic's optimizer or the code counts are not saved."""
    s = tiny()
    kill_at(monkeypatch, saved_step)
    with pytest.raises(Killed):
        stage1.train(s, tmp_path)
    monkeypatch.undo()
    again, whole = stage1.train(s, tmp_path), open_run(s, "stage1", trained)
    assert same_tree(again.weights(), whole.weights())
    assert again.metrics() == whole.metrics()


@pytest.mark.promise("resume")
@pytest.mark.parametrize("saved_step", [2, 5])
def test_stage2_resumed_is_bitwise_the_uninterrupted_run(trained, tmp_path, monkeypatch,
                                                         saved_step):
    s = tiny()
    stage1.train(s, tmp_path)
    kill_at(monkeypatch, saved_step)
    with pytest.raises(Killed):
        stage2.train(s, tmp_path)
    monkeypatch.undo()
    again, whole = stage2.train(s, tmp_path), open_run(s, "stage2", trained)
    assert same_tree(again.weights(), whole.weights())
    assert again.metrics() == whole.metrics()


def test_other_source_images_under_the_same_name_are_refused(trained, tmp_path, monkeypatch):
    """Planted faults: no hash in the records; Stage 2 trained on codes of other images."""
    wanted = load_source("digits", "train").sha256()
    for kind in ("classifier", "stage1", "stage2"):
        assert open_run(tiny(), kind, trained).record["source_sha256"] == wanted
    stage1.train(tiny(), tmp_path)
    monkeypatch.setattr(SourceImages, "sha256", lambda self: "0" * 64)
    refusal = "stage1/.* was made from other source images"
    with pytest.raises(SettingsError, match=refusal):
        stage2.train(tiny(), tmp_path)
    next((open_run(tiny(), "stage1", tmp_path).folder / "state").glob("weights.*")).unlink()
    with pytest.raises(SettingsError, match=refusal):  # trained again, as there are no weights
        stage1.train(tiny(), tmp_path)


@pytest.mark.parametrize("value", ["", "4"])
def test_left_over_variables_of_a_launcher_are_ignored(trained, tmp_path, monkeypatch, value):
    """Planted fault: int(os.environ["WORLD_SIZE"]), which an empty value breaks."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, value)
    s = tiny()
    for train in (stage1.train, stage2.train):
        run = train(s, tmp_path)
        whole = open_run(s, run.folder.parent.name, trained)
        assert same_tree(run.weights(), whole.weights()) and run.metrics() == whole.metrics()


def test_the_classifier_is_there_whatever_the_perceptual_loss(tmp_path, monkeypatch):
    """Planted fault: trained only if the loss needs it; the evaluation would find none."""
    monkeypatch.setattr(losses, "lpips_vgg", lambda device: lambda x, y: (x - y).abs().mean())
    s = tiny(**{"stage1.perceptual": "lpips-vgg", "stage1.steps": 1})
    with pytest.raises(SettingsError, match="no trained classifier .* run notebook 03"):
        classifier_network.load(s, tmp_path)
    run = stage1.train(s, tmp_path)
    assert json.loads((run.folder / "config.json").read_text())["built_on"] == {}
    assert classifier_network.load(s, tmp_path).training is False


def test_seconds_include_the_warm_up(tmp_path, monkeypatch):
    monkeypatch.setattr(stage1.Trainer, "init_codebook", lambda self: time.sleep(0.5))
    s = tiny(**{"stage1.steps": 1})
    assert stage1.train(s, tmp_path).summary()["seconds"] > 0.5


def test_a_second_call_loads_and_changes_nothing(trained):
    s = tiny()
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*.json*")}
    stage1.train(s, trained)
    stage2.train(s, trained)
    evaluation.evaluate(s, trained)
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*.json*")}


def test_a_run_names_the_weights_that_it_started_from(trained):
    """Planted fault: a generator trained on rounded weights looks like one on the trained ones."""
    run = {kind: open_run(tiny(), kind, trained)
           for kind in ("classifier", "stage1", "stage2", "quantizer", "evaluation")}
    own = {kind: run[kind].checksum for kind in ("classifier", "stage1", "stage2")}
    assert all(len(name) == 32 for name in own.values()) and len(set(own.values())) == 3
    assert all(run[kind].summary()["weights"] == own[kind] for kind in own)
    before = {"stage1": ["classifier"], "stage2": ["classifier", "stage1"],
              "quantizer": ["classifier", "stage1"], "evaluation": list(own)}
    for kind, names in before.items():
        config = json.loads((run[kind].folder / "config.json").read_text())
        assert config["built_on"] == {name: own[name] for name in names}


def test_metrics_record_the_health_of_the_codebook_and_the_discriminator(trained):
    last = open_run(tiny(), "stage1", trained).metrics()[-1]
    assert {"l1", "perceptual", "codes_used", "perplexity", "norm_used", "max_cosine",
            "orthogonality", "adaptive_weight", "real_logits", "fake_logits"} <= set(last)
    assert last["step"] == 6 and 1 <= last["codes_used"] <= 12


def begun(settings, results) -> stage1.Trainer:
    """A training of Stage 1 before its first step."""
    classifier.train(settings, results)
    trainer = stage1.Trainer(open_run(settings, "stage1", results), settings,
                             devices.detect("float32"), results)
    trainer.init_codebook()
    return trainer


def test_stage1_learns_a_fixed_batch(tmp_path):
    s = tiny(**{"stage1.disc_start": 1000, "stage1.channels": 8})
    trainer = begun(s, tmp_path)
    x = trainer.images(0)
    first = float(trainer.learner.generator_step(x)[0]["l1"].detach())
    for _ in range(25):
        numbers, *_ = trainer.learner.generator_step(x)
    assert float(numbers["l1"].detach()) < 0.8 * first


def test_the_penalty_moves_the_codebook_towards_orthogonality(tmp_path):
    """Same seed, with and without equation 5: only te's mean squared cosine falls."""
    found = {}
    for variant in ("sc", "te"):
        s = tiny(variant, **{"stage1.disc_start": 1000})
        trainer = begun(s, tmp_path)
        penalty = [float(stage1.orthogonality(trainer.model.quantizer.table().detach()))]
        for step in range(25):
            trainer.learner.generator_step(trainer.images(step % 3))
        penalty.append(float(stage1.orthogonality(trainer.model.quantizer.table().detach())))
        found[variant] = penalty
    assert found["sc"][0] == found["te"][0]
    assert found["te"][1] < 0.9 * found["te"][0]
    assert found["te"][1] < found["sc"][1]


def test_the_reconstruction_of_codes_is_the_models_own(trained):
    s = tiny()
    model = vqgan.load(s, trained)
    scenes, items = evaluator.split_of(s, "val", 6)
    codes = evaluator.encode_scenes(model, scenes, items, devices.detect("float32"))
    assert codes.dtype == torch.uint8 and codes.shape == (6, 8, 8)
    x = evaluator.render(scenes, items)
    torch.testing.assert_close(model.codes(x), codes.long())


@pytest.mark.promise("damage")
def test_the_training_set_is_encoded_once_and_damage_is_repaired(trained, monkeypatch):
    s, calls = tiny(), []
    found = evaluator.Evaluator.load(s, trained)
    original = evaluator.encode_scenes

    def counting(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(evaluator, "encode_scenes", counting)
    codes = evaluator.encoded_split(s, "train", found, trained)
    assert not calls and len(codes) == 60
    path, = (open_run(s, "stage1", trained).folder / "state").glob("codes-train-*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert torch.equal(evaluator.encoded_split(s, "train", found, trained), codes)
    assert calls
    load_tree(next((open_run(s, "stage1", trained).folder / "state").glob("codes-train-*")))


def test_of_a_third_of_the_scenes_only_a_third_is_encoded(trained, monkeypatch):
    """Planted fault: a part kept under the name of the whole."""
    whole, third = tiny(), tiny(**{"stage2.fraction": 1 / 3})
    found = evaluator.Evaluator.load(whole, trained)
    codes = evaluator.encoded_split(whole, "train", found, trained)
    kept, = (open_run(whole, "stage1", trained).folder / "state").glob("codes-train-*")
    content = kept.read_bytes()
    kept.unlink()
    part = evaluator.encoded_split(third, "train", found, trained)
    assert len(part) == 20 and torch.equal(part, codes[:20])
    only, = kept.parent.glob("codes-train-*")
    assert only.name.split(".")[0].endswith("-20")
    kept.write_bytes(content)
    only.unlink()
    monkeypatch.setattr(evaluator, "encode_scenes", None)  # not called: the whole is cut
    assert torch.equal(evaluator.encoded_split(third, "train", found, trained), codes[:20])
    assert len(evaluator.encoded_split(whole, "train", found, trained)) == 60


def test_learning_curve_has_both_splits_and_all_cases(trained):
    rows = open_run(tiny(), "stage2", trained).metrics()
    for split in ("val", "val_seen"):
        for task in ("t2i", "i2t"):
            points = [row for row in rows if (row.get("probe"), row.get("task")) == (split, task)]
            assert [point["sequences"] for point in points] == [12, 24]
            for point in points:
                assert all(0 <= point[case] <= 1 for case in CASES)
                assert ("nats" in point) == (task == "t2i")


def test_schedules():
    steps = [stage2.schedule("linear", i, 100, 10) for i in range(100)]
    assert steps[0] == 0.1 and steps[9] == 1 and steps[40] == 1 and steps[99] < 0.05
    restarts = [stage2.schedule("restarts", i, 600, 0) for i in range(600)]
    assert sum(a < 0.01 and b == 1 for a, b in zip(restarts, restarts[1:], strict=False)) == 5


@pytest.mark.parametrize("share", [0.5, 2 / 3, 0.75, 1.0, 0.0])
def test_turns_keep_their_share_at_every_step(share):
    s = tiny().override({"stage2.t2i_share": share}).stage2
    turns = [stage2.direction_of(step, s) for step in range(240)]
    for steps in range(1, 241):
        assert 0 <= turns[:steps].count("t2i") - share * steps < 1 + 1e-9
    logged = {turns[step - 1] for step in range(stage2.LOG_EVERY, 241, stage2.LOG_EVERY)}
    assert logged == set(turns)  # the log shows every direction
    one = tiny().override({"stage2.directions": "i2t", "stage2.t2i_share": share}).stage2
    assert stage2.direction_of(0, one) == "i2t"


def test_evaluation_counts_every_scene_of_both_splits(trained):
    run = open_run(tiny(), "evaluation", trained)
    rows = run.summary()["rows"]
    for split in ("test", "test_seen"):
        for task, decoding in itertools.product(("t2i", "i2t"), ("sampled", "greedy")):
            metric = "scene" if task == "t2i" else "exact"
            assert sum(r["n"] for r in rows if (r["split"], r["task"], r["decoding"], r["metric"])
                       == (split, task, decoding, metric)) == 10
    digits = {r["case"]: r["n"] for r in rows
              if (r["split"], r["task"], r["decoding"], r["metric"])
              == ("test", "t2i", "sampled", "digit")}
    assert digits == {"quad1": 2, "quad2": 4, "quad3": 6, "quad4": 8, "center": 2}
    assert all(r["value"] == r["correct"] / r["n"] for r in rows)
    lines = gzip.decompress((run.folder / "scenes.csv.gz").read_bytes()).splitlines()
    assert len(lines) == 1 + 20
    kept = evaluate.load_examples(tiny(), "test", trained)
    assert len(kept["t2i_greedy"]) == len(kept["scene"]) == 10
    judged = evaluator.Evaluator.load(tiny(), trained)
    for split, decoding in itertools.product(evaluation.SPLITS, evaluation.DECODINGS):
        codes = torch.tensor(evaluate.load_examples(tiny(), split, trained)[f"t2i_{decoding}"])
        painted = evaluate.load_painted(tiny(), split, trained, range(10), decoding)
        assert (painted.images - judged.decode(codes)).abs().mean() < 0.05  # 256 colours


def test_quantizer_evaluation_has_ceilings_and_all_measures(trained):
    summary = open_run(tiny(), "quantizer", trained).summary()
    assert {r["task"] for r in summary["rows"]} == {"ceiling-real", "ceiling-reconstruction"}
    assert {r["measure"] for r in summary["equivariance"]} == {
        "official", "grid", "subgrid", "context"}
    assert [r["shift"] for r in summary["sweep"][::2]] == list(range(17))
    for line in summary["reconstruction"]:
        assert 0 < line["l1"] < 1 and line["perceptual_name"] == "classifier"
        assert 1 <= line["codes_used"] <= 12


def test_a_sample_does_not_depend_on_its_batch(trained):
    s = tiny()
    found = evaluator.Evaluator.load(s, trained)
    model = transformer.load(s, trained)
    scenes, _ = evaluator.split_of(s, "test")
    whole = found.text_to_image(model, scenes.caption, s.evaluation, 0)
    single = tiny(**{"evaluation.batch": 1}).evaluation
    assert torch.equal(found.text_to_image(model, scenes.caption, single, 0), whole)
    assert not torch.equal(found.text_to_image(model, scenes.caption, s.evaluation, 1), whole)


@pytest.mark.promise("input")
def test_stage2_without_a_quantizer_names_the_notebook(tmp_path):
    with pytest.raises(SettingsError, match="notebook 03"):
        stage2.train(tiny("sc"), tmp_path)


def test_classifier_learns_and_probe_is_fixed(tmp_path):
    s = tiny(**{"classifier.width": 8, "classifier.steps": 120, "classifier.batch": 64})
    summary = classifier.train(s, tmp_path).summary()
    assert summary["colour_accuracy"] > 0.9 and summary["label_accuracy"] > 0.3  # chance is 0.1
    items = load_source("digits", "test")
    assert torch.equal(Probe(items, 5, 0).at(2, 2), Probe(items, 5, 0).at(2, 2))


def test_until_ends_stage_2_early_and_the_rate_falls_from_there(tmp_path, monkeypatch):
    """Planted faults: sampled images or held-out scenes watched; the rate not falling at once;
    the new end forgotten by a resumed training."""
    settings = tiny(**{"stage2.until": 0.5, "stage2.steps": 60, "stage2.probe_every": 5})
    stage1.train(settings, tmp_path)
    points_of, asked, rates = curve.Curve.points, [], []

    def scripted(self, model):
        """Only at step 15 the watched point is good; all other points always are."""
        asked.append(0)
        points = points_of(self, model)
        for point in points:
            watched = (point["probe"], point["task"]) == ("val_seen", curve.GREEDY)
            good = not watched or len(asked) >= 3
            point |= {f"quad{n}": 0.6 * good for n in (1, 2, 3, 4)}
        return points

    def set_rate(optimizer, rate):
        rates.append(rate)

    monkeypatch.setattr(curve.Curve, "points", scripted)
    monkeypatch.setattr(stage2, "set_rate", set_rate)
    with monkeypatch.context() as inner:
        kill_at(inner, 20)
        with pytest.raises(Killed):
            stage2.train(settings, tmp_path)
    run = stage2.train(settings, tmp_path)
    end = 2 + math.ceil((15 - 2) / 0.6)  # of 2 warm-up steps; constant until 60 %, then down
    assert run.summary()["steps"] == end == run.metrics()[-1]["step"]
    adam = rates[1::2]  # muon and adam take turns
    peak = settings.stage2.lr
    assert len(adam) == end and adam[15] == peak > adam[16] > adam[-1] > 0


def test_until_reached_in_the_warm_up_leaves_steps_to_come():
    """Planted fault: fewer steps than the warm-up, even less than none."""
    assert [curve.falling_end(step, 500) for step in (100, 500, 800)] == [502, 502, 1000]


@pytest.mark.parametrize("wrong", [{"stage2.schedule": "constant"}, {"stage2.probe_scenes": 0},
                                   {"stage2.directions": "i2t"}])
def test_until_without_what_it_watches_is_refused(wrong):
    with pytest.raises(SettingsError, match="stage2.until watches painted images"):
        tiny(**{"stage2.until": 0.9} | wrong)
