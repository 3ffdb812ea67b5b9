"""What we run on: kept memory, exact float32, and the commit of the record."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tevq.runs import devices

PROGRAM = """
import resource, torch
from tevq.runs import devices
{first}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # the heap grows to what is needed
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)  # 64 MiB: 16,384 pages of 4 KiB
print(faults() - before)
"""


def faults(first: str) -> int:
    """Pages that the kernel had to hand out for ten tensors, one after the other."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(first=first)], cwd=devices.ROOT,
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not devices.keep_freed_memory(), reason="the C library has no mallopt")
def test_freed_memory_is_kept_for_the_next_step():
    """Planted fault: `detect` does not ask for it."""
    # A ratio: how many pages one fault brings is the kernel's choice (huge pages: 30 times fewer).
    assert faults("devices.detect()") < faults("") / 10


FLOAT32 = """
import torch
from tevq.runs import devices
where = devices.detect("float32")
print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,
      torch.backends.cudnn.allow_tf32, devices.record(where)["float32_is_exact"])
"""


def test_float32_means_float32_whatever_the_environment_asks():
    """Planted fault: the default of the library, which this variable changes, is left."""
    done = subprocess.run([sys.executable, "-c", FLOAT32], cwd=devices.ROOT, text=True,
                          env=os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"},
                          stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == ["highest", "False", "False", "True"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@y",
                           *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if not shutil.which("git"):
        pytest.skip("there is no git")
    root = tmp_path / "repository"
    for name in devices.SOURCES:
        write(root / name / "x" if "." not in name else root / name, "1")
    git(root.parent, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    return root


@pytest.mark.promise("records")
@pytest.mark.parametrize("name", devices.SOURCES)
def test_the_commit_says_whether_anything_that_counts_was_changed(repository, name):
    """Planted fault: only the package looked at."""
    head = git(repository, "rev-parse", "HEAD")
    assert devices.commit(repository) == head
    write(repository / "README.md", "changed")
    assert devices.commit(repository) == head
    write(repository / name / "x" if "." not in name else repository / name, "2")
    assert devices.commit(repository) == head + "-dirty"


@pytest.mark.promise("records")
def test_a_copy_inside_another_repository_has_no_commit(repository, tmp_path):
    """A ZIP unpacked there, or a copy in its virtual environment. Planted fault: the other
    repository's commit."""
    for place in ("unpacked", ".venv/lib/site-packages"):
        write(repository / place / "tevq/x", "1")
        assert devices.commit(repository / place) == "unknown"
    assert devices.commit(tmp_path) == "unknown"
    assert devices.commit(tmp_path / "absent") == "unknown"


@pytest.mark.promise("records")
def test_a_repository_of_somebody_else_is_read(repository, monkeypatch):
    """As in a container with a mounted folder. Planted fault: git refuses."""
    head = devices.commit(repository)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    assert devices.commit(repository) == head != "unknown"


@pytest.mark.parametrize(("has", "precision", "found"), [
    (False, "auto", "float32"), (True, "auto", "bfloat16"), (True, "float32", "float32"),
    (False, "bfloat16", "bfloat16")])
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, has, precision, found):
    """Planted fault: old versions of torch, which cannot be asked, end in an AttributeError."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has, raising=False)
    assert devices.detect(precision).precision == found
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert devices.detect().precision == "float32"
