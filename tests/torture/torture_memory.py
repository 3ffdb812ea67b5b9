"""Resident memory after 200 and after 2,000 steps of each stage."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# 5 saves in the first 200 steps as in the last 200, so that a save is part of what is measured
SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[3])
import psutil, torch
from small import FEATURES, tiny
from tevq.train import loop, stage1, stage2
torch.set_num_threads(1)
stage1.KMEANS_VECTORS = FEATURES
stage, results = sys.argv[1], sys.argv[2]
s = tiny(**{f"{stage}.steps": 2001, "stage1.disc_start": 50, "stage2.probe_every": 100})
if stage == "stage2":
    stage1.train(s, results)
steps = loop.Loop.__iter__
def watched(self):
    for step in steps(self):
        yield step
        if step % 40 == 39:
            self.save(step + 1)
        if step + 1 in (200, 2000):
            print("resident", step + 1, psutil.Process().memory_info().rss, flush=True)
loop.Loop.__iter__ = watched
{"stage1": stage1, "stage2": stage2}[stage].train(s, results)
"""


@pytest.mark.promise("memory")
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_memory_does_not_grow(tmp_path, stage, record_property):
    """Planted fault: the losses of all steps are kept, with their graphs."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, stage, str(tmp_path), str(Path(__file__).parents[1])],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    # behind a line of progress, which has no end
    early, late = map(int, re.findall(r"resident \d+ (\d+)", done.stdout))
    change = late / early - 1
    assert abs(change) <= 0.02, f"{early / 1e6:.0f} MB became {late / 1e6:.0f} MB"
    record_property("measured", f"{stage}: {early / 1e6:.0f} MB after 200 steps, "
                    f"{change:+.2%} after 2,000")
