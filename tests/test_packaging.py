"""The files around the code: set-up script, requirements, package, ignore rules."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tevq
from tevq.graph import ROOT

# A stand-in for python3: `-m venv` makes another stand-in, everything else is written down
STAND_IN = """#!/bin/sh
case "$*" in
  "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m pip --version") test "$(basename "$0")" = python ;;
  "-c "*) exit "${OLD:-0}" ;;
  *) echo "$PWD: $*" >>"$RECORD" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the set-up script and what it reads, its name with a space in it."""
    place = tmp_path / "my clone"
    place.mkdir()
    for name in ("run_all.sh", "requirements.txt", "pyproject.toml"):
        (place / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(STAND_IN)
    (tmp_path / "bin/python3").chmod(0o755)
    return place


def call(clone: Path, *words: str, **more: str) -> list[str]:
    """Runs the script from the folder above; what the stand-in was told."""
    record = clone.parent / "record"
    record.write_text("")
    env = {"PATH": f"{clone.parent / 'bin'}:/usr/bin:/bin", "RECORD": str(record), **more}
    subprocess.run(["bash", clone / "run_all.sh", *words], env=env, cwd=clone.parent, check=True)
    return record.read_text().splitlines()


def test_installs_once_and_again_when_requirements_change(clone):
    install = f"{clone}: -m pip install --quiet --requirement requirements.txt"
    start = f"{clone.parent}: -m tevq"
    assert call(clone, "--dry-run") == [install, f"{start} --dry-run"]
    assert call(clone) == [start]
    with (clone / "requirements.txt").open("a") as file:
        file.write("another\n")
    assert call(clone) == [install, start]
    (clone / ".venv/bin/python").unlink()  # a Python that is gone is replaced
    (clone / ".venv/installed.txt").unlink()
    assert call(clone) == [install, start]


def test_an_old_python_is_refused(clone):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        call(clone, OLD="1")
    assert caught.value.returncode == 2 and not (clone / ".venv").exists()


def test_another_python_can_be_named(clone):
    python = str(clone.parent / "bin/python3")
    words = ["--set", "a=1 2"]
    assert call(clone, *words, TEVQ_PYTHON=python) == [f"{clone.parent}: -m tevq --set a=1 2"]
    assert not (clone / ".venv").exists()


def test_help_needs_no_torch():
    program = ("import sys, tevq.__main__; tevq.__main__.parser().format_help(); "
               "sys.exit('torch' in sys.modules)")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_scripts_can_be_executed():
    for name in ("run_all.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("exec ./run_all.sh --test")


def requirements() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert lines[-1] == "-e ."  # so that `import tevq` works from any folder
    found = {}
    for line in lines[:-1]:
        if line and not line.startswith("#"):
            name, lowest = re.fullmatch(r"([a-z0-9-]+)>=([\d.]+)", line).groups()
            found[name] = lowest  # only lower bounds: nothing replaces an installed torch
    return found


def test_package_and_requirements_agree():
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    wanted = dict(re.findall(r'"([a-z-]+)>=([\d.]+)"', block))
    assert len(wanted) >= 5
    assert wanted.items() <= requirements().items()
    assert f"version: {tevq.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_files_stay_small():
    for path in [*(ROOT / "tevq").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        lines = path.read_text().splitlines()
        assert len(lines) < (300 if path.parent.name == "tevq" else 450), path.name
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{path.name}: {node.name}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git clone")
def test_checkpoints_and_logs_are_not_committed():
    ignored = ["results/smoke/runs/stage1/a/state/step.safetensors", "results/smoke/logs/a.log",
               "results/smoke/runs/stage1/a/.lock", ".venv/x", "tevq.egg-info/x",
               "results/smoke/notebooks/03_stage1-te-s1.html",
               "results/smoke/figures/04_mnist-te-s12_loss.png"]
    kept = ["results/laptop/models/a.safetensors", "results/smoke/tables/table1.csv",
            "results/smoke/figures/a.png", "tevq/paper.json",
            "results/smoke/notebooks/05_evaluation.ipynb",
            "results/smoke/notebooks/03_stage1-te-s0.html",
            "results/smoke/runs/stage1/a/config.json", "results/smoke/runs/stage1/a/metrics.jsonl",
            "results/smoke/runs/stage1/a/summary.json", "notebooks/01_dataset.ipynb"]
    found = subprocess.run(["git", "check-ignore", "--no-index", *ignored, *kept], cwd=ROOT,
                           capture_output=True, text=True)
    assert found.stdout.split() == ignored
