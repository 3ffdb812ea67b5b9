"""The paper's own experiment: the official generator, and the settings that preset `paper` adds."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import tiny
from test_training import Killed, kill_at, same_tree

from tevq import presets
from tevq.config import Settings, SettingsError
from tevq.data import scenes
from tevq.data.captions import CHOICES, PAD, Tokenizer, official_units, parse
from tevq.data.source import class_names
from tevq.evaluate import evaluate as evaluation
from tevq.evaluate.evaluator import split_of
from tevq.models import classifier, losses, transformer
from tevq.models.official import PATTERNS, Official, sinusoids, visible
from tevq.models.sampling import generate_captions, generate_images
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.train import curve, stage1, stage2

V, K, L, GRID = 11, 7, 6, 4
N = GRID * GRID
ALL = {  # every new setting, at tiny size; each step is an epoch
    "data.words": "numerals", "classifier.architecture": "resnet18",
    "stage1.perceptual": "lpips-vgg", "stage2.architecture": "official",
    "stage2.captions": "fresh", "stage2.window": 1, "stage2.neighbours": 0, "stage2.depth": 4,
    "stage2.optimizer": "adam", "stage2.batch": 40,
}
NEUTRAL = {"data.words": "names", "classifier.architecture": "own", "stage2.architecture": "own",
           "stage2.captions": "fixed"}


def small(**changes) -> Official:
    torch.manual_seed(0)
    return Official(V, K, L, GRID, **{"dim": 32, "depth": 4, "heads": 2, "head_dim": 16, **changes})


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def batch(B: int = 3):
    """The first caption ends early, and is padded."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, V, (B, L), generator=generator)
    text[:, 0] = 1
    text[0, 3:] = PAD
    return text, torch.randint(0, K, (B, GRID, GRID), generator=generator)


# ------------------------------------------------------------------------- what positions see

SEEN = {  # by the code @ of a 5x5 grid: x
    ("full", 16): "xxxxx xxxxx xxxxx x@... .....",
    ("row", 16): "..... ..... ..... x@... .....",
    ("column", 16): ".x... .x... .x... .@... .....",
    ("window", 16): "..... xxxx. xxxx. x@... .....",
    ("window", 14): "..xxx ..xxx ..xx@ ..... .....",
    ("row", 10): "..... ..... @.... ..... .....",
}


@pytest.mark.parametrize("name, position", SEEN)
@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_codes_see_what_is_drawn(name, position, direction):
    """Planted faults: rows for columns; a window that lies behind only; later positions seen."""
    drawing, words = SEEN[name, position].replace(" ", ""), 3
    seen = visible(name, direction, words, 5)
    first = words if direction == "t2i" else 0  # of the codes
    row = seen[first + position]
    assert drawing[position] == "@"
    assert row[first : first + 25].tolist() == [letter != "." for letter in drawing]
    of_words = row[:words] if direction == "t2i" else row[25:]
    assert of_words.tolist() == [direction == "t2i"] * words  # all words before, none after


@pytest.mark.parametrize("name", PATTERNS)
def test_words_see_all_that_comes_before(name):
    """x: seen. Three words, before or behind a 2x2 grid."""
    before, behind = visible(name, "t2i", 3, 2)[:3], visible(name, "i2t", 3, 2)[4:]
    drawn = [["".join(".x"[int(x)] for x in row) for row in part] for part in (before, behind)]
    assert drawn == [["x......", "xx.....", "xxx...."], ["xxxxx..", "xxxxxx.", "xxxxxxx"]]


@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_the_layers_take_turns(direction):
    """Planted faults: the masks of the other direction; every pattern twice in a row."""
    assert PATTERNS == ("full", "row", "column", "window")
    model, (text, codes), masks = small(depth=8), batch(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, __: masks.append(inputs[2]))
    model(text, codes, direction)
    assert len(masks) == 8
    for layer, mask in enumerate(masks):
        seen = visible(PATTERNS[layer % 4], direction, L, GRID)
        if direction == "t2i":  # the caption 0 ends early
            assert torch.equal(mask[0, 0, :, :3], seen[:, :3]) and not mask[0, 0, :, 3:L].any()
            mask = mask[1, 0]
        assert torch.equal(mask, seen)


def test_positions_of_codes_are_sinusoids_of_row_and_column():
    """By hand, 8 channels: frequencies 1 and 1/100; code 5 of a 3x3 grid is in row 1, column 2."""
    found = sinusoids(3, 8)
    wanted = [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01),
              np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]
    torch.testing.assert_close(found[5], torch.tensor(wanted, dtype=torch.float32))
    assert found[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_inputs_are_embeddings_plus_positions():
    """Words have learned positions; every PAD the embedding of its own place."""
    model, (text, codes) = small(), batch()
    ids = torch.where(text == PAD, V + torch.arange(L), text)
    torch.testing.assert_close(model.embed_text(text),
                               model.words.weight[ids] + model.text_position.weight)
    flat = codes.flatten(1)
    wanted = model.codes.weight[flat] + sinusoids(GRID, 32)
    torch.testing.assert_close(model.embed_image(flat), wanted)
    torch.testing.assert_close(model.embed_image(flat, 3, 5), wanted[:, 3:5])


# -------------------------------------------------------------------------------- the network


def count(V: int, K: int, L: int, dim=256, depth=8, heads=8, head_dim=64) -> int:
    """Parameters of the official generator, every term by hand."""
    inner, ids = heads * head_dim, V + L  # every position has its own PAD
    attention = dim * 3 * inner + (inner * dim + dim)  # query, key, value without bias; out
    geglu = (dim * 8 * dim + 8 * dim) + (4 * dim * dim + dim)  # values and gates; down
    block = attention + geglu + 2 * (dim + dim) + 2 * dim  # two layer norms, two LayerScales
    embeddings = ids * dim + K * dim + L * dim  # words, codes, positions of words
    return depth * block + embeddings + (dim + dim) + (dim * (ids + K) + ids + K)  # norm, head


def test_the_official_size_has_10_73_million_parameters():
    """Ours has 26,928 fewer: 39 words for 78 tokens, and 41 positions for 50."""
    assert count(78, 256, 50) == 10_728_832
    assert size(Official(78, 256, 50, 16)) == 10_728_832
    ours = transformer.build(presets.load("paper", "te"))
    assert isinstance(ours, Official) and (ours.V, ours.K, ours.L, ours.h) == (39, 256, 41, 16)
    ids = (78 - 39) + (50 - 41)  # each: an embedding, a row of the head, a bias
    fewer = ids * (256 + 256 + 1) + (50 - 41) * 256
    assert size(ours) == count(39, 256, 41) == 10_728_832 - fewer == 10_701_904


def test_biases_and_scales_are_the_official_ones():
    model = small()
    assert {name for name, p in model.blocks[0].named_parameters() if "bias" in name} == {
        "norm1.bias", "norm2.bias", "out.bias", "up.bias", "down.bias"}
    assert model.head.bias is not None and model.norm.bias is not None
    assert (model.blocks[3].scale1 == 0.1).all() and (model.blocks[3].scale2 == 0.1).all()
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]


def test_a_block_is_attention_and_geglu_by_hand():
    torch.manual_seed(0)
    model, x = small(), torch.randn(2, 5, 32)
    block, mask = model.blocks[1], torch.ones(5, 5, dtype=torch.bool).tril()
    found = block(x, 1, mask, model.cache(0))
    q, k, v = (part.view(2, 5, 2, 16).transpose(1, 2)
               for part in block.qkv(block.norm1(x)).chunk(3, -1))
    weights = (q @ k.mT / 4).masked_fill(~mask, float("-inf")).softmax(-1)  # 4 = sqrt(16)
    y = x + 0.1 * block.out((weights @ v).transpose(1, 2).flatten(2))
    hidden = block.up(block.norm2(y))
    y = y + 0.1 * block.down(hidden[..., :128] * F.gelu(hidden[..., 128:]))
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)


def sequence_logits(model, text, codes, direction):
    """Sums of logits by the position they predict; 0 where nothing is predicted."""
    with torch.no_grad():
        words, image = model(text, codes, direction)
    words = F.pad(words.sum(-1), (L - words.shape[1], 0))
    image = F.pad(image.sum(-1), (N - image.shape[1], 0))
    return torch.cat((words, image) if direction == "t2i" else (image, words), 1)


@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_no_logit_sees_its_target_or_later(direction):
    model, (text, codes) = small(), batch()
    before = sequence_logits(model, text, codes, direction)
    for i in range(L + N):
        j = i if direction == "t2i" else i - N  # index in the text
        other_text, other = text.clone(), codes.flatten(1).clone()
        if 0 <= j < L:
            other_text[1:, j] = 3 + (other_text[1:, j] - 2) % (V - 3)  # never PAD
        else:
            at = i - L if direction == "t2i" else i
            other[:, at] = (other[:, at] + 1) % K
        change = (sequence_logits(model, other_text, other.view_as(codes), direction)
                  - before).abs()
        assert change[:, : i + 1].max() < 1e-5
        assert i >= L + N - 1 or change[:, i + 1 :].max() > 1e-5


@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_padding_is_hidden_and_is_no_target(direction):
    """Planted faults: codes that look at PAD; PAD counted in the loss; one id for all PAD."""
    model, (text, codes) = small(), batch()
    before, loss = model(text, codes, direction), model.loss(text, codes, direction)
    loss.total.backward()
    # position L - 1 predicts the first code, so its own PAD counts there
    used = [id for id in range(V, V + L) if model.words.weight.grad[id].abs().max() > 0]
    assert used == ([V + L - 1] if direction == "t2i" else [])
    with torch.no_grad():
        model.words.weight[V : V + L - 1] *= -3  # layer norm would undo a shift
        after = model(text, codes, direction)
    words = 2 if direction == "t2i" else 3  # logits of words 1 and 2, of BOS in i2t, too
    torch.testing.assert_close(after[0][0, :words], before[0][0, :words])
    torch.testing.assert_close(after[0][1:], before[0][1:])
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(model.loss(text, codes, direction).text, loss.text)
    with torch.no_grad():  # the last PAD has an id of its own
        model.words.weight[V + L - 1] *= -3
        moved = (model(text, codes, direction)[1] - before[1]).abs().max()
    assert (moved > 1e-3) == (direction == "t2i")


@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_loss_equals_a_loop_over_targets(direction):
    """In i2t the last code predicts BOS, as officially; the first code is never predicted."""
    model, (text, codes) = small(), batch()
    found = model.loss(text, codes, direction)
    words, image = model(text, codes, direction)
    assert words.shape[2] == V + L and image.shape[2] == K
    skip, flat = {"t2i": (1, 0), "i2t": (0, 1)}[direction], codes.flatten(1)
    terms = [[-words[b, j - skip[0]].double().log_softmax(-1)[text[b, j]]
              for b in range(3) for j in range(skip[0], L) if text[b, j] != PAD],
             [-image[b, i - skip[1]].double().log_softmax(-1)[flat[b, i]]
              for b in range(3) for i in range(skip[1], N)]]
    slow_text, slow_image = (torch.stack(part).mean() for part in terms)
    given, target = (slow_text, slow_image) if direction == "t2i" else (slow_image, slow_text)
    torch.testing.assert_close(found.text, slow_text.detach().float())
    torch.testing.assert_close(found.total, ((given + 7 * target) / 8).float())
    assert found.total.requires_grad and not found.image.requires_grad


@pytest.mark.parametrize("direction", transformer.DIRECTIONS)
def test_cached_logits_equal_uncached(direction):
    """Planted faults: masks of the other direction; rows of a mask counted from 0 at each step."""
    model, (text, codes) = small(depth=5), batch()
    flat, t2i = codes.flatten(1), direction == "t2i"
    with torch.no_grad():
        words, image = model(text, codes, direction)
        cache = model.cache(3, text if t2i else None)
        if t2i:
            x = model.trunk(model.embed_text(text), cache)
            steps = [model.image_logits(x[:, -1])]
            for i in range(N - 1):
                x = model.trunk(model.embed_image(flat, i, i + 1), cache)
                steps.append(model.image_logits(x[:, -1]))
        else:
            x = torch.cat((model.embed_image(flat), model.embed_text(text, 0, 1)), 1)
            steps = [model.text_logits(model.trunk(x, cache)[:, -1])]
            for i in range(1, L - 1):
                x = model.trunk(model.embed_text(text, i, i + 1), cache)
                steps.append(model.text_logits(x[:, -1]))
    expected = image if t2i else words[:, 1:, :V]
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-4, atol=1e-5)


def test_sampling_follows_the_uncached_model_in_any_batch():
    model, (text, codes) = small(), batch(6)
    seeds = torch.arange(6)
    painted = generate_images(model, text, seeds, greedy=True)
    with torch.no_grad():
        assert torch.equal(model(text, painted, "t2i")[1].argmax(-1), painted.flatten(1))
    written = generate_captions(model, codes, seeds)
    assert written.max() < V and (written[:, 1:] != 1).all()  # no PAD of a position, no BOS
    for i in range(6):
        one = slice(i, i + 1)
        assert torch.equal(generate_captions(model, codes[one], seeds[one]), written[one])
        assert torch.equal(generate_images(model, text[one], seeds[one], greedy=True), painted[one])


def test_bfloat16_stays_near_float32():
    model, (text, codes) = small(), batch()
    exact = model.loss(text, codes, "t2i")
    model.dtype = torch.bfloat16
    rounded = model.loss(text, codes, "t2i")
    assert rounded.total.dtype == torch.float32 and rounded.total != exact.total
    torch.testing.assert_close(rounded.total, exact.total, rtol=2e-2, atol=0)
    rounded.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ----------------------------------------------------------------------------------- settings


@pytest.mark.promise("records")
@pytest.mark.parametrize("preset", ["smoke", "laptop", "gpu"])
def test_the_other_presets_know_nothing_of_the_new_settings(preset):
    tree = presets.load(preset).as_dict()
    assert not any(leaf in tree[group] for group, leaf in (n.split(".") for n in NEUTRAL))


def test_preset_paper_uses_all_of_them():
    s = presets.load("paper", "te")
    assert (s.data.words, s.classifier.architecture) == ("numerals", "resnet18")
    assert (s.stage2.architecture, s.stage2.captions) == ("official", "fresh")


@pytest.mark.promise("records")
@pytest.mark.parametrize("change, kinds", [
    ({"data.words": "numerals"}, {"stage2", "evaluation"}),
    ({"stage2.captions": "fresh"}, {"stage2", "evaluation"}),
    ({"stage2.architecture": "official"}, {"stage2", "evaluation"}),
    ({"classifier.architecture": "resnet18"},
     {"classifier", "stage1", "quantizer", "stage2", "evaluation"})],
    ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_switch_renames_the_runs_that_it_can_change(change, kinds):
    base = Settings().override({"stage2.window": 1, "stage2.neighbours": 0,
                                "stage1.perceptual": "lpips-vgg"})
    every = {"classifier", "stage1", "quantizer", "stage2", "evaluation"}
    names = [{kind: open_run(s, kind, "x").folder.name for kind in every}
             for s in (base, base.override(change))]
    assert {kind for kind in every if names[0][kind] != names[1][kind]} == kinds


@pytest.mark.promise("input")
@pytest.mark.parametrize("change, words", [
    ({"stage2.architecture": "official"}, "add stage2.window=1, stage2.neighbours=0"),
    ({"classifier.architecture": "resnet18"}, "needs classifier.architecture = own"),
    ({"stage2.architecture": "theirs"}, "not one of own, official")], ids=str)
def test_what_does_not_fit_is_refused_in_one_line(change, words):
    with pytest.raises(SettingsError, match=words) as error:
        presets.load("smoke", "te", 0, change)
    assert "\n" not in str(error.value)


def test_without_the_switches_the_networks_are_our_own():
    s = tiny()
    assert type(transformer.build(s)) is transformer.Transformer
    assert type(classifier.build(s)) is classifier.Classifier


def test_numerals_are_other_words_for_the_same_tokens():
    s = tiny()
    part, names = split_of(s, "test")[0], class_names("digits")
    numerals = class_names("digits", "numerals")
    assert numerals == tuple("0123456789") == class_names("mnist", "numerals")
    assert class_names("fashion", "numerals") == class_names("fashion")
    assert class_names("digits", "names") == names and names[9] == "nine"
    for i, row in enumerate(part.caption):
        text, spelled = Tokenizer(numerals).decode(row), Tokenizer(names).decode(row)
        assert parse(text, numerals).clauses == set(part.clauses(i))
        assert parse(text, numerals).ok and not parse(text, names).ok
        assert official_units(text, numerals) == official_units(spelled, names)


def test_fresh_captions_tell_the_same_scene_anew():
    """Planted faults: an order that mixes up items; a caption that depends on its neighbours."""
    part, names = split_of(tiny(), "train")[0], class_names("digits")
    first = scenes.fresh_captions(part, 10, 0, 0)
    assert first.shape == part.caption.shape and first.dtype == np.uint8 and not CHOICES % 4
    for i, row in enumerate(first):
        parsed = parse(Tokenizer(names).decode(row), names)
        assert parsed.ok and parsed.clauses == set(part.clauses(i))
    units = [[unit[0] for unit in official_units(Tokenizer(names).decode(row), names)]
             for row in first]
    shown = [[place for place in row if place != 255] for row in part.place.tolist()]
    assert 5 < sum(a != b for a, b in zip(units, shown, strict=True)) < 55  # the order, too
    assert np.array_equal(scenes.fresh_captions(part.take(slice(0, 7)), 10, 0, 0), first[:7])
    for seed, epoch in ((0, 1), (1, 0)):
        other = scenes.fresh_captions(part, 10, seed, epoch)
        assert (other != first).any(1).mean() > 0.8 and (other != part.caption).any(1).mean() > 0.8


def test_the_official_classifier_is_a_resnet18_with_two_heads():
    model = classifier.build(presets.load("paper", "te"))
    labels, colours = model.eval()(torch.zeros(2, 3, 28, 28))
    assert labels.shape == (2, 10) and colours.shape == (2, 4)
    whole = 11_689_512  # torchvision's, with its head of 1,000 classes
    assert size(model) == whole - 513 * 1000 + 513 * (10 + 4)
    assert model.predict(torch.zeros(2, 3, 28, 28))[0].shape == (2,)


# ----------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder: all switches on, both stages and the evaluation."""
    results, s = tmp_path_factory.mktemp("results"), tiny(**ALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "lpips_vgg", lambda device: lambda x, y: (x - y).abs().mean())
        patch.setattr(stage1, "KMEANS_VECTORS", 400)
        stage1.train(s, results)
        stage2.train(s, results)
        evaluation.evaluate(s, results)
    return results


def test_all_switches_train_and_evaluate(trained):
    s = tiny(**ALL)
    run = open_run(s, "stage2", trained)
    assert run.done and run.summary()["parameters"] == size(transformer.build(s))
    assert run.record["settings"]["stage2"]["architecture"] == "official"
    points = [row for row in run.metrics() if "probe" in row]
    assert {(row["probe"], row["task"]) for row in points} == {
        (split, task) for split in curve.SPLITS for task in ("t2i", "i2t")}
    start = transformer.build(s).state_dict()
    assert run.weights().keys() == start.keys()
    rows = open_run(s, "evaluation", trained).summary()["rows"]
    assert {row["task"] for row in rows} == {"t2i", "i2t"}
    model = transformer.load(s, trained)
    assert isinstance(model, Official) and not model.training
    assert isinstance(classifier.load(s, trained), classifier.ResNet18)
    assert json.loads((run.folder / "config.json").read_text())["settings"]["data"]["words"]


def test_every_epoch_has_its_captions(trained, tmp_path):
    """Planted faults: captions drawn once; by the step, so that a resumed run has others."""
    for captions in ("fresh", "fixed"):
        s = tiny(**ALL | {"stage2.captions": captions})
        trainer = stage2.Trainer(open_run(s, "stage2", tmp_path), s, devices.detect("float32"),
                                 trained)
        for step in (0, 1, 4, 2):
            trainer.step(step)
            wanted = trainer.scenes.caption if captions == "fixed" else (
                scenes.fresh_captions(trainer.scenes, 10, s.seed, step))
            assert np.array_equal(trainer.captions.numpy(), wanted)


@pytest.mark.promise("resume")
def test_resumed_with_all_switches_is_bitwise_the_uninterrupted_run(trained, tmp_path, monkeypatch):
    s = tiny(**ALL)
    monkeypatch.setattr(losses, "lpips_vgg", lambda device: lambda x, y: (x - y).abs().mean())
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 400)
    stage1.train(s, tmp_path)
    with monkeypatch.context() as killer:
        kill_at(killer, 3)
        with pytest.raises(Killed):
            stage2.train(s, tmp_path)
    again, whole = stage2.train(s, tmp_path), open_run(s, "stage2", trained)
    assert same_tree(again.weights(), whole.weights())
    assert again.metrics() == whole.metrics()
