"""Perceptual distance, discriminator and the adaptive weight."""

import pytest
import torch

from tevq.config import SettingsError
from tevq.models import losses
from tevq.models.classifier import Classifier


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 2, 3, 32, 32) * 2 - 1


def test_feature_distance_is_the_difference_of_unit_features(images):
    torch.manual_seed(0)
    evaluator = Classifier(8).eval().requires_grad_(False)
    x, y = images
    expected = 0
    for a, b in zip(evaluator.features(x), evaluator.features(y), strict=True):
        a, b = (f / (f.square().sum(1, keepdim=True) + 1e-6).sqrt() for f in (a, b))
        expected += (a - b).square().sum(1).mean()
    distance = losses.feature_distance(evaluator)
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-3, atol=1e-4)
    assert distance(x, x) == pytest.approx(0, abs=1e-4)
    y = y.clone().requires_grad_()
    distance(x, y).backward()
    assert y.grad.abs().sum() > 0


@pytest.mark.promise("input")
def test_lpips_without_its_weights_names_file_and_alternative(monkeypatch, tmp_path):
    lpips = pytest.importorskip("lpips")

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SettingsError) as error:
        losses.lpips_vgg("cpu")
    assert losses.VGG_FILE in str(error.value) and "classifier" in str(error.value)


def test_lpips_ranks_a_closer_image_closer(monkeypatch):
    """The real package with random trunk weights: what can be had without a download."""
    lpips = pytest.importorskip("lpips")
    real = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda net, verbose: real(
        net=net, verbose=verbose, pnet_rand=True))
    distance = losses.lpips_vgg("cpu")
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    noise = torch.randn_like(x)
    near, far = (float(distance(x, (x + s * noise).clamp(-1, 1))) for s in (0.05, 1.0))
    assert float(distance(x, x)) == pytest.approx(0, abs=1e-6)
    assert abs(near) < abs(far)


def test_discriminator_shape_and_hinge():
    discriminator = losses.PatchDiscriminator(8, 3)
    assert discriminator(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert losses.hinge_loss(real, fake) == pytest.approx(0.5 * (0.5 + 1.0))


def test_the_discriminator_is_at_most_eight_times_as_wide():
    """Planted fault: a width that doubles in every layer."""
    widths = [layer.out_channels for layer in losses.PatchDiscriminator(4, 5)
              if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    reconstruction, adversarial = (3 * w).sum(), (0.5 * w * w).sum()
    weight = losses.adaptive_weight(reconstruction, adversarial, w)
    assert weight == pytest.approx((18**0.5) / (5**0.5), rel=1e-3)
    assert not weight.requires_grad
    huge = losses.adaptive_weight(1e9 * w.sum(), (0 * w).sum(), w)
    assert huge == 1e4
