"""VQGAN: encoder and decoder around a quantizer (Esser et al. 2021; paper, sections 3.2 and 4).

Setting `stage1.downsample` names an entry of `DOWNSAMPLERS`: a way for the encoder to halve its
resolution. A new one is one entry there: a module made from (channels, padding).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tevq.config import Settings, SettingsError, Stage1Config
from tevq.models.cpu_kernels import GroupNorm
from tevq.models.quantizer import QUANTIZERS, Quantized
from tevq.runs.run import open_run


def pad(x: Tensor, left_top: int, right_bottom: int, padding: str) -> Tensor:
    """Pads height and width of x (B, C, H, W); `padding` is replicate, zeros or circular."""
    mode = "constant" if padding == "zeros" else padding
    with torch.autocast(x.device.type, enabled=False):  # which would pad in float32 on CPUs
        return F.pad(x, (left_top, right_bottom) * 2, mode=mode)


class Conv(nn.Conv2d):
    """3x3 convolution that keeps the size, with the border rule of `padding`."""

    def __init__(self, channels_in: int, channels_out: int, padding: str = "zeros"):
        super().__init__(channels_in, channels_out, 3, padding=int(padding == "zeros"))
        self.border = padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W)."""
        return super().forward(x if self.border == "zeros" else pad(x, 1, 1, self.border))


class StridedConv(nn.Module):
    """SC: 3x3 convolution with stride 2, padded right and bottom only, as in VQGAN."""

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(pad(x, 0, 1, self.padding))


class Blur(nn.Module):
    """Binomial 5-tap low-pass filter, then every second pixel (Zhang 2019, "Bin-5")."""

    def __init__(self, channels: int, padding: str):
        super().__init__()
        self.padding = padding
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = torch.outer(taps, taps).repeat(channels, 1, 1, 1)  # (channels, 1, 5, 5)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)), sampled at even rows and columns."""
        return F.conv2d(pad(x, 2, 2, self.padding), self.kernel.to(x.dtype), stride=2,
                        groups=x.shape[1])


class ConvBlurpool(nn.Sequential):
    """CB: 3x3 convolution, then blur and subsample, (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int, padding: str):
        super().__init__(OrderedDict(conv=Conv(channels, channels, padding),
                                     blur=Blur(channels, padding)))


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

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2) for even H and W."""
        if self.padding == "circular":
            x = pad(x, 0, 1, self.padding)
        return self.blur(F.max_pool2d(x, 2, stride=1))


DOWNSAMPLERS = {"strided_conv": StridedConv, "conv_blurpool": ConvBlurpool, "maxpool": MaxPool,
                "max_blurpool": MaxBlurpool}
NORMALIZATIONS = {"group": GroupNorm}  # of the encoder


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, padding: str, norm=GroupNorm):
        super().__init__()
        self.norm1 = norm(channels_in, silu=True)
        self.conv1 = Conv(channels_in, channels_out, padding)
        self.norm2 = norm(channels_out, silu=True)
        self.conv2 = Conv(channels_out, channels_out, padding)
        self.shortcut = (nn.Identity() if channels_in == channels_out else
                         nn.Conv2d(channels_in, channels_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W)."""
        return self.shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class Attention(nn.Module):
    """Single-head self-attention over all positions; knows no positions."""

    def __init__(self, channels: int, norm=GroupNorm):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same shape."""
        B, C, h, w = x.shape
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h w, 3 C)
        q, k, v = qkv.chunk(3, dim=-1)  # each (B, h w, C)
        # written out: with one head over few positions it beats the fused kernel's backward pass
        y = (q * C**-0.5 @ k.transpose(1, 2)).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(B, C, h, w))


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def level_channels(s: Stage1Config) -> list[int]:
    """Channels per resolution, finest first; the last multiplier repeats for larger strides."""
    levels = s.stride.bit_length()  # stride 4 -> 3 levels
    multipliers = (*s.multipliers, *[s.multipliers[-1]] * levels)[:levels]
    return [s.channels * m for m in multipliers]


def build_encoder(s: Stage1Config) -> nn.Sequential:
    """(B, 3, H, W) -> (B, D, H/stride, W/stride); attention at the lowest resolution only."""
    widths = level_channels(s)
    width, last, norm = widths[0], len(widths) - 1, NORMALIZATIONS[s.normalization]
    layers: list[nn.Module] = [Conv(3, width, s.padding)]
    for level, out in enumerate(widths):
        for _ in range(s.encoder_blocks):
            layers.append(ResBlock(width, out, s.padding, norm))
            layers += [Attention(out, norm)] * (level == last and s.attention)
            width = out
        if level != last:
            layers.append(DOWNSAMPLERS[s.downsample](width, s.padding))
    return nn.Sequential(
        *layers, ResBlock(width, width, s.padding, norm), *[Attention(width, norm)] * s.attention,
        ResBlock(width, width, s.padding, norm), norm(width, silu=True),
        Conv(width, s.code_dim, s.padding), nn.Conv2d(s.code_dim, s.code_dim, 1))


def build_decoder(s: Stage1Config) -> nn.Sequential:
    """(B, D, h, w) -> (B, 3, H, W). Pads with zeros, as the official decoder does."""
    widths = level_channels(s)
    width, last = widths[-1], len(widths) - 1
    layers: list[nn.Module] = [
        nn.Conv2d(s.code_dim, s.code_dim, 1), Conv(s.code_dim, width),
        ResBlock(width, width, "zeros"), Attention(width), ResBlock(width, width, "zeros")]
    for level, out in reversed(list(enumerate(widths))):
        for _ in range(s.decoder_blocks):
            layers += [ResBlock(width, out, "zeros")] + [Attention(out)] * (level == last)
            width = out
        if level > 0:
            layers.append(Upsample(width))
    return nn.Sequential(*layers, GroupNorm(width, silu=True), Conv(width, 3))


class VQGAN(nn.Module):
    """Encoder F, quantizer Q and decoder G. Images are (B, 3, H, W) in [-1, 1]."""

    def __init__(self, s: Stage1Config):
        super().__init__()
        self.stride = s.stride
        self.encoder, self.decoder = build_encoder(s), build_decoder(s)
        made = QUANTIZERS[s.quantizer]
        more = (getattr(s, name) for name in getattr(made, "needs", ()))
        self.quantizer = made(s.codes, s.code_dim, *more)

    def encode(self, x: Tensor) -> Tensor:
        """Images -> features F(x) (B, D, h, w) before quantization.

        Raises SettingsError for a wrong shape, type or (checked on CPUs only) range of images.
        """
        fits = x.dim() == 4 and x.shape[1] == 3 and not any(n % self.stride for n in x.shape[2:])
        if not fits or not x.is_floating_point() or (x.device.type == "cpu" and
                                                     x.abs().amax() > 1 + 1e-3):
            raise SettingsError(
                f"images {tuple(x.shape)} of {x.dtype} with values up to {float(x.abs().max()):g}; "
                f"wanted floats (B, 3, H, W) in [-1, 1], H and W multiples of {self.stride}")
        return self.encoder(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Quantized]:
        """Images -> reconstructions (B, 3, H, W), not clamped, and what the quantizer returned."""
        quantized = self.quantizer(self.encode(x))
        return self.decoder(quantized.features), quantized

    def codes(self, x: Tensor) -> Tensor:
        """Images -> codes (B, h, w)."""
        return self.quantizer.nearest(self.encode(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (B, h, w) -> images clamped to [-1, 1], float32."""
        return self.decoder(self.quantizer.lookup(codes)).float().clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> reconstructions clamped to [-1, 1], float32, and codes (B, h, w)."""
        codes = self.codes(x.contiguous(memory_format=torch.channels_last))
        return self.decode_codes(codes), codes


def load(settings: Settings, results=None, device: torch.device | str = "cpu") -> VQGAN:
    """The trained VQGAN, frozen, in evaluation mode. Raises SettingsError if there is none."""
    run = open_run(settings, "stage1", results)
    return run.restore(VQGAN(settings.stage1), device, memory_format=torch.channels_last)
