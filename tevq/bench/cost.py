"""What the presets cost: operations of a training. `python -m tevq.bench.cost` writes the table.

torch.utils.flop_counter counts the matrix products and convolutions of one real step with a batch
of one, forward and backward. Normalisation, activations and optimizers are left out.
"""

import pandas as pd
import torch

from tevq import presets
from tevq.bench.timing import count
from tevq.config import Settings
from tevq.models import losses, transformer
from tevq.models.classifier import Classifier
from tevq.runs.devices import ROOT, Device
from tevq.runs.storage import write_atomically
from tevq.train.stage1 import Learner

H200_BFLOAT16 = 989e12  # operations per second, dense (NVIDIA's data sheet)
SHARE = 0.4  # of it that a training may reach; an assumption until somebody measures it
RESULT = ROOT / "results" / "cost.csv"
CPU = Device(torch.device("cpu"), torch.float32)


def perceptual(settings: Settings) -> losses.Perceptual:
    """The perceptual distance of a preset with random weights: they cost as much."""
    if settings.stage1.perceptual == "classifier":
        network = Classifier(settings.classifier.width).eval().requires_grad_(False)
        return losses.feature_distance(network)
    import lpips

    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    return lambda x, y: model.requires_grad_(False)(x, y).mean()


def stage1(settings: Settings) -> float:
    """Operations per training image, the discriminator's share included (mean over all steps)."""
    s = settings.stage1
    learner, x = Learner(s, CPU, perceptual(settings)), torch.rand(1, 3, 64, 64) * 2 - 1
    plain = count(lambda: learner.update(x, False))
    share = max(0.0, 1 - s.disc_start / s.steps) if s.disc_weight else 0.0
    return plain + share * (count(lambda: learner.update(x, True)) - plain) if share else plain


def stage2(settings: Settings) -> float:
    """Operations per training sequence, mean over the steps in both directions."""
    s, model = settings.stage2, transformer.build(settings)
    text, codes = torch.full((1, model.L), 5), torch.zeros(1, model.h, model.h, dtype=torch.long)
    painting, describing = (count(lambda d=d: model.loss(text, codes, d).total.backward())
                            for d in transformer.DIRECTIONS)
    share = {"both": s.t2i_share, "t2i": 1.0, "i2t": 0.0}[s.directions]
    return share * painting + (1 - share) * describing


def table(names: tuple[str, ...] = ("laptop", "gpu", "plain", "paper")) -> pd.DataFrame:
    """A row for each training of a preset, variant te; `h200_hours` are extrapolated."""
    rows = []
    for s in (presets.load(name, "te", 0) for name in names):
        images = s.stage1.batch * (s.stage1.steps + s.stage1.warmup_steps)
        rows += [(s.preset, "stage1", images, stage1(s)),
                 (s.preset, "stage2", s.stage2.batch * s.stage2.steps, stage2(s))]
    found = pd.DataFrame(rows, columns=["preset", "stage", "samples", "gflop_per_sample"])
    found.gflop_per_sample /= 1e9
    found["pflop"] = found.samples * found.gflop_per_sample / 1e6
    found["h200_hours"] = found.pflop * 1e15 / (SHARE * H200_BFLOAT16) / 3600
    return found.assign(assumed_share=SHARE)


if __name__ == "__main__":
    write_atomically(RESULT, table().to_csv(index=False, float_format="%.4g").encode())
