"""The peers, built from their own packages at our sizes (`pip install -e .[bench]`).

taming-transformers (Esser et al. 2021), vector-quantize-pytorch and dalle-pytorch (P. Wang), and
transformers (Hugging Face). A builder raises PeerError, with the reason, when its peer cannot run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable

import torch
from torch import nn

from tevq.config import Stage1Config, UserError
from tevq.models.losses import Perceptual
from tevq.models.vqgan import level_channels


class PeerError(UserError):
    """A peer cannot be built; the message says why."""


def imported(name: str, package: str) -> types.ModuleType:
    """A module of a peer. Raises PeerError when it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # old packages fail in many ways on new ones
        hint = "" if importlib.util.find_spec(name.split(".")[0]) else (
            "; pip install -e .[bench] (for dalle-pytorch see notebook 07)")
        raise PeerError(f"{package} does not import: {type(error).__name__}: {error}{hint}"
                        ) from None


def without(*names: str) -> None:
    """Puts empty stand-ins in the place of modules that a peer imports and we do not use."""
    def anything(attribute: str) -> type:
        if attribute.startswith("__"):  # modules are inspected by such names
            raise AttributeError(attribute)
        return type(attribute, (), {})

    for name in set(names) - set(sys.modules):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = anything


class Taming(nn.Module):
    """taming-transformers' encoder, quantizer and decoder, put together as its VQModel does.

    VQModel itself does not import beside pytorch-lightning 2 (measured with 0.0.1). Its group norm
    has 32 groups whatever the width, which narrow layers cannot have; they get ours.
    """

    def __init__(self, s: Stage1Config):
        super().__init__()
        parts = imported("taming.modules.diffusionmodules.model", "taming-transformers")
        vq = imported("taming.modules.vqvae.quantize", "taming-transformers")
        parts.Normalize = lambda channels: nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)
        widths = level_channels(s)
        common = dict(ch=s.channels, out_ch=3, ch_mult=[w // s.channels for w in widths],
                      attn_resolutions=[64 // s.stride], in_channels=3, resolution=64,
                      z_channels=s.code_dim)
        self.encoder = parts.Encoder(**common, num_res_blocks=s.encoder_blocks, double_z=False)
        # its decoder has one block more than it is told
        self.decoder = parts.Decoder(**common, num_res_blocks=s.decoder_blocks - 1)
        self.quantize = vq.VectorQuantizer(s.codes, s.code_dim, beta=s.beta)
        self.quant_conv = nn.Conv2d(s.code_dim, s.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(s.code_dim, s.code_dim, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images -> reconstructions, quantizer's loss."""
        quantized, loss, _ = self.quantize(self.quant_conv(self.encoder(x)))
        return self.decoder(self.post_quant_conv(quantized)), loss


def taming_losses(s: Stage1Config, perceptual: Perceptual) -> nn.Module:
    """taming-transformers' losses with another perceptual distance (its own is a download)."""
    found = imported("taming.modules.losses.vqperceptual", "taming-transformers")

    class Distance(nn.Module):
        def forward(self, x, y):
            return perceptual(x, y)

    found.LPIPS = Distance
    with contextlib.redirect_stdout(None):  # it prints
        return found.VQLPIPSWithDiscriminator(
            disc_start=0, disc_num_layers=s.disc_layers, disc_ndf=s.disc_channels,
            disc_weight=s.disc_weight, perceptual_weight=s.perceptual_weight)


def vector_quantize(K: int, D: int, beta: float, weight: float) -> nn.Module:
    """vector-quantize-pytorch with a gradient-trained codebook and its orthogonality option."""
    return imported("vector_quantize_pytorch", "vector-quantize-pytorch").VectorQuantize(
        dim=D, codebook_size=K, accept_image_fmap=True, commitment_weight=beta, ema_update=False,
        learnable_codebook=True, orthogonal_reg_weight=weight,
        orthogonal_reg_active_codes_only=False)


def dalle(V: int, K: int, text_length: int, dim: int, depth: int, heads: int,
          head_dim: int) -> nn.Module:
    """dalle-pytorch's DALLE over a 16 x 16 grid of codes.

    The package imports youtokentome (a tokenizer that no longer builds) and taming's VQModel, and
    does not use them here.
    """
    without("youtokentome", "taming.models.vqgan", "webdataset")
    found = imported("dalle_pytorch", "dalle-pytorch")
    vae = found.DiscreteVAE(image_size=64, num_layers=2, num_tokens=K, codebook_dim=8, hidden_dim=8)
    return found.DALLE(dim=dim, vae=vae, num_text_tokens=V, text_seq_len=text_length, depth=depth,
                       heads=heads, dim_head=head_dim)


def gpt2(tokens: int, positions: int, dim: int, depth: int, heads: int) -> nn.Module:
    """transformers' GPT-2, without dropout, as the others."""
    found = imported("transformers", "transformers")
    found.logging.set_verbosity_error()
    return found.GPT2LMHeadModel(found.GPT2Config(
        vocab_size=tokens, n_positions=positions, n_embd=dim, n_layer=depth, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))


def size(model: nn.Module, without_prefix: str = "\0") -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for name, p in model.named_parameters()
               if p.requires_grad and not name.startswith(without_prefix))


def build(builder: Callable[..., nn.Module], *arguments, **options) -> nn.Module | str:
    """What the builder returns, or why it cannot."""
    try:
        with contextlib.redirect_stdout(None):  # some of them print
            return builder(*arguments, **options)
    except PeerError as error:
        return str(error)
