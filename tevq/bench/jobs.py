"""The large jobs of notebook 07: training steps and sampling, ours and each peer's.

The peers come from their own packages, built at our sizes: taming-transformers (Esser et al. 2021),
dalle-pytorch (P. Wang), transformers (Hugging Face); in notebook 07 also vector-quantize-pytorch.

What a step costs does not depend on what is drawn: images are noise, captions and codes random.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tevq.bench import cost
from tevq.bench.timing import GPT2, OURS, Benchmark, Contender
from tevq.config import Settings, Stage1Config
from tevq.models import transformer
from tevq.models.losses import Perceptual
from tevq.models.sampling import generate_images
from tevq.models.vqgan import level_channels
from tevq.runs.devices import Device
from tevq.train import stage2
from tevq.train.cuda_graph import CudaGraph
from tevq.train.stage1 import Learner

DALLE = "dalle-pytorch"
TAMING, FAST = "taming, float32, default layout", "taming, bfloat16, channels_last"
# what dalle-pytorch imports for nothing here; some no longer build, or left their package, or fail
UNUSED = ("youtokentome", "pkg_resources", "taming.models.vqgan", "webdataset")
Step = Callable[[], Any]
Twin = tuple[int, int, int]  # dim, depth, heads of a GPT-2 with about as many parameters as ours


def add_peer(made: Benchmark, name: str, builder: Callable[[], nn.Module], on: Device, kind: str,
             work: Callable[[nn.Module], Step], units: int = 0) -> None:
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


def noise(batch: int, where: Device, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """Images (batch, 3, 64, 64) in [-1, 1]."""
    x = torch.rand(batch, 3, 64, 64, device=where.device) * 2 - 1
    return x.contiguous(memory_format=layout)


def no_distance(x: Tensor, y: Tensor) -> Tensor:
    """In place of the perceptual distance."""
    return x.new_zeros(())


def learner_step(s: Stage1Config, where: Device, batch: int, perceptual) -> tuple[Step, nn.Module]:
    """Our Stage-1 update (both networks if the discriminator starts at 0), and the model."""
    learner, x = Learner(s, where, perceptual), noise(batch, where)
    update = CudaGraph(learner.update, where)
    return lambda: update(x, s.disc_weight > 0 and s.disc_start == 0), learner.model


def taming_step(s: Stage1Config, batch: int, where: Device, layout: torch.memory_format, perceptual,
                model: nn.Module) -> Step:
    """Taming's update: without a discriminator one of its network, else as VQModel trains."""
    model, x = model.to(memory_format=layout), noise(batch, where, layout)
    losses = taming_losses(s, perceptual).to(where.device) if s.disc_weight else None
    networks = [model, losses.discriminator] if losses else [model]
    optimizers = [torch.optim.Adam(network.parameters(), 1e-4) for network in networks]

    def step() -> None:
        for number, optimizer in enumerate(optimizers):  # a forward pass for each of the two
            with where.autocast():
                y, loss = model(x)
                loss = (x - y).abs().mean() + loss if losses is None else losses(
                    loss, x, y.float(), number, 1, last_layer=model.decoder.conv_out.weight)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return step


def stage1_step(name: str, settings: Settings, where: Device, batch: int, losses: bool,
                targets: tuple[float, float], share: float = 0.0) -> Benchmark:
    """A Stage-1 step on L1 and the quantizer's losses; with `losses` also the perceptual distance
    and the discriminator. Against taming as its users run it, and as the processor can do it."""
    s = dataclasses.replace(settings.stage1, disc_start=0)
    s, perceptual = (s, cost.perceptual(settings)) if losses else (
        dataclasses.replace(s, disc_weight=0.0), no_distance)
    step, model = learner_step(s, where, batch, perceptual)
    made = Benchmark(name, "images", [
        Contender(OURS, step, batch, parameters(model), f"conv-{where.precision}")],
        dict(zip((TAMING, FAST), targets, strict=True)), goal=("share_of_limit", share))
    for peer, on, layout in ((TAMING, Device(where.device, torch.float32), torch.contiguous_format),
                             (FAST, where, torch.channels_last)):
        if peer == FAST and where.dtype is torch.float32:
            made.missing[peer] = "this processor has no bfloat16 arithmetic"
        else:
            add_peer(made, peer, partial(Taming, s), on, "conv", partial(
                taming_step, s, batch, on, layout, perceptual))
    return made


def sequences(model: transformer.Transformer, size: int, where: Device) -> tuple[Tensor, Tensor]:
    """Random captions of full length (size, L) and codes (size, h, h)."""
    return (torch.randint(3, model.V, (size, model.L), device=where.device),
            torch.randint(0, model.K, (size, model.h, model.h), device=where.device))


def generator_step(settings: Settings, where: Device, size: int) -> tuple[Step, nn.Module]:
    """Our Stage-2 update from text to image, and the model it updates."""
    model = transformer.build(settings, where.dtype).to(where.device)
    optimizers = stage2.build_optimizers(model, settings.stage2)
    update = CudaGraph(partial(stage2.update, model, optimizers, settings.stage2), where)
    data = sequences(model, size, where)
    return lambda: update(*data, "t2i"), model


def peer_step(model: nn.Module, where: Device, loss: Step) -> Step:
    """A peer's Stage-2 update: AdamW and clipping, as its users train it."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with where.autocast():
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(wanted, 1.0)
        optimizer.step()
    return step


def stage2_peers(made: Benchmark, model: transformer.Transformer, where: Device, twin: Twin,
                 works: dict[str, Callable], few: int = 0) -> Benchmark:
    """Adds the peers of made.targets. works: name -> (network, on) -> call; few: dalle's units."""
    ways = {GPT2: (partial(gpt2, model, *twin), where, 0),
            DALLE: (partial(dalle, model), Device(where.device, torch.float32), few)}
    for name in made.targets:
        builder, on, units = ways[name]
        add_peer(made, name, builder, on, "matmul", partial(works[name], on=on), units)
    return made


def stage2_step(name: str, settings: Settings, where: Device, size: int, twin: Twin,
                targets: dict[str, float], share: float = 0.0) -> Benchmark:
    """A Stage-2 step from text to image against peers with about as many parameters."""
    step, model = generator_step(settings, where, size)
    text, codes = sequences(model, size, where)
    tokens = torch.cat((text, codes.flatten(1) + model.V), 1)
    made = Benchmark(name, "sequences", [Contender(
        OURS, step, size, parameters(model), f"matmul-{where.precision}")], targets,
        goal=("share_of_limit", share))
    return stage2_peers(made, model, where, twin, {
        GPT2: lambda network, on: peer_step(
            network, on, lambda: network(tokens, labels=tokens).loss),
        DALLE: lambda network, on: peer_step(
            network, on, lambda: network(text, codes.flatten(1), return_loss=True))})


def sampling(name: str, settings: Settings, where: Device, size: int, twin: Twin,
             targets: dict[str, float], few: int = 8) -> Benchmark:
    """All codes of `size` images, with caches, in the type that trainings compute in. dalle-pytorch
    draws single tokens of `few` images in the middle of the grid: its sampler has no cache at
    guidance scale 1, where it drops the one it is given, and a whole grid takes minutes."""
    model = transformer.build(settings, where.dtype).to(where.device).eval()
    (text, codes), top_k = sequences(model, size, where), settings.evaluation.top_k
    seeds, half = torch.arange(size, device=where.device), codes.flatten(1)[:few, : model.N // 2]
    options = {"attention_mask": torch.ones_like(text), "max_new_tokens": model.N,
               "min_new_tokens": model.N, "do_sample": True, "top_k": top_k, "use_cache": True,
               "pad_token_id": 0}
    made = Benchmark(name, "tokens", [Contender(
        OURS, lambda: generate_images(model, text, seeds, top_k=top_k, dtype=where.dtype),
        size * model.N, parameters(model), f"matmul-{where.precision}")], targets)
    return stage2_peers(made, model, where, twin, {
        GPT2: lambda network, on: partial(network.to(on.dtype).eval().generate, text, **options),
        DALLE: lambda network, on: torch.inference_mode()(
            partial(network.eval(), text[:few], half))}, few)


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
