"""The peers of notebook 07, built at our sizes, each from its own package.

taming-transformers (Esser et al. 2021), dalle-pytorch (P. Wang), transformers (Hugging Face); in
the notebook also vector-quantize-pytorch.
"""

import contextlib
import sys
from collections.abc import Callable
from unittest import mock

import torch
from torch import nn

from tevq.bench.timing import Benchmark, Contender
from tevq.config import Stage1Config
from tevq.models import transformer
from tevq.models.losses import Perceptual
from tevq.models.vqgan import level_channels
from tevq.runs.devices import Device

DALLE = "dalle-pytorch"
TAMING, FAST = "taming, float32, default layout", "taming, bfloat16, channels_last"
# what dalle-pytorch imports for nothing here; some no longer build, or left their package, or fail
UNUSED = ("youtokentome", "pkg_resources", "taming.models.vqgan", "webdataset")


def add_peer(made: Benchmark, name: str, builder: Callable[[], nn.Module], on: Device, kind: str,
             work: Callable[[nn.Module], Callable], units: int = 0) -> None:
    """Adds a peer to a benchmark, or why it cannot be built. work: network -> its call; kind: of
    the limit it is held against, or empty; units: of its call, if not ours."""
    try:
        with contextlib.redirect_stdout(None):  # some of them print
            step = work(network := builder().to(on.device))
    except Exception as error:  # old packages fail in many ways on new ones
        hint = "; pip install -r results/benchmarks/peers.txt"
        made.missing[name] = f"{type(error).__name__}: {error}".splitlines()[0] + (
            hint * isinstance(error, ModuleNotFoundError))
    else:
        made.contenders.append(Contender(name, step, units or made.contenders[0].units,
                                         parameters(network), kind and f"{kind}-{on.precision}"))


def parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Taming(nn.Module):
    """taming-transformers' encoder, quantizer and decoder, put together as its VQModel does, which
    does not import beside pytorch-lightning 2 (measured with 0.0.1). Its group norm has 32 groups
    whatever the width, which narrow layers cannot have; they get ours."""

    def __init__(self, s: Stage1Config):
        super().__init__()
        from taming.modules.diffusionmodules import model as parts
        from taming.modules.vqvae.quantize import VectorQuantizer

        parts.Normalize = lambda channels: nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
        common = dict(ch=s.channels, out_ch=3, ch_mult=[w // s.channels for w in level_channels(s)],
                      attn_resolutions=[64 // s.stride], in_channels=3, resolution=64,
                      z_channels=s.code_dim)
        self.encoder = parts.Encoder(**common, num_res_blocks=s.encoder_blocks, double_z=False)
        # its decoder has one block more than it is told
        self.decoder = parts.Decoder(**common, num_res_blocks=s.decoder_blocks - 1)
        self.quantize = VectorQuantizer(s.codes, s.code_dim, beta=s.beta)
        self.quant_conv, self.post_quant_conv = (
            nn.Conv2d(s.code_dim, s.code_dim, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> reconstructions, quantizer's loss."""
        quantized, loss, _ = self.quantize(self.quant_conv(self.encoder(x)))
        return self.decoder(self.post_quant_conv(quantized)), loss


def taming_losses(s: Stage1Config, perceptual: Perceptual) -> nn.Module:
    """taming-transformers' losses with another perceptual distance (its own is a download)."""
    from taming.modules.losses import vqperceptual

    vqperceptual.LPIPS = lambda: mock.Mock(eval=lambda: perceptual)
    return vqperceptual.VQLPIPSWithDiscriminator(
        disc_start=0, disc_num_layers=s.disc_layers, disc_ndf=s.disc_channels,
        disc_weight=s.disc_weight, perceptual_weight=s.perceptual_weight)


def dalle(ours: transformer.Transformer) -> nn.Module:
    """dalle-pytorch's DALLE of the same sizes as ours, over the same grid of codes."""
    for name in UNUSED:
        sys.modules.setdefault(name, mock.MagicMock())
    from dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(image_size=4 * ours.h, num_layers=2, num_tokens=ours.K, hidden_dim=8)
    return DALLE(dim=ours.row.shape[-1], vae=vae, num_text_tokens=ours.V, text_seq_len=ours.L,
                 depth=ours.depth, heads=ours.heads, dim_head=ours.head_dim)


def gpt2(ours: transformer.Transformer, dim: int, depth: int, heads: int) -> nn.Module:
    """transformers' GPT-2, without dropout, as the others. (Its heads are dim / heads wide.)"""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=ours.V + ours.K, n_positions=ours.L + ours.N, n_embd=dim, n_layer=depth,
        n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
        eos_token_id=0))
