"""Stage-1 losses besides the quantizer's own: perceptual distance and PatchGAN (VQGAN, 2021)."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tevq.config import SettingsError
from tevq.models.classifier import Classifier

Perceptual = Callable[[Tensor, Tensor], Tensor]
VGG_FILE = "vgg16-397923af.pth"  # torchvision's name for the ImageNet weights LPIPS needs


def perceptual_loss(name: str, classifier: Classifier | None, device) -> Perceptual:
    """The perceptual distance called `name`: "classifier" or "lpips-vgg"."""
    return lpips_vgg(device) if name == "lpips-vgg" else feature_distance(classifier)


def feature_distance(classifier: Classifier) -> Perceptual:
    """LPIPS-like distance in the features of our own frozen digit classifier.

    Per level: features scaled to unit length over channels, squared difference summed over
    channels, mean over positions (Zhang et al. 2018, equation 1 with weights 1). Needs no download.
    """

    def distance(x: Tensor, y: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> mean distance, scalar."""
        with torch.no_grad():
            wanted = classifier.features(x)
        return sum(map(_unit_difference, wanted, classifier.features(y)))

    return distance


def _unit_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean over positions of |a/|a| - b/|b||^2 = |u|^2 + |v|^2 - 2 u.v, without storing u and v."""
    a, b = a.float(), b.float()
    aa, bb, ab = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)  # (B, H, W)
    safe_a, safe_b = aa + 1e-6, bb + 1e-6
    return (aa / safe_a + bb / safe_b - 2 * ab * (safe_a * safe_b).rsqrt()).mean()


def lpips_vgg(device: torch.device | str) -> Perceptual:
    """LPIPS with VGG-16 through the lpips package, frozen and in evaluation mode.

    Raises SettingsError when the VGG-16 weights are damaged, or absent and not to be downloaded.
    """
    import lpips  # only here: the training path must import without it

    file = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    try:
        model = lpips.LPIPS(net="vgg", verbose=False)
    except (OSError, EOFError, RuntimeError) as error:
        raise SettingsError(
            f"LPIPS needs {file}, which is absent or damaged ({error}); put a whole one "
            "there, or use stage1.perceptual=classifier, which works offline") from None
    model = model.to(device).eval().requires_grad_(False)
    # train() on a parent must not switch LPIPS' dropout on again, so it is no submodule of ours
    return lambda x, y: model(x, y).mean()


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017) as in VQGAN: 4x4 convolutions, batch norm, leaky ReLU.

    (B, 3, H, W) -> logits (B, 1, h', w'), positive for real.
    """

    def __init__(self, channels: int, layers: int):
        width, modules = channels, [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            out, stride = channels * min(2**layer, 8), 2 if layer < layers else 1
            modules += [nn.Conv2d(width, out, 4, stride, 1, bias=False), nn.BatchNorm2d(out),
                        nn.LeakyReLU(0.2)]
            width = out
        super().__init__(*modules, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self:
            if not isinstance(module, nn.LeakyReLU):
                mean = 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0
                nn.init.normal_(module.weight, mean, 0.02)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss from its logits for real and reconstructed patches."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """VQGAN's balance: ratio of the two losses' gradient norms at the decoder's last layer.

    Clamped to [0, 10,000]; a constant for the backward pass.
    """
    wanted, added = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
                     for loss in (reconstruction, adversarial))
    return (wanted / (added + 1e-4)).clamp(0, 1e4).detach()
