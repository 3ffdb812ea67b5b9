"""Does bfloat16 train as well as float32? The same short trainings in both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from tevq import presets
from tevq.bench.stage2 import our_model
from tevq.config import Settings
from tevq.data import scenes
from tevq.data.source import load_source
from tevq.evaluate.evaluator import encode_scenes
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.devices import Device
from tevq.train import stage2
from tevq.train.stage1 import Learner

LAST = 10  # steps whose mean loss counts
SCENES = 1_000
DTYPES = (torch.float32, torch.bfloat16)


def compare(steps: int, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Rows stage, precision, seed, loss (mean of the last steps); networks of preset smoke."""
    settings = presets.load("smoke", "te")
    device = devices.detect().device
    items = load_source("digits", "train")
    data = dataclasses.replace(settings.data, train=SCENES)
    found = scenes.build(data, "train", items.labels.numpy())
    rows = []
    for seed in seeds:
        for dtype in DTYPES:
            where = Device(device, dtype)
            both = {"stage1": _stage1, "stage2": _stage2}
            for stage, train in both.items():
                devices.seed_everything(seed)
                losses = train(settings, where, found, items.to(device), steps, seed)
                rows.append({"stage": stage, "precision": where.precision,
                             "seed": seed, "loss": float(np.mean(losses[-LAST:]))})
    return rows


def _index(step: int, batch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, step)).integers(SCENES, size=batch)


def _stage1(settings: Settings, where: Device, found, items, steps: int, seed: int) -> list[float]:
    """L1 of a quantizer on scenes, every step."""
    learner = Learner(settings.stage1, where, lambda x, y: x.new_zeros(()))
    losses = []
    for step in range(steps):
        x = scenes.render(found, items, _index(step, settings.stage1.batch, seed))
        numbers, _, _ = learner.generator_step(x.contiguous(memory_format=torch.channels_last))
        losses.append(numbers["l1"].item())
    return losses


def _stage2(settings: Settings, where: Device, found, items, steps: int, seed: int) -> list[float]:
    """Loss of a generator on the codes of a fixed random quantizer, every step."""
    model = VQGAN(settings.stage1).to(where.device, memory_format=torch.channels_last)
    codes = encode_scenes(model, found, items, Device(where.device, torch.float32))
    text = torch.from_numpy(found.caption.astype(np.int64))
    devices.seed_everything(seed)
    generator = our_model(settings.stage2, text.shape[1], where)
    optimizers = stage2.build_optimizers(generator, settings.stage2)
    losses = []
    for step in range(steps):
        index = _index(step, settings.stage2.batch, seed)
        batch = (t[index].long().to(where.device) for t in (text, codes))
        direction = ("t2i", "i2t")[step % 2]
        numbers = stage2.update(generator, optimizers, settings.stage2, *batch, direction)
        losses.append(float(numbers["loss"]))
    return losses
