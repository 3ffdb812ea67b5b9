"""Hygiene of the stored notebooks, and the tiny settings that the tests run them with.

Stored notebooks are stripped: `python tests/test_notebooks.py` does it. Cells tagged
`nbval-check-output` and `keep_output` keep what they printed, for nbval to compare with; they may
print only facts that do not depend on sizes, seeds or the machine. After a change of such a cell:

    jupyter nbconvert --to notebook --execute --inplace notebooks/05_evaluation.ipynb
    python tests/test_notebooks.py
"""

import ast
import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import check
import papermill
import pytest
from fakes import parameters_cell, parameters_of, read
from papermill.exceptions import PapermillExecutionError

from tevq import notebook, presets
from tevq.config import SettingsError
from tevq.pipeline import FOLDER, NOTEBOOKS

STRIP = [sys.executable, "-m", "nbstripout", "--keep-id", "--extra-keys", "metadata.language_info"]
SETUP = '''\
# Finds tevq installed or in the folder above; elsewhere, as on Colab, fetches it first.
import importlib.util
import os
import shutil
import subprocess
import sys
import urllib.request

address = os.environ.get("TEVQ_ADDRESS", "")  # of the repository: git address, folder or .zip
sys.path.append("..")
if not importlib.util.find_spec("tevq"):
    stop = type("Stop", (Exception,), {"_render_traceback_": lambda self: [f"tevq: {self}"]})
    try:
        if os.path.exists("tevq-repository"):
            pass
        elif address.endswith(".zip"):
            shutil.unpack_archive(urllib.request.urlretrieve(address)[0], "tevq-zip", "zip")
            shutil.move(os.path.join("tevq-zip", *os.listdir("tevq-zip")), "tevq-repository")
        else:
            subprocess.run(["git", "clone", "--depth=1", "--", address, "tevq-repository"],
                           check=True, capture_output=True, stdin=subprocess.DEVNULL)
    except Exception:
        raise stop(f"cannot fetch {address!r}; set `address` in this cell, run it again") from None
    if subprocess.call([sys.executable, *"-m pip install -e ./tevq-repository[notebooks]".split()]):
        raise stop("pip failed, see above; run this cell again when it can reach its packages")
    sys.path.append(os.path.abspath("tevq-repository"))
'''
CHECKED, KEPT = "nbval-check-output", "keep_output"  # tags: nbval compares it, nbstripout keeps it
KNOWN_TAGS = {"parameters", CHECKED, KEPT}
LONGEST, MOST = 40, 60  # lines of a code cell, cells
PATH = re.compile(r"(?<![\w.:/])/(?:work|tmp|home|root|Users|mnt|content)/|[A-Z]:\\\\")


def problems(book: dict[str, Any], name: str) -> list[str]:
    """What is wrong with a stored notebook."""
    found = [f"{len(book['cells'])} cells"] if len(book["cells"]) > MOST else []
    for number, cell in enumerate(book["cells"]):
        found += [f"cell {number}: {text}" for text in _problems_of(cell)]
    codes = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    if not codes or codes[0]["source"].strip() != SETUP.strip():
        found.append("the first code cell is not SETUP")
    if not any(f'notebook.start(globals(), "{name}")' in c["source"] for c in codes):
        found.append("notebook.start is not called with the notebook's name")
    if set(book["metadata"]) - {"kernelspec"}:
        found.append(f"metadata {sorted(book['metadata'])}")
    return found + _parameter_problems(book, name)


def _problems_of(cell: dict[str, Any]) -> list[str]:
    source, tags = cell["source"], cell["metadata"].get("tags", [])
    found = [f"unknown tag {tag}" for tag in tags if tag not in KNOWN_TAGS]
    found += [f"metadata {key}" for key in cell["metadata"] if key != "tags"]
    if not cell.get("id"):
        found.append("no id: it would get another one at every execution")
    if PATH.search(json.dumps([source, cell.get("outputs")])):
        found.append("a path of one machine")
    if cell["cell_type"] == "markdown":
        return found + (["an embedded picture"] if "base64" in source else [])
    if source.count("\n") >= LONGEST:
        found.append(f"{source.count(chr(10)) + 1} lines")
    if not source.strip():
        found.append("empty")
    tree = ast.parse("\n".join(x for x in source.split("\n") if x.lstrip()[:1] not in ("%", "!")))
    if any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)):
        found.append("defines a class")
    if (CHECKED in tags) != (KEPT in tags):
        found.append(f"{CHECKED} and {KEPT} go together")
    if CHECKED in tags and not cell["outputs"]:  # nbval would then compare nothing
        found.append("no output to compare")
    if any(output.get("name") != "stdout" for output in cell["outputs"]):
        found.append("only printed text can be checked")
    return found


def _parameter_problems(book: dict[str, Any], name: str) -> list[str]:
    source = parameters_cell(book)["source"]
    found = [f"parameter without a comment: {line}" for line in source.splitlines()
             if "=" in line and "#" not in line]
    # papermill overlooks a parameter whose line has a second one
    found += [f"= in a comment: {line}" for line in source.splitlines() if line.count("=") > 1]
    if list(parameters_of(book).items()) != list(NOTEBOOKS[name].items()):
        found.append(f"parameters are {parameters_of(book)}, not {NOTEBOOKS[name]}")
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_notebook_is_clean(name):
    assert problems(read(FOLDER, name), name) == []


def test_stored_notebooks_are_stripped():
    done = subprocess.run([*STRIP, "--verify", *stored()], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}; run python tests/test_notebooks.py"


def stored() -> list[str]:
    return [str(path) for path in sorted(FOLDER.glob("*.ipynb"))]


def test_exactly_the_known_notebooks_are_stored():
    assert [Path(path).stem for path in stored()] == sorted(NOTEBOOKS)


def code(source: str, *tags: str, outputs: tuple = ()) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {"tags": list(tags)} if tags else {},
            "source": source, "outputs": list(outputs), "execution_count": None}


def good() -> dict[str, Any]:
    values = "\n".join(f"{k} = {v!r}  # why" for k, v in NOTEBOOKS["01_dataset"].items())
    text = {"output_type": "stream", "name": "stdout", "text": ["10 classes\n"]}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# Title"},
        code(SETUP), code(values, "parameters"),
        code('from tevq import notebook\n\nstudy = notebook.start(globals(), "01_dataset")'),
        code('print("10 classes")', CHECKED, KEPT, outputs=(text,)),
    ]
    cells = [{"id": f"01-{i}"} | cell for i, cell in enumerate(cells)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _change(number: int, **values: Any):
    return lambda book: book["cells"][number].update(values)


def test_planted_faults_are_found():
    assert problems(good(), "01_dataset") == []
    picture = {"output_type": "display_data", "data": {}}
    for says, plant in {
        "61 cells": lambda book: book["cells"].extend([code("1")] * 56),
        "41 lines": lambda book: book["cells"].append(code("1\n" * 40 + "1")),
        "defines a class": lambda book: book["cells"].append(code("class A:\n    pass")),
        "a path of one machine": _change(0, source="see /home/me/data"),
        "an embedded picture": _change(0, source="![](data:image/png;base64,AA)"),
        "not SETUP": _change(1, source="import tevq"),
        "without a comment": _change(2, source='preset = "smoke"\noverrides = ""  # a'),
        "= in a comment": _change(2, source='preset = "smoke"  # as in a=b'),
        "parameters are": _change(2, metadata={}),
        "notebook.start is not called": _change(3, source="1"),
        "go together": _change(4, metadata={"tags": [KEPT]}),
        "no output to compare": _change(4, outputs=[]),
        "only printed text": _change(4, outputs=[picture]),
        "no id": _change(2, id=""),
        "unknown tag": _change(4, metadata={"tags": ["nbval-check"]}),
        "metadata ['kernelspec', 'papermill']": lambda book: book["metadata"].update(papermill={}),
        "metadata slideshow": _change(0, metadata={"slideshow": {}}),
    }.items():
        book = copy.deepcopy(good())
        plant(book)
        assert any(says in problem for problem in problems(book, "01_dataset")), says


def test_stripping_keeps_what_is_checked(tmp_path: Path):
    """Planted faults: the tag keep_output left out; --keep-id left out."""
    book = good()
    book["cells"][1] |= {"outputs": book["cells"][4]["outputs"]}
    for number, cell in enumerate(book["cells"][1:]):
        cell["execution_count"] = number
    book["metadata"]["language_info"] = {"name": "python", "version": "3.12.1"}
    path = tmp_path / "01_dataset.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    subprocess.run([*STRIP, path], check=True)
    assert read(tmp_path, "01_dataset") == good()


def test_tiny_settings_are_allowed_for_every_variant():
    for variant in presets.PAPER:
        presets.load("smoke", variant, check.SEED, check.TINY)


def test_tiny_copies_start_with_the_tiny_settings(tmp_path: Path):
    copies = check.write_copies(FOLDER, tmp_path / "copies", tmp_path / "results")
    assert [path.stem for path in copies] == sorted(NOTEBOOKS)
    for path in copies:
        book = read(path.parent, path.stem)
        values = parameters_of(book)
        assert values.keys() == NOTEBOOKS[path.stem].keys()
        grid = notebook.start(values, path.stem)
        assert grid.settings.stage1.steps == check.TINY["stage1.steps"]
        assert grid.folder == tmp_path / "results/smoke"
        assert "variants" not in values or grid.variants == ("sc", "te") and grid.seeds == (0,)
        checked = [cell for cell in book["cells"] if CHECKED in cell["metadata"].get("tags", [])]
        assert checked and all(cell["outputs"] and cell["execution_count"] for cell in checked)


def test_source_on_display(capsys):
    notebook.source(presets.load)
    assert "Markdown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_ih": ["", "# Parameters\nvarient = 'te'\n"]},
         "unknown parameter of 03_stage1 'varient'; did you mean 'variant'"),
        ({"variant": "tt"}, "unknown variant 'tt'"),
        ({"variant": 3}, "unknown variant '3'"),
        ({"seed": -1}, "seed '-1' is not a whole number from 0"),
        ({"preset": "tiny"}, "unknown preset 'tiny'"),
        ({"overrides": "stage1.stepz=2"}, "unknown setting"),
        ({"source": "faces"}, "data.source = 'faces'"),
    ],
)
@pytest.mark.promise("input")
def test_bad_parameters_of_a_notebook(changes, says):
    with pytest.raises(SettingsError, match=says):
        notebook.start(NOTEBOOKS["03_stage1"] | changes, "03_stage1")


def test_other_names_and_later_calls():
    """Planted fault: every plain value is taken for a parameter."""
    others = {"_ih": ["", "# Parameters\nvariants = 'sc'\n", "x = 3"], "x": 3, "_": 3, "Path": Path}
    space = others | NOTEBOOKS["05_evaluation"]
    first = notebook.start(space, "05_evaluation")
    assert first.variants == presets.DEFAULTS["smoke"][0] and first.seeds == (0,)
    space |= {"variants": "te,sc", "seeds": [2, 1]}  # the reader goes on in the kernel
    second = notebook.start(space, "05_evaluation")
    assert second.variants == ("te", "sc") and second.seeds == (2, 1)
    assert second.settings.variant == "te" and second.settings.seed == 2
    del space["tables"]
    with pytest.raises(SettingsError, match="tables is not set; run the parameters cell"):
        notebook.start(space, "05_evaluation")


def test_only_what_papermill_injects_is_checked(tmp_path, monkeypatch):
    """Planted faults: names of a startup file are checked, too; nothing is checked."""
    startup = tmp_path / "profile_default/startup/mine.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("debug = True\n", encoding="utf-8")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    book = good()
    book["cells"][3]["source"] = 'assert debug\n' + book["cells"][3]["source"]
    (tmp_path / "book.ipynb").write_text(json.dumps(book), encoding="utf-8")
    with pytest.raises(PapermillExecutionError, match="parameter of 01_dataset 'presett'"):
        papermill.execute_notebook(tmp_path / "book.ipynb", None, {"presett": "laptop"},
                                   cwd=str(FOLDER), progress_bar=False)


def test_another_clone_than_the_one_around_the_notebook_is_named(tmp_path, monkeypatch, capsys):
    """Two clones share an environment in which one of them is installed."""
    (tmp_path / "tevq").mkdir()
    (tmp_path / "tevq/notebook.py").touch()
    (tmp_path / "notebooks").mkdir()
    named = f"tevq comes from {FOLDER.parent}, not from {tmp_path}; so do"
    for folder, words in ((FOLDER, ""), (tmp_path, ""), (tmp_path / "notebooks", named)):
        monkeypatch.chdir(folder)
        notebook.start(dict(NOTEBOOKS["01_dataset"]), "01_dataset")
        said = capsys.readouterr().out
        assert said.startswith(words) and bool(said) == bool(words)


def test_fraction_and_overrides_reach_the_settings():
    values = NOTEBOOKS["04_stage2"] | {"fraction": 0.5, "overrides": {"stage2.steps": 9}}
    found = notebook.start(values, "04_stage2").settings
    assert found.stage2.fraction == 0.5 and found.stage2.steps == 9


if __name__ == "__main__":
    sys.exit(subprocess.call([*STRIP, *stored()]))
