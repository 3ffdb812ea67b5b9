"""Hygiene of the stored notebooks, and the tiny settings that the tests run them with."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tevq import graph, notebook, presets, selftest, tidy, webpage
from tevq.config import SettingsError
from tevq.tidy import CHECKED

KNOWN_TAGS = {"parameters", CHECKED}
LONGEST, MOST = 40, 60  # lines of a code cell, cells
PATH = re.compile(r"(?<![\w.:/])/(?:work|tmp|home|root|Users|mnt|content)/|[A-Z]:\\\\")


def problems(book: dict[str, Any], name: str) -> list[str]:
    """What is wrong with a stored notebook."""
    found = [f"{len(book['cells'])} cells"] if len(book["cells"]) > MOST else []
    for number, cell in enumerate(book["cells"]):
        found += [f"cell {number}: {text}" for text in _problems_of(cell)]
    codes = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    if not codes or "".join(codes[0]["source"]).strip() != notebook.SETUP.strip():
        found.append("the first code cell is not notebook.SETUP")
    if not any(f'notebook.start(globals(), "{name}")' in c["source"] for c in codes):
        found.append("notebook.start is not called with the notebook's name")
    if set(book["metadata"]) - {"kernelspec", "language_info", "colab"}:
        found.append(f"metadata {sorted(book['metadata'])}")
    return found + _parameter_problems(book, name)


def _problems_of(cell: dict[str, Any]) -> list[str]:
    source, tags = cell["source"], cell["metadata"].get("tags", [])
    found = [f"unknown tag {tag}" for tag in tags if tag not in KNOWN_TAGS]
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
    if CHECKED in tags:
        # nbval fails on outputs without a count, and compares nothing without outputs
        if not cell["outputs"] or cell["execution_count"] is None:
            found.append("no output to compare (run python -m tevq.tidy)")
        if any(output["output_type"] != "stream" for output in cell["outputs"]):
            found.append("only printed text can be checked")
    elif cell["outputs"] or cell["execution_count"] is not None:
        found.append("outputs not stripped")
    return found


def _parameter_problems(book: dict[str, Any], name: str) -> list[str]:
    source = graph.parameters_cell(book)["source"]
    found = [f"parameter without a comment: {line}" for line in source.splitlines()
             if "=" in line and "#" not in line]
    # papermill overlooks a parameter whose line has a second one
    found += [f"= in a comment: {line}" for line in source.splitlines() if line.count("=") > 1]
    if list(graph.parameters_of(book).items()) != list(graph.NOTEBOOKS[name].items()):
        found.append(f"parameters are {graph.parameters_of(book)}, not {graph.NOTEBOOKS[name]}")
    return found


@pytest.mark.parametrize("name", graph.NOTEBOOKS)
def test_stored_notebook_is_clean(name):
    assert problems(graph.read(graph.FOLDER, name), name) == []


def test_no_other_notebooks_are_stored():
    assert {path.stem for path in graph.FOLDER.glob("*.ipynb")} <= set(graph.NOTEBOOKS)


def code(source: str, *tags: str, outputs: tuple = (), count: int | None = None) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {"tags": list(tags)} if tags else {},
            "source": source, "outputs": list(outputs), "execution_count": count}


def good() -> dict[str, Any]:
    values = "\n".join(f"{k} = {v!r}  # why" for k, v in graph.NOTEBOOKS["01_dataset"].items())
    text = {"output_type": "stream", "name": "stdout", "text": ["10 classes\n"]}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "# Title"},
        code(notebook.SETUP), code(values, "parameters"),
        code('from tevq import notebook\n\nstudy = notebook.start(globals(), "01_dataset")'),
        code('print("10 classes")', CHECKED, outputs=(text,), count=4),
    ]
    cells = [{"id": f"01-{i}"} | cell for i, cell in enumerate(cells)]
    return {"cells": cells, "metadata": {"kernelspec": {}}, "nbformat": 4, "nbformat_minor": 5}


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
        "not notebook.SETUP": _change(1, source="import tevq"),
        "without a comment": _change(2, source='preset = "smoke"\noverrides = ""  # a'),
        "= in a comment": _change(2, source='preset = "smoke"  # as in a=b'),
        "parameters are": _change(2, metadata={}),
        "notebook.start is not called": _change(3, source="1"),
        "outputs not stripped": _change(3, execution_count=3),
        "no output to compare (run python -m tevq.tidy)": _change(4, execution_count=None),
        "only printed text": _change(4, outputs=[picture]),
        "no id": _change(2, id=""),
        "unknown tag": _change(4, metadata={"tags": ["nbval-check"]}),
        "metadata": lambda book: book["metadata"].update(papermill={}),
    }.items():
        book = copy.deepcopy(good())
        plant(book)
        assert any(says in problem for problem in problems(book, "01_dataset")), says


def test_tidy_strips_and_keeps_what_is_checked(tmp_path: Path):
    executed = good()
    executed["cells"][3] |= {"execution_count": 9, "metadata": {"papermill": {}}}
    stored = copy.deepcopy(executed)
    stored["cells"][4] |= {"outputs": [], "execution_count": None}
    stored["metadata"]["papermill"] = {}
    assert problems(stored, "01_dataset")
    assert tidy.tidy(stored, executed) == []
    (tmp_path / "01_dataset.ipynb").write_text(json.dumps(stored))
    again = graph.read(tmp_path, "01_dataset")
    assert problems(again, "01_dataset") == []
    assert again["cells"][4]["outputs"][0]["text"] == ["10 classes\n"]
    executed["cells"][4]["source"] = "print(11)"
    assert tidy.tidy(again, executed) == ['print("10 classes")']


def test_tiny_settings_are_allowed_for_every_variant():
    for variant in presets.VARIANTS:
        presets.load("smoke", variant, selftest.SEED, selftest.TINY)


def test_tiny_copies_start_with_the_tiny_settings(tmp_path: Path):
    stored = tmp_path / "stored"
    stored.mkdir()
    for name in graph.NOTEBOOKS:
        book = good()
        book["cells"][2]["source"] = "\n".join(
            f"{key} = {value!r}  # why" for key, value in graph.NOTEBOOKS[name].items())
        (stored / f"{name}.ipynb").write_text(json.dumps(book))
    selftest.write_copies(stored, tmp_path / "copies", tmp_path / "results")
    for name in graph.NOTEBOOKS:
        values = graph.parameters_of(graph.read(tmp_path / "copies", name))
        assert values.keys() == graph.NOTEBOOKS[name].keys()
        grid = notebook.start(values, name)
        assert grid.settings.stage1.steps == selftest.TINY["stage1.steps"]
        assert grid.folder == tmp_path / "results/smoke"


def test_formulas_become_mathml_and_code_does_not():
    text = webpage.mathml(r"a $x_i^*$ b `$y$` \$5 $$\frac{1}{K^2}$$" "\n```\n$z$\n```")
    assert text.count("<math") == 2 and "`$y$`" in text and r"\$5" in text and "\n$z$\n" in text
    assert "_" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "*" not in text  # either would start emphasis in Markdown
    for unknown in (r"$\begin{nosuch}$", r"$\nosuch x$"):
        assert webpage.mathml(unknown) == unknown
    assert "\\" not in webpage.mathml(r"$\arg\min_j$")


def test_source_on_display(capsys):
    notebook.source(selftest.parameters)
    assert "Markdown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"varient": "te"}, "unknown parameter of 03_stage1 'varient'; .* did you mean 'variant'"),
        ({"variant": "tt"}, "unknown variant 'tt'"),
        ({"variant": 3}, "variant 3 is not a name"),
        ({"seed": "0"}, "seed '0' is not allowed"),
        ({"preset": "tiny"}, "unknown preset 'tiny'"),
        ({"overrides": "stage1.stepz=2"}, "unknown setting"),
        ({"source": "faces"}, "data.source = 'faces'"),
        ({"results": 3}, "results = 3 is not a text"),
    ],
)
@pytest.mark.promise("input")
def test_bad_parameters_of_a_notebook(changes, says):
    with pytest.raises(SettingsError, match=says):
        notebook.start(graph.NOTEBOOKS["03_stage1"] | changes, "03_stage1")


def test_names_of_ipython_and_later_calls_are_no_parameters():
    space = {"In": [], "Out": {}, "_": 3, "Path": Path, **graph.NOTEBOOKS["05_evaluation"]}
    first = notebook.start(space, "05_evaluation")
    assert first.variants == presets.DEFAULTS["smoke"][0] and first.seeds == (0,)
    space |= {"variants": "te,sc", "seeds": [2, 1], "counter": 3}  # reader goes on in the kernel
    second = notebook.start(space, "05_evaluation")
    assert second.variants == ("te", "sc") and second.seeds == (2, 1)
    assert second.settings.variant == "te" and second.settings.seed == 2
    del space["tables"]
    with pytest.raises(SettingsError, match="tables is not set; run the parameters cell"):
        notebook.start(space, "05_evaluation")


def test_fraction_and_overrides_reach_the_settings():
    values = graph.NOTEBOOKS["04_stage2"] | {"fraction": 0.5, "overrides": {"stage2.steps": 9}}
    found = notebook.start(values, "04_stage2").settings
    assert found.stage2.fraction == 0.5 and found.stage2.steps == 9
