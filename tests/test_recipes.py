"""The worked examples of tevq/README.md run, one after the other, and what they add is usable."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import tiny

from tevq import presets
from tevq.models import quantizer, vqgan
from tevq.train import stage1

if not hasattr(presets, "complete"):
    pytest.skip("waits for variants as records", allow_module_level=True)
ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("alpha", "beta", "delta", "gamma")


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """Runs all Python blocks in one namespace; what they add is taken away again."""
    monkeypatch.setattr(vqgan, "DOWNSAMPLERS", dict(vqgan.DOWNSAMPLERS))
    for name, value in dict(quantizer.QUANTIZERS).items():  # vqgan holds the same dictionary
        monkeypatch.setitem(quantizer.QUANTIZERS, name, value)
    monkeypatch.setattr(presets, "VARIANTS", dict(presets.VARIANTS))
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
    quantizer.QUANTIZERS.pop("signs", None)


def test_the_recipes_run_and_train(recipes, tmp_path):
    assert len(recipes) >= 6
    for variant, changes in (("ap", {}), ("sg", {"stage1.codes": 16, "stage1.code_dim": 4})):
        run = stage1.train(tiny(variant, **changes), tmp_path / "results")
        assert run.done and f"-{variant}-s0-" in run.name
    model = vqgan.load(tiny("sg", **{"stage1.codes": 16, "stage1.code_dim": 4}),
                       tmp_path / "results")
    z = model.quantizer.lookup(torch.arange(16).view(1, 4, 4))
    assert torch.equal(model.quantizer.nearest(z), torch.arange(16).view(1, 4, 4))
