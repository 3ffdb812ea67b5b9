"""The files around the code: set-up script, requirements, package, ignore rules."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

import pytest
from check import ROOT
from torture import run as torture

import tevq

# A stand-in for python3: `-m venv` makes another stand-in; installations and starts of tevq are
# written down, the former slowly; the lock is a real one
STAND_IN = f"""#!/bin/sh
case "$*" in
  "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m pip --version") test "$(basename "$0")" = python ;;
  "-m pip install"*) sleep "${{SLOW:-0}}"; echo "$PWD: user=$PIP_USER $*" >>"$RECORD" ;;
  "-m compileall"*) echo "$PWD: $*" >>"$RECORD" ;;
  *fcntl*) exec '{sys.executable}' "$@" ;;
  *ensurepip*) exit "${{OLD:-0}}" ;;
  *) shift 2; echo "$PWD: tevq safe=$PYTHONSAFEPATH $*" >>"$RECORD" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the set-up script and what it reads, its name with a space and an umlaut."""
    place = tmp_path / "mein Überklon"
    place.mkdir()
    for name in ("run_all.sh", "requirements.txt", "pyproject.toml"):
        (place / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(STAND_IN)
    (tmp_path / "bin/python3").chmod(0o755)
    return place


def start(clone: Path, *words: str, script: str = "", **more: str) -> subprocess.Popen:
    """Starts the script from the folder above."""
    env = {"PATH": f"{clone.parent / 'bin'}:/usr/bin:/bin", "RECORD": str(clone.parent / "record"),
           "LANG": "C", "PIP_USER": "1", "CDPATH": str(clone.parent), **more}
    return subprocess.Popen(["bash", script or f"{clone.name}/run_all.sh", *words], env=env,
                            cwd=clone.parent, stderr=subprocess.PIPE, text=True)


def call(clone: Path, *words: str, **more: str) -> list[str]:
    """Runs the script; what the stand-in was told."""
    record = clone.parent / "record"
    record.write_text("", encoding="utf-8")
    child = start(clone, *words, **more)
    said = child.communicate()[1]
    assert child.returncode == 0, said
    return record.read_text(encoding="utf-8").splitlines()


def told(clone: Path) -> tuple[list[str], str]:
    """What an installation and a start write down. It must compile: where Python may not write
    what it compiled, as in many containers, every process would do it again (10 s for torch)."""
    install = "-m pip install --quiet --no-compile --requirement requirements.txt"
    return ([f"{clone}: user=0 {install}", f"{clone}: -m compileall -qq -j 0 .venv/lib"],
            f"{clone.parent}: tevq safe=1")


def test_installs_once_and_again_when_requirements_change(clone):
    install, begin = told(clone)
    assert call(clone, "--dry-run") == [*install, f"{begin} --dry-run"]
    assert call(clone) == [f"{begin} "]
    with (clone / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("another\n")
    assert call(clone) == [*install, f"{begin} "]
    (clone / ".venv/bin/python").unlink()  # a Python that is gone is replaced
    (clone / ".venv/installed.txt").unlink()
    assert call(clone) == [*install, f"{begin} "]


def test_links_to_the_script_and_to_the_folder(clone):
    """Planted faults: links are not followed; the name of the folder is taken as it was given."""
    install, begin = told(clone)
    (clone.parent / "link").symlink_to(clone.name)
    (clone.parent / "bin/all").symlink_to("../link/run_all.sh")
    assert call(clone, script="bin/all") == [*install, f"{begin} "]
    assert call(clone, script="link/run_all.sh") == [f"{begin} "]


def test_two_first_calls_install_one_after_the_other(clone):
    """Planted faults: no lock; nobody looks again after waiting for it."""
    install, begin = told(clone)
    both = [start(clone, SLOW="0.5") for _ in range(2)]
    said = [child.communicate()[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    lines = (clone.parent / "record").read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted([*install, f"{begin} ", f"{begin} "])


def test_without_a_fitting_python_it_says_so_in_one_line(clone):
    """An old one, and one without venv or ensurepip."""
    child = start(clone, OLD="1")
    said = child.communicate()[1]
    assert child.returncode == 2 and not (clone / ".venv").exists()
    assert said.startswith("run_all.sh: python3 is ") and said.count("\n") == 1


def test_another_python_can_be_named(clone):
    python = str(clone.parent / "bin/python3")
    words = ["--set", "a=1 2"]
    assert call(clone, *words, TEVQ_PYTHON=python) == [f"{told(clone)[1]} --set a=1 2"]
    assert not (clone / ".venv").exists()


def test_files_in_the_current_folder_are_not_imported(tmp_path):
    """Planted fault: python -m tevq without PYTHONSAFEPATH."""
    for name in ("random", "argparse", "psutil", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)", encoding="utf-8")
    done = subprocess.run([ROOT / "run_all.sh", "--help"], cwd=tmp_path, capture_output=True,
                          env=os.environ | {"TEVQ_PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch():
    program = ("import sys, tevq.__main__; tevq.__main__.parser().format_help(); "
               "sys.exit('torch' in sys.modules)")
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_scripts_can_be_executed():
    for name in ("run_all.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    last = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1]
    assert last == "exec ./run_all.sh --test"


def requirements() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "-e ."  # so that `import tevq` works from any folder
    found = {}
    for line in lines[:-1]:
        if line and not line.startswith("#"):
            name, lowest = re.fullmatch(r"([a-z0-9-]+)>=([\d.]+)", line).groups()
            found[name] = lowest  # only lower bounds: nothing replaces an installed torch
    return found


def dependencies() -> dict[str, str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1]
    return dict(re.findall(r'"([a-z-]+)>=([\d.]+)"', block))


def test_package_and_requirements_agree():
    assert len(dependencies()) >= 5
    assert dependencies().items() <= requirements().items()
    assert f"version: {tevq.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# Modules whose package has another name, or comes with another package
PACKAGES = {"sklearn": "scikit-learn", "threadpoolctl": "scikit-learn", "PIL": "pillow",
            "dask": "distributed", "yaml": "distributed", "IPython": "ipykernel",
            "traitlets": "ipykernel", "jinja2": "nbconvert"}
# called, or read, not imported: torch exports by onnxscript, onnxruntime has the licence of both
TOOLS = {"jupyterlab", "nbval", "nbstripout", "ruff", "onnxscript", "onnxruntime", "pytest-xdist"}


def imported(*places: str) -> set[str]:
    """Packages of others that modules and notebooks import, also within functions."""
    found = set()
    for source in sources(*places):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return {PACKAGES.get(name, name.replace("_", "-")) for name in found
            if name not in sys.stdlib_module_names and name != "tevq"}


def sources(*places: str) -> Iterable[str]:
    for folder in (ROOT / place for place in places):
        for file in [folder] if folder.is_file() else folder.rglob("*.*"):
            if file.suffix == ".py":
                yield file.read_text(encoding="utf-8")
            elif file.suffix == ".ipynb":
                for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                    yield "".join(cell["source"]) if cell["cell_type"] == "code" else ""


def test_what_is_imported_is_required():
    """Planted faults: a requirement left out; one folder of the package not looked at."""
    core = imported("tevq/pretrained.py", *(f"tevq/{name}" for name in (
        "runs", "data", "models", "evaluate", "train")))
    assert {"torch", "scikit-learn"} <= core
    comes_along = {"pillow", "ipykernel"}  # with torchvision; within notebooks
    assert core - comes_along - {"lpips"} <= dependencies().keys()  # lpips: preset paper only
    peers = {"taming", "vector-quantize-pytorch", "dalle-pytorch", "transformers"}  # of notebook 07
    assert imported("tevq", "notebooks") - peers <= requirements().keys()


def test_one_file_installs_every_peer_of_the_benchmarks():
    """Planted faults: a peer of notebook 07 that no line names; no package in place of the dead."""
    place = ROOT / "results/benchmarks"
    lines = [line.split("  #")[0] for line in (place / "peers.txt").read_text(
        encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "-e .[bench]"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.findall(r'"([a-z-]+)>=', re.search(r"^bench = \[(.*?)\]", text, re.MULTILINE)[1])
    named = next(source for source in sources("notebooks/07_benchmarks.ipynb")
                 if "packages = (" in source).split("packages = (")[1].split(")")[0]
    assert {*extra, "dalle-pytorch"} == set(re.findall(r'"([a-z-]+)"', named))
    assert any(line.startswith("dalle-pytorch>=") for line in lines)
    stand_in = next(ROOT / line for line in lines if line.startswith("./")) / "pyproject.toml"
    assert 'name = "youtokentome"' in stand_in.read_text(encoding="utf-8")


def test_what_is_required_is_used():
    used = imported("tevq", "notebooks", "tests") | TOOLS
    assert requirements().keys() - used == set()


def test_text_files_name_their_encoding():
    """Without it, Windows reads and writes another one than Linux."""
    places = [ast.unparse(node) for source in sources("tevq")
              for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
              and getattr(node.func, "attr", "") in ("read_text", "write_text")]
    assert len(places) > 3
    assert [place for place in places if "encoding=" not in place] == []


def test_the_wheel_has_every_module(tmp_path):
    """Planted fault: only the uppermost folder is packed."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tevq", tmp_path / "tevq", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    with zipfile.ZipFile(*tmp_path.glob("*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "tevq").rglob("*.py")}
    assert "tevq/train/stage1.py" in packed


def test_the_table_of_promises_keeps_its_shape(tmp_path):
    torture.write({"resume": torture.Outcome(passed=2)}, tmp_path / "table.csv")
    found, committed = (list(csv.reader(path.open(encoding="utf-8"))) for path in (
        tmp_path / "table.csv", torture.RESULT))
    assert found[0] == committed[0] and found[1][1] == "2"
    assert [row[0] for row in found] == [row[0] for row in committed]


def test_tests_stay_small():
    files = list((ROOT / "tests").rglob("*.py"))
    assert {"check.py", "run.py"} <= {path.name for path in files}
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 550, path.name
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path.name}: {node.name}"


def test_an_installed_wheel_paints(tmp_path):
    """Planted fault: a wheel without the weights."""
    source = tmp_path / "source"
    for name in ("tevq", "results/laptop/models"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
                    "--quiet", "--target", str(tmp_path / "site"), str(tmp_path / "source")], **run)
    program = ("import tevq; from tevq import pretrained; print(tevq.__file__)\n"
               "pretrained.load('te').paint('the center is red two.').save('x.png')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, **run)
    assert str(tmp_path / "site") in done.stdout and (tmp_path / "x.png").stat().st_size > 100


in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git clone")


def git(*words: str, said: str = "") -> str:
    """What git prints; 1 as exit code is an answer, too."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, input=said,
                          encoding="utf-8")
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@in_git
def test_the_top_level_holds_what_was_agreed():
    found = {path.split("/")[0] for path in git("ls-files").splitlines()}
    assert {name for name in found if not name.startswith(".")} == {
        "notebooks", "tevq", "results", "tests", "requirements.txt", "README.md", "run_all.sh",
        "pyproject.toml", "LICENSE", "CITATION.cff"}


@in_git
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
    assert git("check-ignore", "--no-index", *ignored, *kept).split() == ignored


@in_git
def test_line_ends_are_the_same_on_every_system():
    """Planted fault: no .gitattributes."""
    files = git("ls-files")
    assert len(files.splitlines()) > 100
    for line in git("check-attr", "--stdin", "text", "eol", said=files).splitlines():
        path, name, value = line.split(": ")
        binary = path.endswith((".png", ".safetensors", ".gz", ".npz"))
        expected = {"text": "unset" if binary else "auto", "eol": "lf"}[name]
        assert value == expected or binary and name == "eol", line
    assert "crlf" not in git("ls-files", "--eol")


def broken(markdown: str, folder: str, known: set[str]) -> list[str]:
    """Relative links of a Markdown text in `folder` that lead nowhere."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)
    links = re.findall(r"""\]\(<?([^)\s>]+)|(?:src|href)="([^"]+)\"""", prose)
    targets = [unquote("".join(link)).split("#")[0] for link in links]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)
            and os.path.normpath(os.path.join(folder, target)) not in known]


def test_broken_links_are_found():
    text = ("[a](x/a.md) ![b](b.png) [c](c.md#part) <img src=\"d.png\"> [e](https://e.org/)"
            " `[f](f)` [g](#g) [h](../h)\n```\n[i](i)\n```")
    assert broken(text, "x", set()) == ["x/a.md", "b.png", "c.md", "d.png", "../h"]
    assert broken(text, "", {"x/a.md", "b.png", "c.md", "d.png", "../h"}) == []
    assert broken("[a](../y)", "x", {"y"}) == []


@in_git
def test_relative_links_lead_to_committed_files():
    files = git("ls-files").splitlines()
    known = {str(place) for file in files for place in (Path(file), *Path(file).parents)}
    pages = [file for file in files if file.endswith(".md") and "/site/" not in file]
    assert "README.md" in pages  # the site's links are tested where it is built
    for file in pages:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not broken(text, os.path.dirname(file), known), file
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                assert not broken("".join(cell["source"]), "notebooks", known), path.name
