"""Jobs on data, and how steps grow with the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from tevq.bench import timing as bench
from tevq.bench.limits import limit
from tevq.bench.stage1 import learner_step
from tevq.bench.stage2 import our_step
from tevq.bench.timing import OURS, Contender, Work
from tevq.config import DataConfig, Settings
from tevq.data import scenes
from tevq.data.source import load_source
from tevq.evaluate import evaluator
from tevq.models.vqgan import VQGAN
from tevq.runs.devices import Device

SOURCE = "digits"  # what a scene costs does not depend on what is drawn
RENDERED = 1_000  # scenes of one call


def building(name: str, count: int) -> Work:
    """Scenes with captions, made from nothing, as notebook 01 does."""
    data = DataConfig(source=SOURCE, train=count, val=5, test=5)
    labels = load_source(SOURCE, "train").labels.numpy()
    return Work(name, "scenes", [
        Contender(OURS, lambda: scenes.build(data, "train", labels), count)])


def rendering(name: str, where: Device, count: int = RENDERED) -> Work:
    """Stored scenes -> images (B, 3, 64, 64), against one scene at a time with torch operations."""
    items, found = _scenes(count, where)
    index = np.arange(count)
    few = index[: max(1, count // 20)]

    def one_by_one() -> torch.Tensor:
        return torch.cat([scenes.render(found, items, index[i: i + 1]) for i in few])

    return Work(name, "images", [
        Contender(OURS, lambda: scenes.render(found, items, index), count),
        Contender("one scene at a time", one_by_one, len(few))])


def encoding(name: str, settings: Settings, where: Device, count: int, bar: float = 3.0) -> Work:
    """Scenes -> codes, against our own Stage-1 training step."""
    s = dataclasses.replace(settings.stage1, disc_weight=0.0)
    model = VQGAN(s).to(where.device, memory_format=torch.channels_last).eval()
    items, found = _scenes(count, where)
    step, _ = learner_step(s, where, s.batch, lambda x, y: x.new_zeros(()))
    label = "our Stage-1 training step"
    return Work(name, "images", [
        Contender(OURS, lambda: evaluator.encode_scenes(model, found, items, where), count,
                  limit=limit("conv", where)),
        Contender(label, step, s.batch, limit=limit("conv", where))], {label: bar})


def growth(settings: Settings, length: int, where: Device, batches: Iterable[int],
           repeats: int = 3) -> list[dict[str, Any]]:
    """Time and peak memory per sample against the batch: Stage-1 and Stage-2 training steps."""
    s = dataclasses.replace(settings.stage1, disc_weight=0.0)
    rows = []
    for size in batches:
        steps = {"stage1": learner_step(s, where, size, lambda x, y: x.new_zeros(()))[0],
                 "stage2": our_step(settings.stage2, length, where, size)[0]}
        for name, step in steps.items():
            step()
            seconds = sorted(bench.seconds_of(step) for _ in range(repeats))[repeats // 2]
            rows.append({"step": name, "batch": size, "ms_per_sample": 1e3 * seconds / size,
                         "mb_per_sample": bench.peak_memory(step) / size / 2**20})
    return rows


def _scenes(count: int, where: Device) -> tuple[Any, Any]:
    items = load_source(SOURCE, "train")
    found = scenes.build(DataConfig(source=SOURCE, train=count, val=5, test=5), "train",
                         items.labels.numpy())
    return items.to(where.device), found
