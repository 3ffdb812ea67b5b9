"""Trains the digit and colour classifier, once per preset and source."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tevq.config import Settings
from tevq.data import scenes
from tevq.data.source import SourceImages
from tevq.models.classifier import Classifier, build
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.train.loop import Loop


def train(settings: Settings, results=None) -> Run:
    """Trains the classifier on the source's train items, or finds it trained; returns its run.

    The summary holds `label_accuracy` and `colour_accuracy` on all test items in every colour.
    """
    run = open_run(settings, "classifier", results)
    with run.lock():
        if not run.has_weights:
            _train(run, settings)
    return run


def _train(run: Run, settings: Settings) -> None:
    s, where = settings.classifier, devices.detect(settings.precision)
    items = scenes.load_items(settings.data, "train")
    run.start(where, source=items.sha256())
    devices.seed_everything(0)
    model = build(settings).to(where.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.01)
    loop = Loop(run, {"model": model, "optimizer": optimizer}, s.steps)
    for step in loop:
        random = devices.generator(settings.data.seed, step)
        torch.manual_seed(step)  # dropout is a function of the step too
        index = torch.randint(len(items.labels), (s.batch,), generator=random)
        crops, colour = training_crops(items, index, random)
        for group in optimizer.param_groups:
            group["lr"] = s.lr * one_cycle(step / s.steps)
        with where.autocast():
            crops = crops.to(where.device, memory_format=torch.channels_last, non_blocking=True)
            logits = model(crops)  # of labels and of colours
        truths = (t.to(where.device, non_blocking=True) for t in (items.labels[index], colour))
        loss = sum(F.cross_entropy(a.float(), b) for a, b in zip(logits, truths, strict=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loop.see(loss)
        optimizer.step()
        if (step + 1) % 100 == 0:
            run.log(step + 1, loss=loss.item())
    summary = accuracy(model.eval(), scenes.load_items(settings.data, "test"), where)
    run.finish(summary | {"seconds": loop.seconds, "items": s.steps * s.batch},
               model.state_dict())


def training_crops(items: SourceImages, index: torch.Tensor, random: torch.Generator,
                   shift: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Items drawn in random colours and shifted by up to `shift` pixels each way.

    index (B,) -> crops (B, 3, s, s) in [-1, 1], colours (B,).
    """
    B = len(index)
    colour = torch.randint(len(scenes.COLOURS), (B,), generator=random)
    offset = torch.randint(-shift, shift + 1, (B, 2), generator=random)
    return _crops(items, index, colour, offset), colour


def _crops(items: SourceImages, index: torch.Tensor, colour: torch.Tensor, offset: torch.Tensor
           ) -> torch.Tensor:
    """Items at index (B,), coloured, offset (B, 2) px from the upper left: (B, 3, s, s)."""
    B, images = len(index), items.images[index]
    corner = torch.tensor(scenes.offsets(scenes.scene_size(images.shape[-1]))[0])
    x = scenes.draw(images, colour, corner + offset, torch.arange(B), B)
    return scenes.crop(x, torch.zeros(B, dtype=torch.long))


def one_cycle(progress: float, warm: float = 0.15) -> float:
    """Share of the peak learning rate: linear rise, then cosine to zero; `progress` in [0, 1)."""
    if progress < warm:
        return max(progress / warm, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def accuracy(model: Classifier, items: SourceImages, where: devices.Device) -> dict[str, float]:
    """Share of items whose label, and whose colour, is recognised; every item in all colours."""
    right_labels = right_colours = seen = 0
    for index in torch.arange(len(items.labels)).split(500):
        for colour in range(len(scenes.COLOURS)):
            offset = torch.zeros(len(index), 2, dtype=torch.long)
            crops = _crops(items, index, torch.full((len(index),), colour), offset)
            labels, colours = model.predict(crops.to(where.device))
            right_labels += (labels.cpu() == items.labels[index]).sum().item()
            right_colours += (colours == colour).sum().item()
            seen += len(index)
    return {"label_accuracy": right_labels / seen, "colour_accuracy": right_colours / seen,
            "n": seen}
