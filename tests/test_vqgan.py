"""Encoder, decoder, downsamplers and group norm against slow references."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import signal
from torch.nn import functional as F

from tevq import presets
from tevq.config import ClassifierConfig, SettingsError, Stage1Config
from tevq.models.classifier import Classifier
from tevq.models.cpu_kernels import GroupNorm
from tevq.models.losses import PatchDiscriminator
from tevq.models.vqgan import DOWNSAMPLERS, VQGAN, Blur, MaxBlurpool, Upsample, level_channels

SMALL = Stage1Config(channels=8, codes=16, code_dim=12)


def test_blur_is_scipy_convolution_then_every_second_pixel():
    x = torch.randn(1, 2, 8, 10)
    taps = np.array([1, 4, 6, 4, 1]) / 16
    expected = [signal.convolve2d(np.pad(channel, 2, mode="edge"), np.outer(taps, taps), "valid")
                for channel in x[0].numpy()]
    found = Blur(2, "replicate")(x)[0].numpy()
    np.testing.assert_allclose(found, np.stack(expected)[:, ::2, ::2], rtol=1e-5, atol=1e-6)


def test_blur_removes_the_highest_frequency():
    checkers = torch.ones(1, 1, 16, 16)
    checkers[..., ::2, 1::2] = checkers[..., 1::2, ::2] = -1
    assert Blur(1, "circular")(checkers).abs().max() < 1e-6


@pytest.mark.parametrize("name", DOWNSAMPLERS)
@pytest.mark.parametrize("padding", ["replicate", "zeros", "circular"])
def test_downsamplers_halve_and_commute_with_circular_shifts_by_two(name, padding):
    torch.manual_seed(0)
    layer = DOWNSAMPLERS[name](4, padding)
    x = torch.randn(2, 4, 16, 16)
    y = layer(x)
    assert y.shape == (2, 4, 8, 8)
    if padding == "circular" or name == "maxpool":
        shifted = layer(x.roll((2, 4), (2, 3)))
        torch.testing.assert_close(shifted, y.roll((1, 2), (2, 3)))
        assert not torch.allclose(layer(x.roll(1, 3)), y)  # an odd shift has no counterpart


def test_max_blurpool_is_the_maximum_then_the_blur():
    x = torch.randn(1, 3, 8, 8)
    dense = torch.stack([x[..., i : i + 7, j : j + 7] for i in (0, 1) for j in (0, 1)]).amax(0)
    torch.testing.assert_close(MaxBlurpool(3, "replicate")(x), Blur(3, "replicate")(dense))


def test_max_blurpool_on_a_torus_looks_right_and_below():
    """Planted fault: a border on the other side, which moves the maximum by a pixel."""
    x = torch.randn(1, 3, 8, 8)
    dense = torch.stack([x.roll((-i, -j), (2, 3)) for i in (0, 1) for j in (0, 1)]).amax(0)
    torch.testing.assert_close(MaxBlurpool(3, "circular")(x), Blur(3, "circular")(dense))


def test_upsampling_repeats_every_pixel_before_its_convolution():
    """Planted fault: pixels in between are blends of their neighbours."""
    layer, x = Upsample(3), torch.randn(2, 3, 5, 4)
    wanted = layer.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("channels", [16, 13, 27])
def test_norm_equals_group_norm_with_its_gradients(layout, silu, channels):
    torch.manual_seed(0)
    norm = GroupNorm(channels, silu)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(3, channels, 6, 6) * 2 + 3).to(memory_format=layout).requires_grad_()
    wanted = x.detach().double().requires_grad_()
    w, b = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    y = norm(x)
    reference = F.group_norm(wanted, norm.num_groups, w, b, 1e-6)
    reference = F.silu(reference) if silu else reference
    torch.testing.assert_close(y.double(), reference, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    reference.backward(gradient.double())
    for ours, theirs in ((x, wanted), (norm.weight, w), (norm.bias, b)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), y)


@pytest.mark.parametrize("size", [(64, 64), (32, 40), (31, 33), (8, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("silu", [False, True])
@torch.no_grad()
def test_norm_without_gradient_is_as_exact_as_the_plain_one(size, silu):
    """Planted fault: PyTorch's kernel for large channels_last maps, which is 3e-4 off."""
    torch.manual_seed(0)
    norm = GroupNorm(16, silu).eval()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (torch.randn(3, 16, *size) * 2 + 3).to(memory_format=torch.channels_last)
    w, b = norm.weight.double(), norm.bias.double()
    wanted = F.group_norm(x.double().contiguous(), norm.num_groups, w, b, 1e-6)
    wanted = F.silu(wanted) if silu else wanted
    assert (norm(x) - wanted).abs().max() <= 1e-5
    assert norm(x).is_contiguous(memory_format=torch.channels_last)
    assert norm(torch.zeros_like(x)).isfinite().all()


def test_every_width_that_settings_allow_can_be_built(monkeypatch):
    """Planted fault: min(32, channels // 4) groups, into which most widths cannot be split."""
    for layer in (torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.BatchNorm2d, torch.nn.Linear):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)  # saves seconds
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *words: tensor)
    low = {name: field.metadata["low"] for group in (Stage1Config, ClassifierConfig)
           for name, field in group.__dataclass_fields__.items()}
    assert low["channels"] == low["disc_channels"] == low["width"] == 4
    for channels in range(4, 129):
        with torch.device("meta"):
            VQGAN(dataclasses.replace(SMALL, channels=channels, multipliers=(1, 3), stride=2))
            PatchDiscriminator(channels, 4)
            Classifier(channels)
        groups, before = GroupNorm(channels).num_groups, min(32, channels // 4)
        assert channels % groups == 0 and channels // groups >= 4 and groups <= 32
        assert groups == before or channels % before


def test_an_odd_width_encodes_and_decodes():
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    y, _ = VQGAN(dataclasses.replace(SMALL, channels=13))(x)
    y.sum().backward()
    assert y.shape == x.shape and PatchDiscriminator(5, 1)(y.detach()).isfinite().all()


def test_norm_in_bfloat16_stays_within_its_rounding():
    torch.manual_seed(0)
    norm = GroupNorm(16, True)
    x = torch.randn(4, 16, 8, 8).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    reference = F.silu(F.group_norm(x.detach().float(), norm.num_groups))
    assert (y.float() - reference).abs().max() < 0.05  # outputs up to 4: 3 of 256 steps
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("variant", presets.PAPER)
@pytest.mark.parametrize("stride", [4, 8])
def test_shapes_and_decoding_of_codes(variant, stride):
    torch.manual_seed(0)
    downsample = presets.load("smoke", variant).stage1.downsample
    model = VQGAN(dataclasses.replace(SMALL, stride=stride, downsample=downsample)).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    y, quantized = model(x)
    assert y.shape == x.shape and quantized.codes.shape == (2, 64 // stride, 64 // stride)
    torch.testing.assert_close(model.codes(x), quantized.codes)
    decoded = model.decode_codes(quantized.codes)
    torch.testing.assert_close(decoded, y.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_official_sizes_have_the_official_parameter_counts():
    """Encoder 6.62 M with strided convolutions, 5.88 M with pooling; decoder 10.42 M.

    The official code counts the two 1x1 convolutions around the codebook apart.
    """
    between = 256 * 256 + 256
    counts = {}
    for name in ("strided_conv", "maxpool"):
        s = dataclasses.replace(presets.paper().stage1, downsample=name)
        with torch.device("meta"):
            model = VQGAN(s)
        counts[name] = [(sum(p.numel() for p in part.parameters()) - between) / 1e6
                        for part in (model.encoder, model.decoder)]
    assert counts["strided_conv"] == pytest.approx([6.62, 10.42], abs=0.01)
    assert counts["maxpool"][0] == pytest.approx(5.88, abs=0.01)


def test_the_last_multiplier_repeats_for_larger_strides():
    cases = (((1, 2, 4), 4, [16, 32, 64]), ((1, 2), 8, [16, 32, 32, 32]))
    for multipliers, stride, widths in cases:
        s = Stage1Config(channels=16, multipliers=multipliers, stride=stride)
        assert level_channels(s) == widths


@pytest.mark.promise("input")
@pytest.mark.parametrize("x, word", [
    (torch.zeros(2, 1, 64, 64), "(2, 1, 64, 64)"), (torch.zeros(3, 64, 64), "(3, 64, 64)"),
    (torch.zeros(1, 3, 66, 64), "multiples of 4"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8"),
    (torch.full((1, 3, 64, 64), -1.01), "[-1, 1]"),
])
def test_bad_images_are_refused(x, word):
    with pytest.raises(SettingsError, match=word.replace("(", r"\(").replace(")", r"\)").replace(
            "[", r"\[").replace("]", r"\]")):
        VQGAN(SMALL).encode(x)


def test_an_error_of_rounding_is_no_bad_image():
    """Planted fault: a range without tolerance."""
    VQGAN(SMALL).encode(torch.full((1, 3, 64, 64), 1.0005))
