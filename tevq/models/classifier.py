"""Digit and colour classifiers: they read generated images; one lends its features to the loss."""

import dataclasses

import torch
from torch import Tensor, nn

from tevq.config import Settings
from tevq.data.captions import COLOURS
from tevq.data.source import class_names
from tevq.runs.run import open_run


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                         nn.BatchNorm2d(channels_out), nn.ReLU())


class Classifier(nn.Module):
    """Small convolutional network with a label head and a colour head."""

    def __init__(self, width: int, classes: int = 10, colours: int = len(COLOURS)):
        super().__init__()
        w = width
        self.stages = nn.ModuleList([
            nn.Sequential(_block(3, w), _block(w, w)),
            nn.Sequential(nn.MaxPool2d(2), _block(w, 2 * w), _block(2 * w, 2 * w)),
            nn.Sequential(nn.MaxPool2d(2), _block(2 * w, 4 * w), _block(4 * w, 4 * w))])
        self.dropout = nn.Dropout(0.3)
        self.label_head, self.colour_head = nn.Linear(4 * w, classes), nn.Linear(4 * w, colours)

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1], H and W >= 4 -> features at 1, 1/2, 1/4 of the size."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def pooled(self, crops: Tensor) -> Tensor:
        """crops (B, 3, s, s) in [-1, 1] -> what the heads see (B, C)."""
        return self.features(crops)[-1].amax((2, 3))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B, 3, s, s) in [-1, 1] -> logits of labels (B, classes) and colours (B, 4)."""
        pooled = self.dropout(self.pooled(crops))
        return self.label_head(pooled), self.colour_head(pooled)

    @torch.no_grad()
    def predict(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B, 3, s, s) in [-1, 1] -> labels (B,), colours (B,), in float32."""
        labels, colours = self(crops)
        return labels.argmax(1), colours.argmax(1)


class ResNet18(Classifier):
    """The official classifier: torchvision's ResNet-18 from scratch; the paper gives it 99.5 %.

    The same two heads; it lends no features.
    """

    def __init__(self, classes: int = 10, colours: int = len(COLOURS)):
        nn.Module.__init__(self)  # nothing of the small network
        from torchvision.models import resnet18  # only here: a second that others need not wait

        self.body, self.dropout = resnet18(weights=None), nn.Identity()
        inputs, self.body.fc = self.body.fc.in_features, nn.Identity()
        self.label_head, self.colour_head = nn.Linear(inputs, classes), nn.Linear(inputs, colours)

    def pooled(self, crops: Tensor) -> Tensor:
        """As `Classifier.pooled`, (B, 512)."""
        return self.body(crops)


class Residual(Classifier):
    """Small residual network, the second judge: strides and means where the first has maxima."""

    def __init__(self, width: int, classes: int = 10, colours: int = len(COLOURS)):
        nn.Module.__init__(self)  # nothing of the small network
        w = width
        self.body = nn.Sequential(
            nn.Conv2d(3, w, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
            _Basic(w, w, 1), _Basic(w, 2 * w, 2), _Basic(2 * w, 4 * w, 2))
        self.dropout = nn.Dropout(0.3)
        self.label_head, self.colour_head = nn.Linear(4 * w, classes), nn.Linear(4 * w, colours)

    def pooled(self, crops: Tensor) -> Tensor:
        """As `Classifier.pooled`, (B, 4 width)."""
        return self.body(crops).mean((2, 3))


class _Basic(nn.Module):
    """relu(shortcut(x) + two convolutions of x), ResNet's basic block (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.first = _block(channels_in, channels_out)
        self.first[0].stride = (stride, stride)
        self.second = _block(channels_out, channels_out)[:2]  # its ReLU comes after the sum
        self.stride, self.shortcut = stride, nn.Identity() if channels_in == channels_out else (
            nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride), rounded up."""
        # strided by hand: oneDNN's own for 1x1 and few channels damages memory (its issue 6035)
        kept = x[..., :: self.stride, :: self.stride]
        return torch.relu(self.shortcut(kept) + self.second(self.first(x)))


def build(settings: Settings) -> Classifier:
    """A new classifier with a label for every class of the item source."""
    classes = len(class_names(settings.data.source))
    if settings.classifier.architecture == "resnet18":
        return ResNet18(classes)
    kind = Residual if settings.classifier.architecture == "residual" else Classifier
    return kind(settings.classifier.width, classes)


def second_judge(settings: Settings) -> Settings:
    """Settings of a judge apart: another network, trained in another order, unknown to Stage 1.

    To be trained as the first: `train.classifier.train(second_judge(settings))`.
    """
    first = settings.classifier
    return dataclasses.replace(settings, classifier=dataclasses.replace(
        first, architecture="residual", seed=first.seed + 1))


def load(settings: Settings, results=None, device: torch.device | str = "cpu") -> Classifier:
    """The trained classifier of a preset, frozen, in evaluation mode.

    Raises SettingsError if there is none.
    """
    run = open_run(settings, "classifier", results)
    return run.restore(build(settings), device, memory_format=torch.channels_last)
