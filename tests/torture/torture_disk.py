"""A disk that fills up while notebooks run, and is then made larger."""

import os
import subprocess
import sys
from pathlib import Path

import check
import pytest


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
    words = check.command(results, "--notebooks", "01,03", variants="te")
    return subprocess.run([sys.executable, *words], cwd=check.ROOT, env=check.environment(),
                          capture_output=True, text=True)


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
    names = [sorted(str(path.relative_to(results)) for path in
                    results.glob("smoke/runs/stage1/*/state/*.*")) for results in (place, whole)]
    assert names[0] == names[1] and len(names[0]) >= 1  # the names hold the hash of the content
    record_property("measured", f"{len(said)} runs on a full disk, then the same weights")
