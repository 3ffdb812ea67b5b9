"""Measures beside accuracy, each against a second route; the second judge."""

import io
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import linalg
from small import FEATURES, tiny

from tevq.config import SettingsError
from tevq.data.scenes import render
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate import measures
from tevq.evaluate.evaluator import Evaluator, split_of
from tevq.evaluate.metrics import read_places
from tevq.models import classifier as networks
from tevq.models import sampling, transformer
from tevq.runs.run import open_run
from tevq.train import classifier, stage1, stage2

SMALL = {"data.val": 25, "data.test": 25, "measures.val": 2, "measures.test": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with one cell, evaluated and measured; and its settings."""
    results, s = tmp_path_factory.mktemp("results"), tiny(**SMALL)
    stage1.KMEANS_VECTORS = FEATURES
    stage1.train(s, results)
    stage2.train(s, results)
    with pytest.raises(SettingsError, match="no trained classifier"):  # the judge apart
        measures.measure(s, results)
    classifier.train(networks.second_judge(s), results)
    evaluation.evaluate(s, results)
    measures.measure(s, results)
    return results, s


@pytest.fixture(scope="module")
def summary(trained):
    return open_run(trained[1], "measures", trained[0]).summary()


def chosen(s, split, count):
    """The first scenes of Quad1-4 by a loop, with their positions."""
    scenes = split_of(s, split)[0]
    at = [i for case in range(4)
          for i in [i for i, c in enumerate(scenes.case) if c == case][:count]]
    return scenes.take(np.array(at)), at


def counts(rows, **where):
    """{case: (correct, n)} of rows."""
    return {r["case"]: (r["correct"], r["n"]) for r in rows
            if all(r.get(key) == value for key, value in where.items())}


def test_official_and_greedy_points_are_the_scenes_of_the_evaluation(trained, summary):
    """Planted faults: seeds by position in the selection; other scenes; another judge first."""
    results, s = trained
    records = pd.read_csv(io.BytesIO(
        (open_run(s, "evaluation", results).folder / "scenes.csv.gz").read_bytes()),
        compression="gzip")
    _, at = chosen(s, "test", 4)
    lines = records[(records.split == "test") & records.scene.isin(at)].groupby("case").sum(
        numeric_only=True)
    for decoding, point in (("sampled", (1.0, 38)), ("greedy", (0.0, 1))):
        found = counts(summary["rows"], judge="first", split="test", task="t2i", metric="digit",
                       temperature=point[0], top_k=point[1])
        assert len(found) == 4
        for case, (correct, n) in found.items():
            assert correct == lines.loc[case, f"t2i_{decoding}_digit_correct"]
            assert n == lines.loc[case, f"t2i_{decoding}_digit_n"]
    clean = counts(summary["rows"], task="i2t", replaced=0.0, metric="digit")
    assert {case: c for case, (c, _) in clean.items()} == dict(
        lines.i2t_greedy_digit_correct.items())


def test_every_point_of_the_grid_is_there_once_for_both_splits_and_judges(summary):
    points = {(t, k) for t in (0.25, 0.5, 0.75, 1.0) for k in (6, 38, 0)} | {(0.0, 1)}
    rows = [(r["judge"], r["split"], r["temperature"], r["top_k"]) for r in summary["rows"]
            if r["task"] == "t2i" and r["case"] == "quad1" and r["metric"] == "digit"]
    assert sorted(rows) == sorted((j, split, *p) for j in ("first", "second")
                                  for split in ("val", "test") for p in points)
    assert {(r["temperature"], r["top_k"]) for r in summary["diversity"]
            if r["task"] == "t2i"} == points
    sizes = {(r["split"], r["case"]): r["n"] for r in summary["rows"] if r["metric"] == "scene"}
    assert sizes["val", "quad3"] == 2 and sizes["test", "quad3"] == 4


@pytest.mark.parametrize("point", [(0.25, 6), (0.75, 0)])
def test_a_point_is_painted_with_its_own_numbers_and_read_by_both_judges(trained, summary, point):
    """Planted faults: temperature or top-k ignored; one judge's numbers under the other's name."""
    results, s = trained
    evaluator, model = Evaluator.load(s, results), transformer.load(s, results)
    scenes, at = chosen(s, "val", 2)
    codes = sampling.generate_images(model, torch.from_numpy(scenes.caption).long(),
                                     torch.tensor(at), point[0], point[1] or None)
    images = evaluator.decode(codes)
    judges = {"first": evaluator.classifier,
              "second": networks.load(networks.second_judge(s), results)}
    for name, judge in judges.items():
        seen = read_places(images, scenes.place, judge.predict)[0]
        found = counts(summary["rows"], judge=name, split="val", task="t2i", metric="digit",
                       temperature=point[0], top_k=point[1])
        for case in range(4):
            mine = scenes.case == case
            named = scenes.place[mine] != 255
            right = (seen[mine] == scenes.label[mine]) & named
            assert found[f"quad{case + 1}"] == (right.sum(), named.sum())


def test_nats_are_the_sum_over_codes_one_by_one(trained, summary):
    """Planted faults: a mean over codes; the other direction; another split."""
    results, s = trained
    evaluator, model = Evaluator.load(s, results), transformer.load(s, results)
    for row in summary["nats"]:
        scenes, at = chosen(s, row["split"], 4)
        items = split_of(s, row["split"])[1]
        total = 0.0
        for i in range(len(at)):
            x = render(scenes, items, slice(i, i + 1))
            codes, text = evaluator.vqgan.codes(x), torch.from_numpy(scenes.caption[i : i + 1])
            with torch.no_grad():
                p = model(text.long(), codes, "t2i")[1][0].softmax(-1)
            for place, code in enumerate(codes.flatten()):
                total -= float(p[place, code].log())
        assert row["n"] == len(at)
        assert row["nats"] == pytest.approx(total / len(at), rel=1e-4)
    assert [row["split"] for row in summary["nats"]] == ["val", "val_seen", "test", "test_seen"]
    logged = [r for r in open_run(s, "stage2", results).metrics() if r.get("task") == "t2i"]
    assert len(logged) == 4 and all(0 < r["nats"] for r in logged)  # 2 points, 2 splits
    assert all("nats" not in r for r in open_run(s, "stage2", results).metrics()
               if r.get("task") != "t2i")
    scenes, items = split_of(s, "val", s.stage2.probe_scenes)
    codes = evaluator.vqgan.codes(render(scenes, items))
    with torch.no_grad():
        p = model(torch.from_numpy(scenes.caption).long(), codes, "t2i")[1].log_softmax(-1)
    total = -p.gather(2, codes.flatten(1)[:, :, None]).sum()
    last = [r["nats"] for r in logged if r["probe"] == "val"][-1]
    assert last == pytest.approx(float(total) / len(scenes), rel=1e-4)


def test_round_trip_and_ceilings(trained, summary):
    results, s = trained
    evaluator = Evaluator.load(s, results)
    scenes, at = chosen(s, "test", 4)
    x = render(scenes, split_of(s, "test")[1])
    first = evaluator.vqgan.codes(x)
    again = evaluator.vqgan.codes(evaluator.decode(first))
    ink = [(x[i].max(0).values.view(8, 8, 8, 8).amax((1, 3)) > -1 + 1e-3) for i in range(len(at))]
    same, ink = (first == again).numpy(), torch.stack(ink).numpy()
    found = {r["cells"]: r for r in summary["round_trip"] if r["task"] == "ceiling-reconstruction"}
    assert found["all"]["kept"] == pytest.approx(same.mean())
    assert found["foreground"]["kept"] == pytest.approx(same[ink].mean())
    assert found["foreground"]["n"] == ink.sum() < found["all"]["n"] == ink.size
    for name, judge in (("first", s), ("second", networks.second_judge(s))):
        seen = read_places(x, scenes.place, networks.load(judge, results).predict)[0]
        right = (seen == scenes.label) & (scenes.place != 255)
        real = counts(summary["rows"], judge=name, task="ceiling-real", metric="digit")
        assert sum(c for c, _ in real.values()) == right.sum()


def test_frechet_by_a_matrix_square_root():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(50, 6)), random.normal(0.5, 2, size=(40, 6))
    A, B = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A + B - 2 * linalg.sqrtm(A @ B).real)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert measures.frechet(a, b) == pytest.approx(wanted) == pytest.approx(measures.frechet(b, a))
    assert measures.frechet(a, a) == pytest.approx(0, abs=1e-9)
    # shifted copies: the squared shift alone
    assert measures.frechet(a, a + 2) == pytest.approx(6 * 4)


def test_precision_and_recall_by_loops():
    """Planted faults: a point is its own first neighbour; the reach of the wrong set."""
    random = np.random.default_rng(1)
    real, painted = random.normal(size=(30, 3)), random.normal(0.7, 0.4, size=(25, 3))

    def share(points, centres, k=3):
        hits = 0
        for p in points:
            for i, c in enumerate(centres):
                others = sorted(np.linalg.norm(c - d) for j, d in enumerate(centres) if j != i)
                if np.linalg.norm(p - c) <= others[k - 1]:
                    hits += 1
                    break
        return hits / len(points)

    a, b = torch.from_numpy(real), torch.from_numpy(painted)
    assert measures.inside(a, b) == pytest.approx(share(real, painted))
    assert measures.inside(b, a) == pytest.approx(share(painted, real))
    assert 0 < measures.inside(a, b) < measures.inside(b, a)
    prototypes = a[:1].repeat(20, 1)  # one item painted again and again covers itself only
    assert measures.inside(a, prototypes) == pytest.approx(1 / 30)


def test_replaced_codes():
    codes = torch.randint(5, 9, (40, 8, 8), generator=torch.Generator().manual_seed(0))
    got = measures.replaced(codes, 0.05, 3)
    assert ((got != codes).flatten(1).sum(1) == 3).all()  # of 64
    assert set(got.unique().tolist()) <= {5, 6, 7, 8}
    assert torch.equal(got, measures.replaced(codes, 0.05, 3))
    assert not torch.equal(got, measures.replaced(codes, 0.05, 4))
    assert torch.equal(measures.replaced(codes, 0.0, 3), codes)
    everywhere = measures.replaced(codes, 1.0, 0)
    assert (everywhere != codes).all()
    pairs = torch.bincount((codes * 4 + everywhere - 25).flatten())  # code 5: 6, 7, 8
    assert pairs[pairs > 0].min() > 0.6 * pairs.max()  # every other code equally likely
    one = torch.zeros(2, 4, 4, dtype=torch.long)
    assert torch.equal(measures.replaced(one, 0.5, 0), one)


def test_the_second_judge_is_another_network_trained_apart(trained):
    """Planted faults: the first judge twice; its seed; Stage 1 named after the second judge."""
    results, s = trained
    apart = networks.second_judge(s)
    first, second = (open_run(x, "classifier", results) for x in (s, apart))
    assert first.folder != second.folder
    assert type(networks.load(apart, results)) is networks.Residual
    for kind in ("stage1", "evaluation", "measures"):
        built = open_run(s, kind, results).record["built_on"]
        assert built["classifier"] == first.checksum
        assert (second.checksum in built.values()) == (kind == "measures")
    batches = []
    for seed in (0, 1):
        random = classifier.devices.generator(seed, 0)
        batches.append(torch.randint(100, (16,), generator=random))
    assert apart.classifier.seed == 1 and not torch.equal(*batches)


def test_residual_network_by_hand():
    """Planted faults: no shortcut; a ReLU before the sum; no stride."""
    torch.manual_seed(0)
    model = networks.Residual(4).eval()
    x = torch.randn(3, 3, 28, 28)
    y = model.body[:3](x)
    assert y.shape == (3, 4, 14, 14)
    for block, shape in zip(model.body[3:], [(4, 14, 14), (8, 7, 7), (16, 4, 4)], strict=True):
        inner = torch.relu(block.first[1](block.first[0](y)))
        inner = block.second[1](block.second[0](inner))
        short = y if y.shape[1:] == shape else torch.nn.functional.conv2d(
            y, block.shortcut.weight, stride=2)
        y = (short + inner).clamp(min=0)
        assert y.shape[1:] == shape
    assert torch.allclose(model.pooled(x), y.mean((2, 3)), atol=1e-6)
    assert torch.allclose(model(x)[0], model.label_head(y.mean((2, 3))), atol=1e-6)
    for other in (networks.Classifier(4), networks.ResNet18()):
        assert other.eval()(x)[1].shape == (3, 4)
        assert torch.allclose(other(x)[1], other.colour_head(other.pooled(x)), atol=1e-5)


def test_a_narrow_judge_trains_on_processors_without_avx512():
    """Planted fault: a strided 1x1 convolution; oneDNN then writes where it must not, and dies."""
    script = """if True:
        import torch
        from tevq.models.classifier import Residual
        for _ in range(20):
            model = Residual(4).to(memory_format=torch.channels_last)
            x = torch.randn(16, 3, 28, 28).to(memory_format=torch.channels_last)
            sum(y.sum() for y in model(x)).backward()
        print("trained")"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                           timeout=300, env=os.environ | {
        "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3"})
    assert found.stdout == "trained\n", (found.returncode, found.stderr[-300:])


def test_one_direction_measures_one_direction(monkeypatch):
    only = tiny(**SMALL | {"stage2.directions": "i2t"})
    found = measures.Measures(only, {"first": None}, None)
    monkeypatch.setattr(found, "ceilings", lambda: None)
    monkeypatch.setattr(found, "captions", lambda: found.found["rows"].append("captions"))
    assert found.all() == {"rows": ["captions"], "diversity": [], "nats": [],
                           "round_trip": []}
