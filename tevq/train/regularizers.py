"""What arms of results/plan.md add to the updates of Stage 1; nothing at neutral settings."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tevq.config import Settings, Stage1Config
from tevq.models.quantizer import Quantized
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.run import open_run, origin

WINDOW = 100  # steps; a code chosen in none of the last ones counts as unused
LAST = 0.8  # share of the steps after which no code is revived


def effective(s: Stage1Config) -> Stage1Config:
    """The settings of the training: merged codes start from trained networks. So these need a
    quarter of the steps, no warm-up, and no discriminator, whose weights are not kept."""
    if not s.merged_to:
        return s
    steps = math.ceil(s.steps / 4)
    return dataclasses.replace(s, steps=steps, warmup_steps=0, codebook_start="kmeans",
                               disc_start=steps)


def take_over(model: VQGAN, settings: Settings, results: str | None) -> None:
    """Gives a quantizer of merged codes the trained networks of its `sc`, the encoder frozen."""
    if parent := origin(settings):
        weights = open_run(parent, "stage1", results).weights()
        weights["quantizer.old"] = weights.pop("quantizer.codebook")
        model.load_state_dict(weights, strict=False)  # groups and their vectors are made later
        model.encoder.requires_grad_(False)


class Extras(nn.Module):
    """State and losses of the arms. Everything that a resumed run needs is in `state_dict`."""

    def __init__(self, s: Stage1Config):
        super().__init__()
        self.s = s
        if s.penalty_on != "all" or s.revive_every:
            self.register_buffer("age", torch.zeros(s.codes, dtype=torch.long))  # since chosen
        if s.frozen_lengths:
            self.register_buffer("lengths", torch.zeros(s.codes))
        if s.causal:
            self.predictor = Causal(s.code_dim)
        # a tensor, because a step that is replayed on a GPU reads nothing else
        self.register_buffer("shift", torch.zeros(2, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def before(self, model: VQGAN, x: Tensor, seed: int, step: int) -> None:
        """Before the update of a step on images x: draws its shift, revives codes when it is time,
        notes the lengths of the codes at step 0.

        All this is a function of seed and step, so that a resumed run repeats it. Codes that
        none of the last `revive_every` steps chose are put on encoder outputs of x (Jukebox,
        Dhariwal et al. 2020, section 3), drawn as k-means++ draws: with a chance in proportion to
        the squared distance from the nearest code, because most outputs are background.
        """
        s, random, codebook = self.s, devices.generator(seed, step, 2), model.quantizer.table()
        if s.frozen_lengths and step == 0:
            self.lengths.copy_(codebook.norm(dim=1))
        if s.shift_features or s.shift_decoding:
            cells = torch.tensor(x.shape[2:]) // s.stride
            self.shift.copy_((torch.rand(2, generator=random) * cells).long())
        if not s.revive_every or step % s.revive_every or not 0 < step < LAST * s.steps:
            return
        dead = self.age >= s.revive_every
        vectors = model.encode(x).float().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
        nearest = codebook[model.quantizer.choose(vectors)]
        distance = (vectors - nearest).square().sum(1).cpu() + 1e-12
        new = distance.multinomial(min(int(dead.sum()), len(vectors)) or 1, generator=random)
        gone = dead.nonzero()[: len(new), 0]
        codebook[gone] = vectors[new.to(vectors.device)][: len(gone)]
        self.age[gone] = 0

    def penalised(self, codebook: Tensor) -> Tensor:
        """The codebook for equation 5, whose gradient reaches only used, or only unused codes.

        So the gradients of `penalty_on` = used and = unused add up to that of all codes.
        """
        if self.s.penalty_on == "all":
            return codebook
        reached = (self.age < WINDOW) == (self.s.penalty_on == "used")
        return torch.where(reached[:, None], codebook, codebook.detach())

    def loss(self, model: VQGAN, x: Tensor, quantized: Quantized,
             reconstruction_loss: Callable[[Tensor, Tensor], tuple[Tensor, dict]]
             ) -> Tensor | float:
        """The sum of the penalties that are on, else 0. T rolls by whole strides.

        * `causal`: |f(e_<i) - e_i|^2, the mean over elements, e in raster order (CRT, Ramanujan et
          al. 2024, arXiv 2412.16326; there f is a transformer, here `Causal`);
        * `shift_features`: |E(T x) - T E(x)|^2, the mean over elements (AF-LDM, Zhou et al. 2025);
        * `shift_decoding`: the reconstruction loss of D(T q(E(x))) and T x (EQ-VAE, Kouzelis et al.
          2025, with shifts for scales and rotations).
        """
        s, total = self.s, 0.0
        if s.causal:
            e = quantized.features.float()
            total = s.causal * F.mse_loss(self.predictor(e).float(), e)
        moved = roll(x, self.shift * s.stride) if s.shift_features or s.shift_decoding else x
        if s.shift_features:
            here, there = model.encode(torch.cat((x, moved))).float().chunk(2)
            total = total + s.shift_features * F.mse_loss(there, roll(here, self.shift))
        if s.shift_decoding:
            y = model.decoder(roll(quantized.features, self.shift))
            total = total + s.shift_decoding * reconstruction_loss(moved, y)[0]
        return total

    @torch.no_grad()
    def after(self, model: VQGAN, codes: Tensor) -> None:
        """After the update: counts the steps since a code was chosen; sets lengths back."""
        if "age" in self._buffers:
            self.age.add_(1).index_fill_(0, codes.flatten(), 0)
        if self.s.frozen_lengths:
            codebook = model.quantizer.codebook
            codebook.mul_((self.lengths / codebook.norm(dim=1).clamp(min=1e-12))[:, None])


def roll(x: Tensor, shift: Tensor) -> Tensor:
    """x (B, C, H, W) moved down and right by `shift` (2,) on a torus; the shift may be on a GPU."""
    for axis in (0, 1):
        n = x.shape[2 + axis]
        x = x.index_select(2 + axis, (torch.arange(n, device=x.device) - shift[axis]) % n)
    return x


class Causal(nn.Module):
    """Predicts every vector from those before it in raster order, (B, D, h, w) -> same shape.

    A 7x7 convolution that sees the rows above and the left of its own row, SiLU, a 1x1 convolution.
    """

    def __init__(self, D: int, width: int = 64):
        super().__init__()
        self.conv, self.out = nn.Conv2d(D, width, 7, padding=3), nn.Conv2d(width, D, 1)
        seen = torch.ones(7, 7)
        seen[3, 3:], seen[4:] = 0, 0
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.conv.weight * self.seen, self.conv.bias, padding=3)
        return self.out(F.silu(y))
