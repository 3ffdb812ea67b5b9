"""Quantizer: equations 3 and 5 by second routes, gradients of every term."""

import math

import pytest
import torch

from tevq.models.quantizer import Quantizer, codebook_health, nearest_codes, orthogonality


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    found = Quantizer(K=7, D=5)
    torch.nn.init.normal_(found.codebook)
    return found


def test_nearest_code_is_the_brute_force_minimum(quantizer):
    z = torch.randn(2, 5, 3, 4)
    codes = quantizer(z).codes
    for b in range(2):
        for i in range(3):
            for j in range(4):
                distance = [float((z[b, :, i, j] - e).square().sum())
                            for e in quantizer.codebook.detach()]
                assert codes[b, i, j] == min(range(7), key=distance.__getitem__)


def test_nearest_code_ignores_autocast():
    """Two codes closer to each other than bfloat16 resolves; autocast would confuse them."""
    codebook = torch.tensor([[1.0, 0.0], [1.001, 0.0]])
    vectors = torch.tensor([[1.0002, 0.0], [1.0008, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_codes(vectors, codebook).tolist() == [0, 1]


def test_codes_looked_up_are_the_quantized_features(quantizer):
    quantized = quantizer(torch.randn(2, 5, 3, 4))
    torch.testing.assert_close(quantizer.lookup(quantized.codes), quantized.features)


def test_gradient_passes_straight_through(quantizer):
    z = torch.randn(2, 5, 3, 4, requires_grad=True)
    weight = torch.randn(2, 5, 3, 4)
    (quantizer(z).features * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert quantizer.codebook.grad is None


def test_each_loss_moves_its_own_side(quantizer):
    z = torch.randn(2, 5, 3, 4, requires_grad=True)
    found = quantizer(z)
    chosen = quantizer.lookup(found.codes).detach()
    to_z, = torch.autograd.grad(found.commitment_loss, z, retain_graph=True)
    torch.testing.assert_close(to_z, 2 * (z - chosen).detach() / z.numel())
    with pytest.raises(RuntimeError, match="not.*used|require grad"):
        torch.autograd.grad(found.commitment_loss, quantizer.codebook, retain_graph=True)
    to_e, = torch.autograd.grad(found.codebook_loss, quantizer.codebook, retain_graph=True)
    expected = torch.zeros_like(quantizer.codebook)
    difference = 2 * (chosen - z).detach().permute(0, 2, 3, 1).reshape(-1, 5) / z.numel()
    expected.index_add_(0, found.codes.flatten(), difference)
    torch.testing.assert_close(to_e, expected)
    with pytest.raises(RuntimeError, match="not.*used|require grad"):
        torch.autograd.grad(found.codebook_loss, z)


def test_wrong_channel_count_is_refused(quantizer):
    with pytest.raises(ValueError, match="6 channels"):
        quantizer(torch.randn(1, 6, 2, 2))


def test_orthogonality_by_the_sum_of_squared_cosines():
    """|G - I|_F^2 = sum of all squared cosines - K, since unit rows have G_ii = 1."""
    codebook = torch.randn(9, 4) * torch.rand(9, 1) * 10
    cosines = torch.nn.functional.cosine_similarity(codebook[:, None], codebook[None], dim=-1)
    expected = (cosines.square().sum() - 9) / 81
    torch.testing.assert_close(orthogonality(codebook), expected)


def test_orthogonality_ignores_autocast():
    """Planted fault: products in bfloat16."""
    codes = torch.randn(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = orthogonality(codes)
    assert torch.equal(inside, orthogonality(codes))


def test_orthogonality_is_zero_only_for_orthogonal_codes():
    basis = torch.linalg.qr(torch.randn(8, 8)).Q
    lengths = torch.rand(8, 1) * 5 + 0.1  # the penalty is blind to length
    assert orthogonality(basis * lengths) < 1e-10
    assert orthogonality(torch.ones(8, 8)) == pytest.approx((64 - 8) / 64)


def test_orthogonality_gradient_is_perpendicular_to_each_code():
    codebook = torch.randn(6, 8, requires_grad=True)
    orthogonality(codebook).backward()
    along = (codebook.grad * codebook.detach()).sum(1)
    assert codebook.grad.norm(dim=1).min() > 1e-4
    assert along.abs().max() < 1e-6


def test_health_counts_use_and_perplexity():
    codebook = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    health = codebook_health(codebook, torch.tensor([2, 2, 0, 0]))
    assert health["codes_used"] == 2 and health["perplexity"] == pytest.approx(2)
    assert health["norm_max"] == 5 and health["norm_used"] == pytest.approx(3)
    assert health["max_cosine"] == pytest.approx(1)
    assert health["max_cosine_used"] == pytest.approx(0.8)
    single = codebook_health(codebook, torch.tensor([5, 0, 0, 0]))
    assert single["perplexity"] == pytest.approx(1) and single["max_cosine_used"] == 0
    assert math.isfinite(single["norm_used"])


def test_opposite_codes_are_as_alike_as_equal_ones():
    """Planted fault: the largest cosine with its sign."""
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    found = codebook_health(codes, torch.ones(2))
    assert found["max_cosine"] == found["max_cosine_used"] == pytest.approx(1.01**-0.5)
