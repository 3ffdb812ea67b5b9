"""Digit and colour classifier: reads generated images, and lends its features to the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tevq.config import Settings, SettingsError
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

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B, 3, s, s) in [-1, 1] -> logits of labels (B, classes) and colours (B, 4)."""
        pooled = self.dropout(self.features(crops)[-1].amax((2, 3)))
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

        self.body = resnet18(weights=None)
        inputs, self.body.fc = self.body.fc.in_features, nn.Identity()
        self.label_head, self.colour_head = nn.Linear(inputs, classes), nn.Linear(inputs, colours)

    def forward(self, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Classifier.forward`."""
        pooled = self.body(crops)  # (B, 512)
        return self.label_head(pooled), self.colour_head(pooled)


def build(settings: Settings) -> Classifier:
    """A new classifier with a label for every class of the item source."""
    classes = len(class_names(settings.data.source))
    if settings.classifier.architecture == "resnet18":
        return ResNet18(classes)
    return Classifier(settings.classifier.width, classes)


def load(settings: Settings, results=None, device: torch.device | str = "cpu") -> Classifier:
    """The trained classifier of a preset, frozen, in evaluation mode.

    Raises SettingsError if there is none.
    """
    run = open_run(settings, "classifier", results)
    if not run.has_weights:
        raise SettingsError(f"no trained classifier in {run.folder}; run notebook 03 first")
    model = build(settings)
    model.load_state_dict(run.weights())
    return model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
