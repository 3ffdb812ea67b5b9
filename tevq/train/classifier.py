"""Trains the digit and colour classifier, once per preset and source."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tevq.config import Settings
from tevq.data import render, scenes
from tevq.data.source import SourceImages
from tevq.models.classifier import Classifier, build
from tevq.runs import devices
from tevq.runs.run import Run, open_run
from tevq.train.loop import Loop, interruptible

LOG_EVERY = 100  # steps between lines of metrics.jsonl
SHIFT = 2  # px that training items are moved at most, each way


def train(settings: Settings, results=None) -> Run:
    """Trains the classifier on the source's train items, or finds it trained; returns its run.

    The summary holds `label_accuracy` and `colour_accuracy` on all test items in every colour.
    """
    run = open_run(settings, "classifier", results)
    with run.lock(), interruptible():
        if not run.has_weights:
            _train(run, settings)
    return run


def _train(run: Run, settings: Settings) -> None:
    s, where = settings.classifier, devices.detect(settings.precision)
    items = scenes.load_items(settings.data, "train")
    run.start(where, source=items.sha256())
    devices.seed_everything(s.seed)
    model = build(settings).to(where.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, weight_decay=0.01)
    loop = Loop(run, {"model": model, "optimizer": optimizer}, s.steps)
    for step in loop:
        random = devices.generator(s.seed, step)
        torch.manual_seed(step)  # dropout is a function of the step too
        index = torch.randint(len(items.labels), (s.batch,), generator=random)
        colour = torch.randint(len(scenes.COLOURS), (s.batch,), generator=random)
        shift = torch.randint(-SHIFT, SHIFT + 1, (s.batch, 2), generator=random)
        optimizer.param_groups[0]["lr"] = s.lr * one_cycle(step / s.steps)
        with where.autocast():
            x = crops(items, index, colour, shift).to(
                where.device, memory_format=torch.channels_last, non_blocking=True)
            logits = model(x)  # of labels and of colours
        truths = (t.to(where.device, non_blocking=True) for t in (items.labels[index], colour))
        loss = sum(F.cross_entropy(a.float(), b) for a, b in zip(logits, truths, strict=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loop.watch(loss)
        optimizer.step()
        if (step + 1) % LOG_EVERY == 0:
            loop.log(loss=loss)
    summary = accuracy(model.eval(), scenes.load_items(settings.data, "test"), where)
    run.finish(summary | {"seconds": loop.seconds, "items": s.steps * s.batch}, model.state_dict())


def crops(items: SourceImages, index: Tensor, colour: Tensor, shift: Tensor) -> Tensor:
    """Items drawn in colours and moved by `shift` px down and right, as crops of scenes.

    index (B,), colour (B,), shift (B, 2) -> (B, 3, s, s) in [-1, 1].
    """
    B, images = len(index), items.images[index]
    corner = torch.tensor(render.offsets(render.scene_size(images.shape[-1]))[0])
    x = render.draw(images, colour, corner + shift, torch.arange(B), B)
    return render.crop(x, torch.zeros(B, dtype=torch.long))


def one_cycle(progress: float, warm: float = 0.15) -> float:
    """Share of the peak learning rate: linear rise, then cosine to zero; `progress` in [0, 1)."""
    if progress < warm:
        return max(progress / warm, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def accuracy(model: Classifier, items: SourceImages, where: devices.Device) -> dict[str, float]:
    """Share of items whose label, and whose colour, is recognised; every item in all colours."""
    right_labels = right_colours = 0
    index = torch.arange(len(items.labels))
    for part in index.split(500):
        for colour in range(len(scenes.COLOURS)):
            x = crops(items, part, torch.full_like(part, colour), part.new_zeros(len(part), 2))
            labels, colours = model.predict(x.to(where.device))
            right_labels += (labels.cpu() == items.labels[part]).sum().item()
            right_colours += (colours == colour).sum().item()
    n = len(index) * len(scenes.COLOURS)
    return {"label_accuracy": right_labels / n, "colour_accuracy": right_colours / n, "n": n}
