"""A downsampler, a quantizer and a source of one's own, added as tevq/README.md says, go through
notebooks 01 to 06; in a copy of the repository as a ZIP gives it, in a folder with an odd name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import check
import numpy as np
import pytest
from check import ROOT
from PIL import Image

CLASSES = ("alpha", "beta", "delta", "gamma")
PARTS = ("tevq", "notebooks", "run_all.sh", "pyproject.toml", "results/paper.csv")


def unpacked(target: Path) -> Path:
    """What of the repository is needed, without git."""
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, target / part)
    return target


def add(root: Path) -> None:
    """The recipes, each class beside its neighbours and each entry at the end of its file."""
    text = (ROOT / "tevq" / "README.md").read_text(encoding="utf-8")
    for module, part in (("vqgan", "AveragePool"), ("quantizer", "Signs")):
        recipe = re.search(rf"^class {part}.*?(?=\n```)", text, re.MULTILINE | re.DOTALL)[0]
        added, entry = re.split(r"^presets\.", recipe, maxsplit=1, flags=re.MULTILINE)
        variant = entry[: entry.index('")\n') + 2].replace("presets.", "")
        for path, code in ((f"models/{module}", added), ("presets", variant)):
            with (root / "tevq" / f"{path}.py").open("a", encoding="utf-8") as file:
                file.write(f"\n\n{code.replace(f'{module}.', '')}\n")


def write_pictures(folder: Path) -> None:
    """Strokes of four kinds, of odd sizes, in grey and in colour."""
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 12)):
        for number, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                ink = np.zeros((33, 29), np.uint8)
                ink[4 + 6 * number : 9 + 6 * number, 4:25] = random.integers(120, 255, (5, 21))
                image = Image.fromarray(ink)
                image.convert("RGB" if i % 2 else "L").save(folder / part / name / f"{i}.png")


@pytest.mark.promise("grid")
def test_what_is_added_goes_through_all_notebooks(tmp_path, record_property):
    """Planted faults: ten classes taken for granted; a table without the entry; git is needed."""
    root = unpacked(tmp_path / "mein Überklon (ZIP)")
    add(root)
    write_pictures(tmp_path / "data/shapes")
    (tmp_path / "bin").mkdir()
    tiny = check.TINY | {"data.source": "folder:shapes", "stage1.stride": 4}
    words = [word for name, value in tiny.items() for word in ("--set", f"{name}={value}")]
    environment = {key: value for key, value in os.environ.items() if key not in (
        "PYTHONPATH", "LANG", "LC_ALL")} | {
        "TEVQ_PYTHON": sys.executable, "TEVQ_DATA": str(tmp_path / "data"), "LANG": "C",
        "OMP_NUM_THREADS": "1", "PATH": "/bin" if shutil.which("git", path="/bin") is None
        else f"{tmp_path}/bin"}
    for tool in ("bash", "env", "cat", "dirname", "readlink"):  # no git
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [root / "run_all.sh", "--variants", "sc,ap,sg", *words], cwd=tmp_path, text=True,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    assert done.returncode == 0, done.stdout
    (home,) = (root / "results/local").glob("smoke-*/notebooks")
    copies = {path.stem: json.loads(path.read_text(encoding="utf-8"))
              for path in home.glob("*.ipynb")}
    assert {f"{book}-{variant}-s0" for book in ("03_stage1", "04_stage2") for variant in (
        "sc", "ap", "sg")} | {"01_dataset", "02_aliasing", "05_evaluation"} <= set(copies)
    table = (home.parent / "tables/table1.csv").read_text(encoding="utf-8")
    assert ",ap,0," in table and ",sg,0," in table and "missing" not in table
    rule = re.findall(r"(\w+) +\w+ +(?:upper|lower) (?:left|right)\\n",
                      json.dumps(copies["01_dataset"]))  # as lines of output
    assert rule == sorted(CLASSES)
    record_property("measured", f"{len(copies)} notebooks with what was added")
