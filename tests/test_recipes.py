"""The worked examples of tevq/README.md run, one after the other, and what they add is usable."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from small import FEATURES, TINY

from tevq import presets
from tevq.config import ROOT
from tevq.models import quantizer, vqgan
from tevq.train import stage1

CLASSES = ("alpha", "beta", "delta", "gamma")


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Runs all Python blocks in one namespace; what they add is taken away again."""
    entries = vqgan.DOWNSAMPLERS, quantizer.QUANTIZERS, presets.VARIANTS
    before = [dict(entry) for entry in entries]
    monkeypatch.setenv("TEVQ_DATA", str(tmp_path))
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 4)):
        for name in CLASSES:
            folder = tmp_path / "letters" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                ink = np.pad(random.integers(100, 255, (20, 20), np.uint8), 4)
                Image.fromarray(ink).save(folder / f"{i}.png")
    text = (ROOT / "tevq" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    space: dict = {}
    for block in blocks:
        exec(compile(block, "tevq/README.md", "exec"), space)
    yield blocks
    for entry, own in zip(entries, before, strict=True):
        for name in entry.keys() - own.keys():
            del entry[name]


def test_the_recipes_run_and_train(recipes, tmp_path, monkeypatch):
    assert len(recipes) >= 6
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", FEATURES)
    for variant in ("ap", "sg"):
        own = presets.VARIANTS[variant].settings
        settings = presets.load("smoke", variant, 0,
                                {name: value for name, value in TINY.items() if name not in own})
        run = stage1.train(settings, tmp_path / "results")
        assert run.done and f"-{variant}-s0-" in run.name
    model = vqgan.load(settings, tmp_path / "results")
    codes = torch.arange(256).view(1, 16, 16)
    assert torch.equal(model.quantizer.nearest(model.quantizer.lookup(codes)), codes)
