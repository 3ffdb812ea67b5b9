"""The peers, built from their own packages at our sizes (`pip install -e .[bench]`).

taming-transformers (Esser et al. 2021), dalle-pytorch (P. Wang) and transformers (Hugging Face). A
builder raises whatever its package raises. (Notebook 07 builds vector-quantize-pytorch itself.)
"""

from __future__ import annotations

import contextlib
import sys
from unittest import mock

import torch
from torch import nn

from tevq.config import Stage1Config
from tevq.models.losses import Perceptual
from tevq.models.transformer import Transformer
from tevq.models.vqgan import level_channels

# what dalle-pytorch imports and does not use here: a tokenizer that no longer builds, and a module
# that does not import beside pytorch-lightning 2
UNUSED = ("youtokentome", "taming.models.vqgan", "webdataset")


class Taming(nn.Module):
    """taming-transformers' encoder, quantizer and decoder, put together as its VQModel does.

    VQModel itself does not import beside pytorch-lightning 2 (measured with 0.0.1). Its group norm
    has 32 groups whatever the width, which narrow layers cannot have; they get ours.
    """

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
        self.quant_conv = nn.Conv2d(s.code_dim, s.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(s.code_dim, s.code_dim, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> reconstructions, quantizer's loss."""
        quantized, loss, _ = self.quantize(self.quant_conv(self.encoder(x)))
        return self.decoder(self.post_quant_conv(quantized)), loss


def taming_losses(s: Stage1Config, perceptual: Perceptual) -> nn.Module:
    """taming-transformers' losses with another perceptual distance (its own is a download)."""
    from taming.modules.losses import vqperceptual

    class Distance(nn.Module):
        def forward(self, x, y):
            return perceptual(x, y)

    vqperceptual.LPIPS = Distance
    with contextlib.redirect_stdout(None):  # it prints
        return vqperceptual.VQLPIPSWithDiscriminator(
            disc_start=0, disc_num_layers=s.disc_layers, disc_ndf=s.disc_channels,
            disc_weight=s.disc_weight, perceptual_weight=s.perceptual_weight)


def dalle(ours: Transformer) -> nn.Module:
    """dalle-pytorch's DALLE of the same sizes as ours, over a 16 x 16 grid of codes."""
    for name in UNUSED:
        sys.modules.setdefault(name, mock.MagicMock())
    from dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(image_size=64, num_layers=2, num_tokens=ours.K, codebook_dim=8, hidden_dim=8)
    return DALLE(dim=ours.row.shape[-1], vae=vae, num_text_tokens=ours.V, text_seq_len=ours.L,
                 depth=ours.depth, heads=ours.heads, dim_head=ours.head_dim)


def gpt2(ours: Transformer, dim: int, depth: int, heads: int) -> nn.Module:
    """transformers' GPT-2, without dropout, as the others. (Its heads are dim / heads wide.)"""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=ours.V + ours.K, n_positions=ours.L + ours.N, n_embd=dim, n_layer=depth,
        n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
        eos_token_id=0))
