"""Notebooks opened by hand: where tevq is not installed, and where nothing is trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from check import ROOT

from tevq import notebook
from tevq.config import LOCAL, SettingsError
from tevq.pipeline import NOTEBOOKS

BOOK = json.loads((ROOT / "notebooks/02_aliasing.ipynb").read_text(encoding="utf-8"))
CELL = next("".join(cell["source"]) for cell in BOOK["cells"]
            if cell["cell_type"] == "code")
# A Python that knows no tevq, with a pip that only writes down what it is told
BARE = """
import os, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [place for place in sys.path if not os.path.exists(os.path.join(place, "tevq"))]
sys.executable = os.environ["PIP"]
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
for _ in range(int(os.environ["TIMES"])):
    shell.run_cell(os.environ["CELL"])
shell.run_cell("import tevq; print(tevq.__file__)" * (not shell.user_ns.get("stop")
               or os.path.exists("tevq-repository")))
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "here/tevq").mkdir(parents=True)
    (tmp_path / "here/tevq/__init__.py").write_text("", encoding="utf-8")
    return tmp_path / "here"


def opened(folder: Path, address: str, pip_fails: bool = False, times: int = 1) -> tuple[str, str]:
    """What the first cell prints in an empty folder, and what it tells pip."""
    pip, empty = folder / "pip", folder / "a" / "b"
    pip.write_text(f'#!/bin/sh\necho "$*" >>"{folder}/told"\nexit {int(pip_fails)}\n')
    pip.chmod(0o755)
    empty.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=empty, capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "CELL": CELL, "TEVQ_ADDRESS": address,
             "PIP": str(pip), "TIMES": str(times)})
    assert done.returncode == 0, done.stderr
    told = folder / "told"
    return done.stdout, told.read_text(encoding="utf-8") if told.exists() else ""


INSTALLS = "-m pip install -e ./tevq-repository[notebooks]\n"  # not the tools of tests


@pytest.mark.parametrize("address", [
    "", "no-such-folder", "https://localhost:9/x.zip", "https://localhost:9/x.git"])
def test_an_address_that_cannot_be_reached_is_one_line(tmp_path, address):
    """Planted fault: the traceback of git or urllib."""
    said, told = opened(tmp_path, address)
    assert said.strip() == (f"tevq: cannot fetch {address!r}; set `address` in this cell, "
                            "run it again")
    assert told == ""


def test_a_zip_and_a_second_run_of_the_cell(tmp_path, repository):
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path, "here")
    said, told = opened(tmp_path, (tmp_path / "x.zip").as_uri(), times=2)
    assert said.endswith("a/b/tevq-repository/tevq/__init__.py\n") and said.count("\n") == 1
    assert told == INSTALLS


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_a_clone(tmp_path, repository):
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b",
                                                 "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    said, told = opened(tmp_path, repository.as_uri())
    assert said.endswith("a/b/tevq-repository/tevq/__init__.py\n") and told == INSTALLS


def test_a_pip_that_fails_is_one_line_and_tried_again(tmp_path, repository):
    """Planted fault: the second run takes the half-installed repository."""
    shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path, "here")
    said, told = opened(tmp_path, (tmp_path / "x.zip").as_uri(), pip_fails=True, times=2)
    assert said.count("tevq: pip failed, see above") == 2 and told == INSTALLS * 2


def parameters(name: str, **more) -> dict:
    usual = {"preset": "smoke", "overrides": "", "results": "", "variants": "", "seeds": "",
             "tables": "", "variant": "te", "seed": 77, "fraction": 1.0} | {"seeds": "77"}
    return {key: (usual | more)[key] for key in NOTEBOOKS[name]}


@pytest.fixture
def has_items(monkeypatch):
    monkeypatch.delenv("TEVQ_RESULTS", raising=False)
    monkeypatch.setattr(notebook, "load_source", lambda *_: None)


@pytest.mark.parametrize("name", notebook.SHOWS_TRAINED)
def test_with_nothing_trained_the_shipped_networks_are_shown_and_it_is_said(
        name, has_items, capsys):
    grid = notebook.start(parameters(name), name)
    assert grid.preset == "laptop" and grid.seeds == (0,)
    assert set(grid.variants) == ({"te"} if name == "04_stage2" else {"sc", "te"})
    assert LOCAL in grid.folder.parents  # no tracked file is written
    said = capsys.readouterr().out
    assert "preset smoke: nothing is trained yet (./run_all.sh --preset smoke)" in said
    assert "Shown instead: networks that come with tevq, preset laptop" in said


def test_not_under_papermill_nor_in_another_results_folder(has_items, tmp_path, capsys):
    """Planted fault: the order of run_all.sh is not trusted."""
    name = "05_evaluation"
    under = parameters(name) | {"_ih": ["", notebook.INJECTED + 'preset = "smoke"\n']}
    elsewhere = parameters(name, results=str(tmp_path))
    assert [notebook.start(x, name).preset for x in (under, elsewhere)] == ["smoke"] * 2
    assert capsys.readouterr().out == ""


def test_without_items_it_says_why_not(has_items, monkeypatch, capsys):
    def fail(*_):
        raise SettingsError("cannot download MNIST")

    monkeypatch.setattr(notebook, "load_source", fail)
    assert notebook.start(parameters("02_aliasing"), "02_aliasing").preset == "smoke"
    said = capsys.readouterr().out
    assert said.endswith("cannot be shown: cannot download MNIST\n") and said.count("\n") == 1
