"""Four ways to halve the resolution: the baselines SC, CB, MP and MB of the paper (section 4).

A fifth one is a module taking (channels, padding), and a line in `DOWNSAMPLERS`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

PAD_MODES = {"replicate": "replicate", "zeros": "constant", "circular": "circular"}


def pad(x: torch.Tensor, left_top: int, right_bottom: int, padding: str) -> torch.Tensor:
    """Pads height and width of x (B, C, H, W) by the same amounts; `padding` as in PAD_MODES."""
    return F.pad(x, (left_top, right_bottom) * 2, mode=PAD_MODES[padding])


class Conv(nn.Conv2d):
    """3x3 convolution that keeps the size, with the border rule of `padding`."""

    def __init__(self, channels_in: int, channels_out: int, padding: str = "zeros"):
        super().__init__(channels_in, channels_out, 3, padding=1, padding_mode=padding)


class StridedConv(nn.Module):
    """SC: 3x3 convolution with stride 2, padded right and bottom only, as in VQGAN."""

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(pad(x, 0, 1, self.padding))


class Blur(nn.Module):
    """Binomial 5-tap low-pass filter, then every second pixel (Zhang 2019, "Bin-5")."""

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.padding = padding
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = torch.outer(taps, taps).expand(channels, 1, 5, 5)
        self.register_buffer("kernel", kernel.clone(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)), sampled at even rows and columns."""
        return F.conv2d(pad(x, 2, 2, self.padding), self.kernel.to(x.dtype), stride=2,
                        groups=x.shape[1])


class ConvBlurpool(nn.Module):
    """CB: 3x3 convolution with stride 1, then blur and subsample."""

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.conv = Conv(channels, channels, padding)
        self.blur = Blur(channels, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.blur(self.conv(x))


class MaxPool(nn.MaxPool2d):
    """MP: maximum over 2x2 windows, (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int, padding: str):
        super().__init__(kernel_size=2)


class MaxBlurpool(nn.Module):
    """MB: maximum over 2x2 windows at stride 1, then blur and subsample.

    As in the official code the maximum is not padded, so H - 1 rows reach the blur; with circular
    padding it wraps around instead, which keeps circular shifts exact.
    """

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.padding = padding
        self.blur = Blur(channels, padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2) for even H and W."""
        if self.padding == "circular":
            x = pad(x, 0, 1, self.padding)
        return self.blur(F.max_pool2d(x, 2, stride=1))


DOWNSAMPLERS = {
    "strided_conv": StridedConv,
    "conv_blurpool": ConvBlurpool,
    "maxpool": MaxPool,
    "max_blurpool": MaxBlurpool,
}
