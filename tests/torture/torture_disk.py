"""A disk that really fills up in the middle of the study, and is then made larger."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from torture_study import SETTINGS, command, environment

from tevq import graph, selftest
from tevq.grid import choose
from tevq.runs.run import open_run


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of its own; `resize(MiB)` changes its size."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
                          capture_output=True)
    if os.getuid() or made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place, lambda size: subprocess.run(
        ["mount", "-o", f"remount,size={size}m", str(place)], check=True)
    subprocess.run(["umount", "-l", str(place)], check=True)


def run(results: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*command(results), "--variants", "te", *SETTINGS, "--notebooks", "01,03"],
        cwd=graph.ROOT, env=environment(), capture_output=True, text=True)


@pytest.mark.promise("saves")
def test_a_full_disk_costs_nothing_that_was_computed(small_disk, tmp_path, record_property):
    """Planted fault: OSError as it comes; the summary then shows no advice."""
    place, resize = small_disk
    sizes, said = [1, 2, 3, 4, 6, 8], []
    for size in sizes:  # every time a bit further, as somebody would who deletes a file or two
        resize(size)
        done = run(place)
        said.append(done.stdout + done.stderr)
        if done.returncode == 0:
            break
        assert "Traceback" not in said[-1]
    resize(200)
    assert run(place).returncode == 0, said[-1]
    assert any("StorageError: cannot write" in text and "make room" in text for text in said)
    whole = tmp_path / "whole"
    assert run(whole).returncode == 0
    grid = choose("smoke", "te", "0", "", selftest.TINY, str(whole))
    names = [sorted(path.name for path in
                    (open_run(grid.cell("te", 0), "stage1", results).folder / "state").iterdir())
             for results in (place, whole)]
    assert names[0] == names[1] and len(names[0]) >= 1  # the names hold the hash of the content
    record_property("measured", f"{len(said)} runs on a full disk, then the same weights")
