"""Controls and rivals of orthogonal codes: every formula by a second route, every switch alone."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.cluster import hierarchy
from small import TINY, tiny
from test_training import Killed, kill_at, same_tree

from tevq import presets
from tevq.config import SettingsError, Stage1Config
from tevq.evaluate import evaluate as evaluation
from tevq.models import rivals
from tevq.models.quantizer import Quantizer, kmeans, orthogonality
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.run import open_run, origin
from tevq.train import regularizers, stage1, stage2

SMALL = Stage1Config(channels=4, codes=12, code_dim=12, stride=8, multipliers=(1, 2))
ARMS = [name for name, variant in presets.VARIANTS.items() if variant.group in presets.GROUPS]


def arm(name: str, **more):
    """The tiny settings of an arm; what it sets itself is its own."""
    own = {*presets.VARIANTS[name].settings, *presets.OF_VARIANTS}
    sizes = TINY | {"stage1.code_dim": 40} | ({"stage1.codes": 64} if name == "merged" else {})
    return presets.load("smoke", name, 0, {k: v for k, v in sizes.items() if k not in own} | more)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", 400)
    monkeypatch.setattr(evaluation, "PROBE_ITEMS", 6)


def vectors_of(z: torch.Tensor) -> np.ndarray:
    return z.permute(0, 2, 3, 1).flatten(0, 2).detach().double().numpy()


def test_cosine_codes_have_the_largest_cosine():
    model, z = rivals.Cosine(7, 5), torch.randn(2, 5, 3, 4)
    v, e = vectors_of(z), model.codebook.detach().double().numpy()
    cosine = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in e] for x in v]
    found = model(z)
    assert found.codes.flatten().tolist() == np.argmax(cosine, 1).tolist()
    assert torch.equal(found.codes, model.nearest(z * 3))
    lengths = np.linalg.norm(vectors_of(found.features), axis=1)
    np.testing.assert_allclose(lengths, math.sqrt(5), rtol=1e-5)


def test_cosine_codes_start_at_the_means_of_directions():
    """Planted fault: k-means of the features themselves, in which long ones count for more."""
    model, vectors = rivals.Cosine(4, 5), torch.randn(200, 5) * torch.rand(200, 1) * 9
    model.init_codes(vectors, 0)
    units = vectors / vectors.norm(dim=1, keepdim=True) * math.sqrt(5)
    torch.testing.assert_close(model.codebook.detach(), kmeans(units, 4, 0))


def test_orthonormal_codes_are_fixed_and_choose_the_largest_product():
    model, z = rivals.Orthonormal(6, 9), torch.randn(2, 9, 3, 4)
    vectors = torch.from_numpy(vectors_of(z)).float()
    model.init_codes(vectors, 0)
    length = float(vectors.norm(dim=1).mean())
    gram = model.codebook @ model.codebook.T
    torch.testing.assert_close(gram, length**2 * torch.eye(6), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.nearest(z).flatten(), (vectors @ model.codebook.T).argmax(1))
    assert not list(model.parameters()) and float(orthogonality(model.table())) < 1e-6


def test_simvq_moves_all_codes_by_one_map():
    model, z = rivals.SimVQ(6, 5), torch.randn(2, 5, 3, 4)
    start = model.table().clone()
    model(z).codebook_loss.backward()
    assert model.codebook.grad is None and model.map.grad.abs().sum() > 0
    with torch.no_grad():
        model.map -= 0.1 * model.map.grad
    expected = torch.stack([sum(c[i] * model.map[i] for i in range(5)) for c in model.codebook])
    torch.testing.assert_close(model.table(), expected)
    assert (model.table() - start).abs().sum(1).min() > 0  # those that nothing chose, too


@pytest.mark.parametrize("levels", [(8, 5), (8, 6, 5), (3, 2)])
def test_fsq_rounds_every_channel(levels):
    K = math.prod(levels)
    model = rivals.FSQ(K, 12, levels)
    low = model.bound(torch.randn(50, len(levels)) * 3)
    for values, code in zip(low.tolist(), model.index(low).tolist(), strict=True):
        digits = [round(x * (L // 2)) + L // 2 for x, L in zip(values, levels, strict=True)]
        assert all(0 <= digit < L for digit, L in zip(digits, levels, strict=True))
        assert code == sum(digit * math.prod(levels[:i]) for i, digit in enumerate(digits))
        expected = [(digit - L // 2) / (L // 2) for digit, L in zip(digits, levels, strict=True)]
        assert model.points[code].tolist() == pytest.approx(expected)
    far = torch.tensor(list(itertools.product((-50.0, 50.0), repeat=len(levels))))
    assert {0, K - 1} <= set(model.index(model.bound(far)).tolist())  # both ends are reached
    assert model.bound(torch.zeros(1, len(levels))).abs().max() < 1e-6


def test_fsq_bounds_by_the_published_formula():
    """Mentzer et al. 2023, appendix A.1, whose eps is 1e-3; here divided by floor(L / 2). Planted
    fault: another eps."""
    x = torch.randn(50, 2) * 2
    found = rivals.FSQ(40, 12, (8, 5)).bound(x).double().numpy()
    for i, L in enumerate((8, 5)):
        half, offset = (L - 1) * 1.001 / 2, 0.5 * (L % 2 == 0)
        wanted = np.tanh(x[:, i].double().numpy() + np.arctanh(offset / half)) * half - offset
        np.testing.assert_allclose(found[:, i], wanted / (L // 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: rivals.LFQ(8, 5), lambda: rivals.FSQ(15, 5, (5, 3))],
                         ids=["lfq", "fsq"])
def test_gradients_pass_straight_through_the_rounding(make):
    """Planted fault: only the maps learn, and the encoder hears nothing of the reconstruction."""
    model, z = make(), torch.randn(2, 5, 3, 4, requires_grad=True)
    g = torch.randn(2, 5, 3, 4)
    (found,) = torch.autograd.grad(model(z).features, z, g)
    smooth = model.out(model.low(z)).view(2, 3, 4, 5).permute(0, 3, 1, 2)  # nothing is rounded
    (wanted,) = torch.autograd.grad(smooth, z, g)
    torch.testing.assert_close(found, wanted)


def test_lfq_has_signs_and_its_entropies():
    model, z = rivals.LFQ(8, 5), torch.randn(2, 5, 3, 4)
    low, found = model.low(z), model(z)
    assert found.codes.flatten().tolist() == [
        sum(int(x > 0) << i for i, x in enumerate(row)) for row in low.tolist()]
    corners = np.array([[1 if k >> i & 1 else -1 for i in range(3)] for k in range(8)])
    distance = ((low.detach().double().numpy()[:, None] - corners) ** 2).sum(2)
    q = np.exp(-distance) / np.exp(-distance).sum(1, keepdims=True)
    single, mean = -(q * np.log(q)).sum(1).mean(), q.mean(0)
    expected = 0.1 * (single + (mean * np.log(mean)).sum())
    assert found.codebook_loss.item() == pytest.approx(expected, rel=1e-4)
    assert float(found.commitment_loss) == pytest.approx(
        float((low - low.sign()).square().mean()), rel=1e-5)


def test_projections_start_at_the_principal_directions():
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    x = torch.randn(500, 6) * torch.tensor([9.0, 5, 3, 0.01, 0.01, 0.01]) @ basis + 4
    model = rivals.LFQ(8, 6)
    model.init_codes(x, 0)
    low = model.into(x)
    torch.testing.assert_close(low.std(0), torch.ones(3), rtol=1e-2, atol=1e-2)
    assert (model.out(low) - x).abs().max() < 0.1  # nothing but the small directions is lost


def test_merged_codes_are_groups_of_the_old_ones():
    model, vectors = rivals.Merged(12, 5, 4), torch.randn(300, 5)
    model.old.copy_(torch.randn(12, 5) * 2)
    model.old[0] = 100.0  # chosen by nothing
    model.init_codes(vectors, 0)
    old = [int((x - model.old).square().sum(1).argmin()) for x in vectors]
    new = model.choose(vectors).tolist()
    assert len(set(new)) == 4 and 0 not in old
    names: dict = {}
    for before, after in zip(old, new, strict=True):
        assert names.setdefault(before, after) == after
    for code in range(4):
        torch.testing.assert_close(model.codebook[code],
                                   vectors[[c == code for c in new]].mean(0))


def test_codes_are_joined_by_ward_and_unused_ones_go_to_their_nearest():
    """Planted faults: another linkage; groups of one code under the name of another one."""
    model = rivals.Merged(30, 3, 6)
    model.old.copy_(torch.randn(30, 3).exp())
    model.old[0], model.old[1] = 100.0, -100.0  # chosen by nothing
    model.init_codes(model.old[2:] + 1e-4 * torch.randn(28, 3), 0)
    theirs = hierarchy.fcluster(hierarchy.ward(model.old[2:].double().numpy()), 6, "maxclust")
    pairs = set(zip(model.group[2:].tolist(), theirs.tolist(), strict=True))
    assert len(pairs) == 6 == len({ours for ours, _ in pairs})
    for code in (0, 1):
        nearest = 2 + int((model.old[2:] - model.old[code]).square().sum(1).argmin())
        assert model.group[code] == model.group[nearest]


def test_position_norm_hears_of_no_other_position():
    norm, x = rivals.PositionNorm(8, silu=True), torch.randn(2, 8, 3, 4)
    y = norm(x)
    v = x[1, :, 2, 3].double().numpy()
    u = (v - v.mean()) / math.sqrt(v.var() + 1e-6)
    np.testing.assert_allclose(y[1, :, 2, 3].detach().numpy(), u / (1 + np.exp(-u)), rtol=1e-4,
                               atol=1e-5)
    x[1, :, 0, 0] += 5
    assert torch.equal(norm(x)[1, :, 2, 3], y[1, :, 2, 3])


def test_an_encoder_without_context_sees_near_pixels_only():
    """Planted faults: an attention left in the middle; group norm left at the end."""
    x = torch.rand(1, 3, 128, 128)
    far = x.clone()
    far[..., :8, :8] = 0
    for changes, same in (({}, False), ({"attention": False}, False),
                          ({"attention": False, "normalization": "position"}, True)):
        torch.manual_seed(0)
        model = VQGAN(dataclasses.replace(SMALL, **changes))
        difference = (model.encode(x) - model.encode(far))[..., -1, -1].abs().max()
        assert (float(difference) == 0) == same


def test_aps_follows_every_shift():
    layer, x = rivals.AdaptivePolyphase(4, "circular"), torch.randn(2, 4, 16, 16)
    y, moved = layer(x), layer(x.roll((1, 3), (2, 3)))
    found = [all(torch.allclose(moved[b], y[b].roll((i, j), (1, 2)), atol=1e-5) for b in (0,))
             for i in range(8) for j in range(8)]
    assert sum(found) == 1  # strided convolutions have no counterpart of odd shifts


def test_aps_goes_by_the_euclidean_norm():
    """Planted fault: the sum of absolute values."""
    layer, x = rivals.AdaptivePolyphase(4, "circular"), torch.randn(64, 4, 4, 4)
    for y, dense in zip(layer(x), layer.conv(x), strict=True):
        grids = [dense[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        assert torch.equal(y, max(grids, key=lambda g: float(g.norm())))


def test_the_causal_predictor_sees_the_past_only():
    model = regularizers.Causal(5, 8)
    x = torch.randn(1, 5, 4, 6, requires_grad=True)
    model(x)[0, :, 2, 3].sum().backward()
    seen = x.grad[0].abs().sum(0) > 0
    for i in range(4):
        for j in range(6):
            assert bool(seen[i, j]) <= (i * 6 + j < 2 * 6 + 3)
    assert seen[2, 2] and seen[1, 5]


def extras(**changes):
    s = dataclasses.replace(SMALL, **changes)
    return regularizers.Extras(s), VQGAN(s), torch.rand(2, 3, 64, 64) * 2 - 1


@pytest.mark.parametrize("name", ["causal", "shift_features", "shift_decoding"])
def test_penalties_by_a_second_route(name):
    more, model, x = extras(**{name: 0.5})
    down, right = 3, 5
    more.shift.copy_(torch.tensor([down, right]))
    quantized = model.quantizer(model.encode(x))

    def reconstruction(a, b):
        return (a - b).abs().mean(), {}

    moved = x.roll((8 * down, 8 * right), (2, 3))
    if name == "causal":
        e = quantized.features
        expected = (more.predictor(e) - e).square().mean()
    elif name == "shift_features":
        there = model.encode(moved)
        expected = (there - model.encode(x).roll((down, right), (2, 3))).square().mean()
    else:
        y = model.decoder(quantized.features.roll((down, right), (2, 3)))
        expected = (y - moved).abs().mean()
    found = more.loss(model, x, quantized, reconstruction)
    torch.testing.assert_close(found, 0.5 * expected, rtol=1e-4, atol=1e-6)


def test_the_causal_penalty_moves_what_is_predicted_too():
    """Planted fault: the vectors to predict are constants, so only the predictor learns."""
    more, model, x = extras(causal=0.5)
    quantized = model.quantizer(model.encode(x).detach())
    e = quantized.features.detach().requires_grad_()
    (found,) = torch.autograd.grad(more.loss(model, x, quantized._replace(features=e), None), e)
    (wanted,) = torch.autograd.grad(0.5 * (more.predictor(e) - e).square().mean(), e)
    torch.testing.assert_close(found, wanted)


def test_gradients_on_used_and_unused_codes_add_up_to_those_on_all():
    gradients = {}
    codebook = torch.randn(12, 12)
    for kind in ("all", "used", "unused"):
        more, *_ = extras(penalty_on=kind, orthogonality=10.0)
        if kind != "all":
            more.age[:5] = regularizers.WINDOW
        e = codebook.clone().requires_grad_()
        orthogonality(more.penalised(e)).backward()
        gradients[kind] = e.grad
    assert not gradients["used"][:5].any() and not gradients["unused"][5:].any()
    torch.testing.assert_close(gradients["used"] + gradients["unused"], gradients["all"])


def test_the_penalty_of_an_update_is_that_of_its_arm():
    """Planted fault: the penalty on all codes, whatever the arm says. While every code is in use,
    `unused` is no penalty at all, and `used` is that on all."""
    x, gradients = torch.rand(2, 3, 16, 16) * 2 - 1, {}
    for name, changes in {"none": {}, "all": {"orthogonality": 9.0},
                          "used": {"orthogonality": 9.0, "penalty_on": "used"},
                          "unused": {"orthogonality": 9.0, "penalty_on": "unused"}}.items():
        torch.manual_seed(0)
        learner = stage1.Learner(dataclasses.replace(SMALL, **changes), devices.detect("float32"),
                                 lambda x, y: (x - y).square().mean())
        learner.generator_step(x)
        gradients[name] = learner.model.quantizer.codebook.grad
    assert torch.equal(gradients["unused"], gradients["none"])
    assert torch.equal(gradients["used"], gradients["all"])
    assert not torch.equal(gradients["used"], gradients["none"])


def test_dead_codes_are_put_on_outputs_of_the_batch_until_the_last_fifth():
    more, model, x = extras(revive_every=10, orthogonality=10.0, steps=100)
    more.age[2:6] = 10
    for step in (5, 80, 90, 0):
        before = model.quantizer.codebook.detach().clone()
        more.before(model, x, 0, step)
        assert torch.equal(before, model.quantizer.codebook)
    more.before(model, x, 0, 70)
    changed = (before != model.quantizer.codebook).any(1)
    assert changed.tolist() == [2 <= k < 6 for k in range(12)] and not more.age.any()
    outputs = model.encode(x).permute(0, 2, 3, 1).flatten(0, 2)
    nearest = torch.cdist(model.quantizer.codebook[2:6], outputs).amin(1)
    assert nearest.max() < 1e-3


def test_dead_codes_are_drawn_by_squared_distance(monkeypatch):
    """Planted fault: the sum of absolute differences."""
    more, model, x = extras(revive_every=10, orthogonality=10.0, steps=100)
    more.age[2:6] = 10
    outputs = model.encode(x).detach().permute(0, 2, 3, 1).flatten(0, 2)
    wanted = torch.cdist(outputs, model.quantizer.codebook.detach()).amin(1).square()
    drawn, seen = torch.Tensor.multinomial, []
    monkeypatch.setattr(torch.Tensor, "multinomial", lambda self, *words, **options: (
        seen.append(self), drawn(self, *words, **options))[1])
    more.before(model, x, 0, 70)
    torch.testing.assert_close(seen[0], wanted, rtol=1e-3, atol=1e-5)


def test_ages_count_steps_and_lengths_stay():
    more, model, x = extras(penalty_on="used", orthogonality=1.0, frozen_lengths=True)
    more.before(model, x, 0, 0)
    start = model.quantizer.codebook.detach().norm(dim=1)
    with torch.no_grad():
        model.quantizer.codebook.mul_(torch.rand(12, 1) + 1).add_(0.01)
    for codes in ([1, 2], [2, 2], [7, 2]):
        more.after(model, torch.tensor(codes))
    assert more.age[[1, 2, 7, 0]].tolist() == [2, 0, 0, 3]
    torch.testing.assert_close(model.quantizer.codebook.detach().norm(dim=1), start)


def test_neutral_settings_add_nothing():
    more, model, x = extras()
    assert not more.state_dict() and more.loss(model, x, None, None) == 0
    assert more.penalised(model.quantizer.codebook) is model.quantizer.codebook
    assert type(model.quantizer) is Quantizer


def test_shifts_are_a_function_of_seed_and_step():
    more, model, x = extras(shift_features=1.0)
    drawn = []
    for seed, step in ((0, 1), (0, 2), (1, 1), (0, 1)):
        torch.rand(step)  # what others draw does not matter
        more.before(model, x, seed, step)
        drawn.append(more.shift.tolist())
    assert drawn[0] == drawn[3] and len(set(map(tuple, drawn))) == 3
    assert all(0 <= n < 8 for pair in drawn for n in pair)


@pytest.mark.parametrize("name", ["te_revived", "crt", "merged"])
@pytest.mark.promise("resume")
def test_arms_with_state_resume_bitwise(tmp_path, monkeypatch, name):
    """Planted faults: ages, the predictor or the groups are not saved."""
    own = {"te_revived": {"stage1.codes": 40, "stage1.steps": 9}}
    s = arm(name, **own.get(name, {}))
    monkeypatch.setattr(devices, "seed_everything", lambda seed: torch.manual_seed(seed))
    if name == "te_revived":
        s = dataclasses.replace(s, stage1=dataclasses.replace(s.stage1, revive_every=2))
    whole = stage1.train(s, tmp_path / "whole")
    if name == "merged":
        stage1.train(origin(s), tmp_path / "killed")
    kill_at(monkeypatch, 1)
    with pytest.raises(Killed):
        stage1.train(s, tmp_path / "killed")
    monkeypatch.undo()
    again = stage1.train(s, tmp_path / "killed")
    assert same_tree(again.weights(), whole.weights()) and again.metrics() == whole.metrics()


def test_merged_keeps_the_encoder_and_names_its_parent(tmp_path):
    s = arm("merged")
    run = stage1.train(s, tmp_path)
    parent = open_run(origin(s), "stage1", tmp_path)
    assert parent.done and run.record["built_on"]["sc"] == parent.checksum
    assert origin(s) == presets.load("smoke", "sc", 0, {
        k: v for k, v in TINY.items()} | {"stage1.code_dim": 40, "stage1.codes": 64})
    before, after = parent.weights(), run.weights()
    for key, value in before.items():
        if key.startswith("encoder"):
            assert torch.equal(value, after[key])
    assert torch.equal(after["quantizer.old"], before["quantizer.codebook"])
    assert any(not torch.equal(value, after[key]) for key, value in before.items()
               if key.startswith("decoder"))
    assert run.summary()["steps"] == math.ceil(s.stage1.steps / 4)


@pytest.mark.parametrize("name", ["fsq40", "lfq", "merged", "aps"])
def test_arms_go_through_the_whole_study(tmp_path, name):
    s = arm(name)
    stage1.train(s, tmp_path)
    stage2.train(s, tmp_path)
    used = evaluation.evaluate_quantizer(s, tmp_path).summary()["reconstruction"][0]["codes_used"]
    assert 1 <= used <= s.stage1.K and evaluation.evaluate(s, tmp_path).done


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_differs_from_its_reference_in_what_it_says(name):
    changed, own = presets.load("laptop", name), presets.VARIANTS[name].settings
    assert changed.stage2 == presets.load("laptop", "sc").stage2 and name not in presets.PAPER
    reference = presets.load("laptop", "te" if changed.stage1.orthogonality == 10 else "sc")
    different = {f"stage1.{f.name}" for f in dataclasses.fields(Stage1Config)
                 if getattr(changed.stage1, f.name) != getattr(reference.stage1, f.name)}
    same = {"stage1.codes"} if changed.stage1.codes == 256 else set()
    same |= {"stage1.orthogonality"} if changed.stage1.orthogonality == 10 else set()
    assert different == {*own} - same


@pytest.mark.promise("input")
@pytest.mark.parametrize("changes, message", [
    ({"stage1.quantizer": "lfq", "stage1.codes": 20}, "stage1.codes = 20 is no power of 2"),
    ({"stage1.quantizer": "fsq"}, "levels = none .* product is codes"),
    ({"stage1.quantizer": "fsq", "stage1.levels": "3-3"}, "levels = 3-3 with stage1.codes = 12"),
    ({"stage1.levels": "4-3"}, "levels = 4-3 .* quantizer fsq"),
    ({"stage1.quantizer": "fsq", "stage1.levels": "12-1"}, "at least 2"),
    ({"stage1.quantizer": "merged"}, "merged_to = 0 .* 1 ... codes - 1"),
    ({"stage1.quantizer": "merged", "stage1.merged_to": 12}, "merged_to = 12 of stage1.codes = 12"),
    ({"stage1.merged_to": 4}, "merged_to = 4 .* quantizer merged"),
    ({"stage1.penalty_on": "used"}, "penalty_on = used needs a penalty"),
    ({"stage1.quantizer": "simvq", "stage1.revive_every": 5}, "simvq has no codebook for revive"),
    ({"stage1.quantizer": "orthonormal", "stage1.codes": 13}, "codes = 13 cannot all be orthog"),
    ({"stage1.quantizer": "lfq", "stage1.codes": 64, "stage1.code_dim": 5}, "code_dim = 5 is less"),
    ({"stage1.quantizer": "fsq", "stage1.codes": 8, "stage1.levels": "2-2-2",
      "stage1.code_dim": 2}, "code_dim = 2 is less than the channels of stage1.quantizer = fsq"),
    ({"stage1.disc_layers": 4, "data.scene": 32}, "scene = 32 must be .* 3 x 2.disc_layers = 48"),
    ({"stage1.causal": -1}, "causal = -1.0 is out of range"),
    ({"stage1.penalty_on": "some"}, "is not one of all, used, unused"),
])
def test_what_makes_no_sense_is_refused_in_one_line(changes, message):
    with pytest.raises(SettingsError, match=message) as error:
        tiny("sc", **changes)
    assert "\n" not in str(error.value)


def test_fixed_codes_cannot_be_made_orthogonal():
    with pytest.raises(SettingsError, match="fsq has no codes that stage1.orthogonality"):
        tiny("te", **{"stage1.quantizer": "fsq", "stage1.levels": "4-3"})
