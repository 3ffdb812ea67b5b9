"""Sampling: independence of the batch, determinism, limits, distribution."""

import pytest
import torch
from scipy.stats import chisquare

from tevq.config import SettingsError
from tevq.models.sampling import choose, generate_captions, generate_images, uniform
from tevq.models.transformer import Linear, Transformer

V, K, L, GRID = 11, 7, 8, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Transformer(V, K, L, GRID, dim=32, depth=2, head_dim=16)
    for head in (model.text_head, model.image_head):  # zero at the start of training
        torch.nn.init.normal_(head.weight, std=0.4)
    return model


def prompts(B: int):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, V, (B, L), generator=generator)
    text[:, 0] = 1
    return text, torch.randint(0, K, (B, GRID, GRID), generator=generator)


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_result_does_not_depend_on_batch_or_order(model, kind):
    text, codes = prompts(12)
    generate = generate_images if kind == "images" else generate_captions
    given = text if kind == "images" else codes
    seeds = torch.arange(100, 112)
    together = generate(model, given, seeds)
    alone = torch.cat([generate(model, given[i : i + 1], seeds[i : i + 1]) for i in range(12)])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = generate(model, given[order], seeds[order])
    assert torch.equal(together, alone)
    assert torch.equal(together[order], shuffled)
    assert torch.equal(together, generate(model, given, seeds))
    assert not torch.equal(together, generate(model, given, seeds + 1))


def test_greedy_ignores_seeds_and_follows_the_uncached_argmax(model):
    text, _ = prompts(4)
    codes = generate_images(model, text, torch.arange(4), greedy=True)
    assert torch.equal(codes, generate_images(model, text, torch.arange(4) + 9, greedy=True))
    with torch.no_grad():
        assert torch.equal(model(text, codes, "t2i")[1].argmax(-1), codes.flatten(1))


def test_every_step_has_its_own_random_number(model):
    """Drawn again from the logits of the whole sequence. Planted faults: one number for all steps;
    that of the step before."""
    text, codes = prompts(6)
    seeds = torch.arange(6)
    painted, written = generate_images(model, text, seeds), generate_captions(model, codes, seeds)
    with torch.no_grad():
        images, words = model(text, painted, "t2i")[1], model(written, codes, "i2t")[0]
    words[..., :2] = float("-inf")
    for step in range(GRID**2):
        wanted = choose(images[:, step], uniform(seeds, step))
        assert torch.equal(painted.flatten(1)[:, step], wanted)
    for step in range(1, L):
        on = (written[:, :step] != 2).all(1)
        assert torch.equal(written[on, step], choose(words[on, step - 1], uniform(seeds[on], step)))


def test_bfloat16_sampling_takes_codes_that_are_nearly_the_best(model):
    text, _ = prompts(16)
    rounded = generate_images(model, text, torch.arange(16), greedy=True, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(text, rounded, "t2i")[1]  # float32, the whole sequence at once
    chosen = logits.gather(-1, rounded.flatten(1)[..., None])[..., 0]
    assert (logits.amax(-1) - chosen).max() < 0.03 * logits.std()
    assert (logits.argmax(-1) == rounded.flatten(1)).float().mean() > 0.95


def test_weights_cast_for_sampling_are_forgotten(model):
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    with pytest.raises(ZeroDivisionError), model.sampling(torch.bfloat16):
        assert all(layer.cast.dtype == torch.bfloat16 for layer in layers)
        raise ZeroDivisionError
    assert model.dtype == torch.float32 and all(layer.cast is None for layer in layers)


def test_captions_start_stop_and_pad(model):
    _, codes = prompts(64)
    text = generate_captions(model, codes, torch.arange(64))
    assert text.shape == (64, L) and (text[:, 0] == 1).all()
    assert (text[:, 1:] != 1).all()
    ended = 0
    for row in text.tolist():
        if 2 in row:
            ended += 1
            assert all(word == 0 for word in row[row.index(2) + 1 :])
            row = row[: row.index(2)]
        assert 0 not in row
    assert 0 < ended < 64


def test_generation_stops_when_all_rows_have_ended(model, monkeypatch):
    calls = []

    def always_end(x):
        calls.append(1)
        logits = torch.zeros(len(x), V)
        logits[:, 2] = 50.0
        return logits

    monkeypatch.setattr(model, "text_logits", always_end)
    text = generate_captions(model, prompts(3)[1], torch.arange(3))
    assert len(calls) == 1
    assert text.tolist() == [[1, 2] + [0] * (L - 2)] * 3


def test_top_k_limits(model):
    logits = torch.randn(K).expand(500, K)
    drawn = choose(logits, uniform(torch.arange(500), 0), top_k=3)
    assert set(drawn.tolist()) == set(logits[0].topk(3).indices.tolist())
    text, _ = prompts(4)
    one = generate_images(model, text, torch.arange(4), top_k=1)
    assert torch.equal(one, generate_images(model, text, torch.arange(4), greedy=True))


@pytest.mark.parametrize("top_k, temperature", [(None, 1.0), (None, 0.5), (4, 1.0), (99, 2.0)])
def test_distribution_is_the_softmax(top_k, temperature):
    logits = torch.tensor([1.0, float("-inf"), -1.0, 2.0, 0.0, 0.5])
    kept = logits if top_k != 4 else logits.masked_fill(logits < 0, float("-inf"))
    expected = torch.softmax(kept.double() / temperature, -1)
    n = 40_000
    drawn = choose(logits.expand(n, 6), uniform(torch.arange(n), 5), temperature, top_k)
    counts = torch.bincount(drawn, minlength=6)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], n * expected[possible]).pvalue > 1e-3


def test_uniform_is_uniform_and_uncorrelated_over_seeds_and_steps():
    grid = torch.stack([uniform(torch.arange(2_000), step) for step in range(50)])  # (50, 2000)
    assert grid.min() >= 0 and grid.max() < 1
    counts = torch.histc(grid, 64, 0, 1)
    assert chisquare(counts.double()).pvalue > 1e-3
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1])):
        r = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert abs(r) < 0.015  # five standard errors
    assert not torch.equal(uniform(torch.tensor([1]), 0), uniform(torch.tensor([1 + 2**32]), 0))


def test_edges_of_the_unit_interval():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    assert choose(logits, torch.tensor([0.0])).item() == 1
    assert choose(logits, torch.tensor([1 - 2**-24])).item() == 2


def test_bad_options(model):
    text, codes = prompts(1)
    with pytest.raises(SettingsError, match="temperature"):
        generate_images(model, text, torch.arange(1), temperature=0.0)
    with pytest.raises(SettingsError, match="top_k"):
        generate_captions(model, codes, torch.arange(1), top_k=0)
