"""Every byte of every kind of file: flipped, and cut off after it."""

import random

import pytest
import torch

from tevq import presets
from tevq.runs.run import open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree


def damages(content: bytes):
    """Every single-byte change (one random bit), then every truncation."""
    random.seed(0)
    for i in range(len(content)):
        flipped = bytearray(content)
        flipped[i] ^= 1 << random.randrange(8)
        yield bytes(flipped)
    for length in range(len(content)):
        yield content[:length]


@pytest.mark.promise("damage")
@pytest.mark.parametrize("kind", ["checkpoint", "codes"])
def test_checkpoints_and_codes(tmp_path, kind, record_property):
    """Planted fault: no checksum; most flips inside a tensor then go unseen."""
    tree = (torch.arange(160, dtype=torch.uint8).view(10, 4, 4) if kind == "codes" else
            {"step": 3, "state": {"w": torch.randn(40), "lr": 0.1, "moments": [torch.ones(3)]}})
    path = save_tree(tmp_path, kind, tree)
    count = 0
    for damaged in damages(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            load_tree(path)
        count += 1
    record_property("measured", f"{kind}: {count:,} damages noticed")


@pytest.mark.promise("damage")
def test_a_run_goes_back_to_the_checkpoint_before(tmp_path, capsys, record_property):
    """Planted fault: the newest file is believed."""
    run = open_run(presets.load("smoke", "te", 0), "stage1", tmp_path)
    for step in (1, 2):
        run.save(step, {"x": torch.full((3,), float(step))})
    newest = run._checkpoints()[0]
    count = 0
    for damaged in damages(newest.read_bytes()):
        newest.write_bytes(damaged)
        step, state = run.latest()
        assert step == 1 and state["x"].tolist() == [1.0] * 3
        assert "going back to the one before" in capsys.readouterr().out
        count += 1
    record_property("measured", f"{count:,} fallbacks")
