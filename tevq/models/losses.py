"""Stage-1 losses besides the quantizer's own: perceptual distance and PatchGAN (VQGAN, 2021)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from tevq.config import SettingsError
from tevq.models.classifier import Classifier

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
VGG_FILE = "vgg16-397923af.pth"  # torchvision's name for the ImageNet weights LPIPS needs


def perceptual_loss(name: str, classifier: Classifier | None, device) -> Perceptual:
    """The perceptual distance called `name`: "classifier" or "lpips-vgg"."""
    return lpips_vgg(device) if name == "lpips-vgg" else feature_distance(classifier)


def feature_distance(classifier: Classifier) -> Perceptual:
    """LPIPS-like distance in the features of our own frozen digit classifier.

    Per level: features scaled to unit length over channels, squared difference summed over
    channels, mean over positions (Zhang et al. 2018, equation 1 with weights 1). Needs no download.
    """

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> mean distance, scalar."""
        with torch.no_grad():
            wanted = classifier.features(x)
        return sum(_unit_difference(a, b) for a, b in zip(
            wanted, classifier.features(y), strict=True))

    return distance


def _unit_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean over positions of |a/|a| - b/|b||^2 = |u|^2 + |v|^2 - 2 u.v, without storing u and v."""
    a, b = a.float(), b.float()
    aa, bb, ab = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)  # (B, H, W)
    safe_a, safe_b = aa + 1e-6, bb + 1e-6
    return (aa / safe_a + bb / safe_b - 2 * ab * (safe_a * safe_b).rsqrt()).mean()


def lpips_vgg(device: torch.device | str) -> Perceptual:
    """LPIPS with VGG-16 through the lpips package, frozen and in evaluation mode.

    Raises SettingsError when the VGG-16 weights are absent and cannot be downloaded.
    """
    import lpips  # only here: the training path must import without it

    file = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    try:
        model = lpips.LPIPS(net="vgg", verbose=False)
    except OSError as error:
        raise SettingsError(
            f"LPIPS needs {file}, which is absent and could not be downloaded ({error}); put it "
            "there, or use stage1.perceptual=classifier, which works offline") from None
    model = model.to(device).eval().requires_grad_(False)
    # train() on a parent must not switch LPIPS' dropout on again, so it is no submodule of ours
    return lambda x, y: model(x, y).mean()


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017) as in VQGAN: 4x4 convolutions, batch norm, leaky ReLU.

    (B, 3, H, W) -> logits (B, 1, h', w'), positive for real.
    """

    def __init__(self, channels: int, layers: int):
        modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            out, stride = channels * min(2**layer, 8), 2 if layer < layers else 1
            modules += [nn.Conv2d(width, out, 4, stride, 1, bias=False), nn.BatchNorm2d(out),
                        nn.LeakyReLU(0.2)]
            width = out
        super().__init__(*modules, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Discriminator's loss from its logits for real and reconstructed patches."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor,
                    last_layer: torch.Tensor) -> torch.Tensor:
    """VQGAN's balance: ratio of the two losses' gradient norms at the decoder's last layer.

    Clamped to [0, 10,000]; a constant for the backward pass.
    """
    ours, = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    theirs, = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
