"""Counted operations against formulas."""

import pytest
import torch
from small import tiny

from tevq import presets
from tevq.bench import cost


def test_a_product_and_its_gradients_count_three_times():
    """Planted fault: the backward pass outside the counter."""
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    assert cost.count(lambda: (a @ b).sum().backward()) == 3 * 2 * 5 * 7 * 3


def test_a_transformer_costs_about_six_operations_a_parameter_and_token():
    """Planted fault: one direction counted as two. (The formula leaves out attention, embeddings
    and the head.)"""
    s = tiny(**{"stage2.dim": 128, "stage2.depth": 4, "stage2.heads": 2, "stage2.head_dim": 64})
    matrices = 12 * 128**2 * 4  # of four blocks
    tokens = 64 + 41
    assert cost.stage2(s) == pytest.approx(6 * matrices * tokens, rel=0.35)


def test_directions_count_by_their_share():
    """Planted faults: shares swapped; a direction that is not trained counted."""
    both, t2i, i2t, only = (cost.stage2(tiny(**change)) for change in (
        {"stage2.t2i_share": 0.75}, {"stage2.t2i_share": 1.0}, {"stage2.t2i_share": 0.0},
        {"stage2.directions": "i2t", "stage2.t2i_share": 0.75}))
    assert t2i != i2t == only
    assert both == pytest.approx(0.75 * t2i + 0.25 * i2t)


def test_the_official_quantizer_has_the_published_cost():
    """28.1 GFLOP forward an image for the architecture of `paper`; a step is forward and twice that
    backward, the perceptual and adversarial losses come on top. Planted fault: forward only."""
    total = cost.stage1(presets.load("paper", "te", 0, {
        "stage1.perceptual": "classifier", "stage1.disc_weight": 0.0, "classifier.width": 4,
        "classifier.architecture": "own"}))
    assert total == pytest.approx(3 * 28.1e9, rel=0.15)


def test_samples_and_hours():
    found, smoke = cost.table(("smoke",)), presets.load("smoke", "te", 0)
    assert list(found.stage) == ["stage1", "stage2"]
    assert found.samples[1] == smoke.stage2.steps * smoke.stage2.batch
    assert found.h200_hours[0] == pytest.approx(
        found.samples[0] * found.gflop_per_sample[0] * 1e9 / (0.4 * 989e12) / 3600)
