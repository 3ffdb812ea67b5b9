"""What the presets cost: operations of a training, counted; `python -m tevq.bench.cost` writes a table.

Matrix products and convolutions are counted by `torch.utils.flop_counter` on one real step with a
batch of one, forward and backward; normalisation, activations and optimizers are left out.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from tevq import presets
from tevq.config import Settings, Stage1Config, Stage2Config
from tevq.data.source import class_names
from tevq.data.tokenizer import Tokenizer
from tevq.models import losses
from tevq.models.classifier import Classifier
from tevq.models.quantizer import orthogonality
from tevq.models.transformer import DIRECTIONS, Transformer
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.storage import write_atomically

H200_BFLOAT16 = 989e12  # operations per second, dense (NVIDIA's data sheet)
SHARE = 0.4  # of it that a training may reach; an assumption until somebody measures it
RESULT = devices.ROOT / "results" / "cost.csv"


def count(step) -> float:
    """Floating-point operations of `step()`; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def stage1(settings: Settings) -> float:
    """Operations per training image, the discriminator's share included (mean over all steps)."""
    s = settings.stage1
    model, x = VQGAN(s), torch.rand(1, 3, 64, 64) * 2 - 1
    perceptual = _perceptual(settings)

    def generator() -> torch.Tensor:
        y, quantized = model(x)
        loss = (x - y).abs().mean() + perceptual(x, y)
        loss = loss + quantized.codebook_loss + s.beta * quantized.commitment_loss
        if s.orthogonality:
            loss = loss + orthogonality(model.quantizer.codebook) * s.orthogonality / s.batch
        loss.backward()
        return y.detach()

    return count(generator) + _adversarial(s, x) * max(0.0, 1 - s.disc_start / s.steps)


def _perceptual(settings: Settings) -> losses.Perceptual:
    """The perceptual distance of a preset with random weights: they cost as much."""
    if settings.stage1.perceptual == "classifier":
        evaluator = Classifier(settings.classifier.width).eval().requires_grad_(False)
        return losses.feature_distance(evaluator)
    import lpips

    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    return lambda x, y: model.requires_grad_(False)(x, y).mean()


def _adversarial(s: Stage1Config, x: torch.Tensor) -> float:
    """Operations per image that the discriminator adds: three passes, forward and backward."""
    discriminator = losses.PatchDiscriminator(s.disc_channels, s.disc_layers)
    y = x.clone().requires_grad_()

    def step() -> None:
        discriminator(y).mean().backward()
        losses.hinge_loss(discriminator(x), discriminator(x)).backward()

    return count(step) if s.disc_weight else 0.0


def stage2(settings: Settings) -> float:
    """Operations per training sequence, mean over the steps in both directions."""
    s: Stage2Config = settings.stage2
    tokenizer = Tokenizer(class_names(settings.data.source))
    grid = 64 // settings.stage1.stride
    model = Transformer(tokenizer.size, settings.stage1.codes, tokenizer.length, grid, s.dim,
                        s.depth, s.heads, s.head_dim, window=s.window, neighbours=s.neighbours)
    text = torch.full((1, tokenizer.length), 5)
    codes = torch.zeros(1, grid, grid, dtype=torch.long)
    painting, describing = (count(lambda d=d: model.loss(text, codes, d).total.backward())
                            for d in DIRECTIONS)
    share = {"both": s.t2i_share, "t2i": 1.0, "i2t": 0.0}[s.directions]
    return share * painting + (1 - share) * describing


@dataclass(frozen=True)
class Cost:
    """One training of a preset."""

    preset: str
    stage: str
    samples: int  # images or sequences
    per_sample: float  # operations

    @property
    def total(self) -> float:
        """Operations of the whole training."""
        return self.samples * self.per_sample

    @property
    def gpu_hours(self) -> float:
        """Extrapolated: hours of one H200 at SHARE of its rate."""
        return self.total / (SHARE * H200_BFLOAT16) / 3600


def costs(names: tuple[str, ...] = ("laptop", "gpu", "paper")) -> list[Cost]:
    """Both stages of the presets, variant te."""
    found = []
    for name in names:
        s = presets.load(name, "te", 0)
        images = s.stage1.batch * (s.stage1.steps + s.stage1.warmup_steps)
        found += [Cost(name, "stage1", images, stage1(s)),
                  Cost(name, "stage2", s.stage2.batch * s.stage2.steps, stage2(s))]
    return found


def as_csv(found: list[Cost]) -> bytes:
    """One line per training; the last columns are extrapolated with H200_BFLOAT16 and SHARE."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["preset", "stage", "samples", "gflop_per_sample", "pflop", "h200_hours",
                     "assumed_share"])
    writer.writerows([c.preset, c.stage, c.samples, f"{c.per_sample / 1e9:.4g}",
                      f"{c.total / 1e15:.4g}", f"{c.gpu_hours:.3g}", SHARE] for c in found)
    return text.getvalue().encode()


if __name__ == "__main__":
    write_atomically(RESULT, as_csv(costs()))
