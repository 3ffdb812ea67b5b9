"""The run graph, what is skipped, what a failure does, and what wrong input says."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from fakes import write_all, write_notebook

from tevq import execute, graph, pipeline
from tevq.__main__ import main
from tevq.grid import FRACTION, choose


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Executions are pretended: the list of labels that were started."""
    labels: list[str] = []

    def launch(request, log, threads, stop):
        target = Path(request.target)
        labels.append(target.stem)
        target.write_text("{}")
        target.with_suffix(".html").write_text("")
        return execute.Outcome("done", 1.0)

    monkeypatch.setattr(execute, "launch", launch)
    return labels


def grid(tmp_path: Path, variants: str = "sc,te", tables: str = "1", **more):
    return choose(variants=variants, tables=tables, results=str(tmp_path / "results"), **more)


def run(made: pipeline.Plan) -> int:
    return pipeline.run(made, say=lambda text: None)


def test_every_node_comes_after_those_it_needs():
    nodes = graph.build(choose("gpu", tables="1,2,3"))
    labels = [node.label for node in nodes]
    assert len(labels) == len(set(labels))
    for place, node in enumerate(nodes):
        assert set(node.needs) <= set(labels[:place])
    assert nodes[0].label == "01_dataset" and nodes[-2].notebook == "06_discussion"
    # 5 variants x 3 seeds through both stages; Tables 2 and 3 add sc and te at every seed
    counts = {name: sum(node.notebook == name for node in nodes) for name in graph.NOTEBOOKS}
    assert counts["03_stage1"] == 15 + 6 and counts["04_stage2"] == 15 + 6


def test_benchmarks_run_alone_and_on_request_only():
    nodes = graph.build(choose("smoke"))
    assert "07_benchmarks" not in {node.label for node in graph.select(nodes, "")}
    assert [node.label for node in graph.select(nodes, "07")] == ["07_benchmarks"]
    widths = graph.width(nodes)
    assert widths["07_benchmarks"] == 1 and widths["01_dataset"] == 1


def test_tables_add_their_nodes():
    nodes = {n.label: n for n in graph.build(choose("gpu", "mb,te", "7", "2,3"))}
    third, other = nodes["04_stage2-te-s7-0.33"], nodes["03_stage1-te-s7-fashion"]
    assert third.parameters["fraction"] == FRACTION and third.needs == ("03_stage1-te-s7",)
    assert third.settings[0].stage2.fraction == FRACTION
    assert other.parameters["source"] == other.settings[0].data.source == "fashion"
    assert {third.label, other.label} <= set(nodes["05_evaluation"].needs)
    assert not any("mb" in label and label.endswith(("0.33", "fashion")) for label in nodes)
    assert not any("fashion" in node.label for node in graph.build(choose("smoke", tables="3")))
    assert not any("stride" in label for label in nodes)


def test_table_4_adds_both_stages_at_its_stride():
    nodes = {n.label: n for n in graph.build(choose("gpu", "mb,te", "7", "4", {"stage2.lr": 0.1}))}
    first, second = nodes["03_stage1-te-s7-stride8"], nodes["04_stage2-te-s7-stride8"]
    for node in (first, second):
        assert node.parameters["overrides"] == {"stage2.lr": 0.1, "stage1.stride": 8}
        assert node.settings[0].stage1.stride == 8 and node.settings[0].stage2.lr == 0.1
    assert second.needs == (first.label,) and second.label in nodes["05_evaluation"].needs
    assert "03_stage1-mb-s7-stride8" not in nodes
    already = graph.build(choose("gpu", "te", "7", "4", {"stage1.stride": 8}))
    assert not any("stride" in node.label for node in already)


def test_threads_do_not_depend_on_what_is_skipped():
    nodes = graph.build(choose(variants="sc,te", tables="1"))
    widths = graph.width(nodes)
    assert widths["01_dataset"] == widths["05_evaluation"] == 1
    assert widths["03_stage1-sc-s0"] == 2 and widths["04_stage2-te-s0"] == 3  # 02 beside the 04s


def test_finished_and_unchanged_is_skipped(tmp_path, folder, launched):
    assert run(pipeline.plan(grid(tmp_path), folder=folder)) == 0
    assert launched[0] == "01_dataset" and launched[-1] == "06_discussion"
    assert len(launched) == len(set(launched)) == 8
    again = pipeline.plan(grid(tmp_path), folder=folder)
    assert not again.to_run and run(again) == 0 and len(launched) == 8


def why(tmp_path, folder, label, **more) -> str:
    return pipeline.plan(grid(tmp_path, **more), folder=folder).reasons[label]


def test_a_change_runs_again_with_what_follows(tmp_path, folder, launched):
    run(pipeline.plan(grid(tmp_path), folder=folder))
    write_notebook(folder, "03_stage1", "1 + 1")
    changed = pipeline.plan(grid(tmp_path), folder=folder)
    assert changed.reasons["03_stage1-te-s0"] == "changed: notebook"
    assert "changed" in changed.reasons["06_discussion"]
    assert changed.reasons["01_dataset"] == ""


def test_only_the_settings_a_notebook_depends_on_count(tmp_path, folder, launched):
    run(pipeline.plan(grid(tmp_path), folder=folder))
    more = {"overrides": {"stage2.lr": 0.5}}
    assert why(tmp_path, folder, "03_stage1-te-s0", **more) == ""
    assert why(tmp_path, folder, "04_stage2-te-s0", **more) == "changed: settings"
    assert why(tmp_path, folder, "04_stage2-mb-s0", variants="mb,te") == "not run yet"


@pytest.mark.promise("grid")
def test_missing_outputs_run_again(tmp_path, folder, launched):
    run(pipeline.plan(grid(tmp_path), folder=folder))
    made = pipeline.plan(grid(tmp_path), folder=folder)
    made.copy("05_evaluation").with_suffix(".html").unlink()
    assert "05_evaluation.html is missing" in why(tmp_path, folder, "05_evaluation")
    assert why(tmp_path, folder, "06_discussion") == "after 05_evaluation"
    forced = pipeline.plan(grid(tmp_path), "05", force=True, folder=folder)
    assert [node.label for node in forced.to_run] == ["05_evaluation"]
    run(forced)
    assert why(tmp_path, folder, "06_discussion") == "older than 05_evaluation"


def test_results_a_notebook_wrote_are_looked_after(tmp_path, folder, monkeypatch):
    def launch(request, log, threads, stop):
        Path(request.target).write_text("{}")
        Path(request.target).with_suffix(".html").write_text("")
        (Path(request.target).parent.parent / "tables/table1.csv").write_text("a\n")
        return execute.Outcome("done")

    monkeypatch.setattr(execute, "launch", launch)
    run(pipeline.plan(grid(tmp_path), "05", folder=folder))
    (tmp_path / "results/smoke/tables/table1.csv").unlink()
    assert "table1.csv is missing" in why(tmp_path, folder, "05_evaluation")


def test_a_change_of_imported_code_is_seen(monkeypatch, tmp_path):
    package = tmp_path / "tevq"
    package.mkdir()
    (package / "scenes.py").write_text("from tevq.data.source import x\n")
    (package / "items.py").write_text("x = 1\n")
    (package / "vqgan.py").write_text("y = 1\n")
    monkeypatch.setattr(graph, "__file__", str(package / "graph.py"))
    book = {"cells": [{"cell_type": "code", "source": "from tevq import scenes"}]}
    before = graph.code_digest(book)
    (package / "vqgan.py").write_text("y = 2\n")
    assert graph.code_digest(book) == before
    (package / "items.py").write_text("x = 2\n")
    assert graph.code_digest(book) != before


@pytest.mark.promise("grid")
def test_a_failure_leaves_out_only_what_needs_it(tmp_path, folder):
    """Planted fault: a node runs although one that it needs has failed."""
    made = pipeline.plan(grid(tmp_path), folder=folder)
    said, order = [], []

    def start(node: graph.Node, stop: threading.Event) -> execute.Outcome:
        order.append(node.label)
        failing = node.label == "04_stage2-sc-s0"
        return execute.Outcome("failed" if failing else "done", 1.0, "In [3]: KeyError: 'a'")

    assert pipeline.run(made, jobs=2, say=said.append, start=start) == 1
    assert set(order) == {n.label for n in made.nodes} - {"05_evaluation", "06_discussion"}
    assert order.index("04_stage2-te-s0") > order.index("03_stage1-te-s0")
    summary = said[-1]
    assert "failed: 04_stage2-sc-s0: In [3]: KeyError: 'a'" in summary
    assert "04_stage2-sc-s0.log" in summary and "results/smoke/notebooks/*.html" in summary
    assert "need a failed one: 05_evaluation, 06_discussion" in summary


def test_never_more_side_by_side_than_asked(tmp_path, folder):
    made = pipeline.plan(grid(tmp_path, "mb,mp,cb,sc,te"), folder=folder)
    lock, now, most = threading.Lock(), [0], [0]

    def start(node: graph.Node, stop: threading.Event) -> execute.Outcome:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return execute.Outcome("done")

    pipeline.run(made, jobs=3, say=lambda text: None, start=start)
    assert most[0] == 3


def test_dry_run_touches_nothing(tmp_path, folder, capsys):
    words = ["--dry-run", "--results", str(tmp_path / "results"), "--variants", "te"]
    assert main(words, folder) == 0
    assert "run   03_stage1-te-s0" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--preset lapto", "unknown preset 'lapto'; allowed: gpu, laptop, paper, smoke"),
        ("--variants sc,tee", "did you mean 'te'?"),
        ("--seeds 0,-1", "seed '-1'"),
        ("--notebooks 8", "unknown notebook '8'"),
        ("--tables 5", "unknown table 5"),
        ("--set stage1.stepz=1", "did you mean 'stage1.steps'?"),
        ("--set stage1.steps=many", "stage1.steps = 'many' is not of type int"),
        ("--set stage1.steps", "is not name=value"),
        ("--set stage1.codes=65536", "cannot all be orthogonal"),
        ("--jobs -1", "--jobs -1"),
        ("--prest smoke", "unrecognized arguments"),
    ],
)
@pytest.mark.promise("input")
def test_wrong_input_is_one_line_and_code_2(words, says, folder, capsys):
    """Planted fault: `main` does not catch SettingsError."""
    try:
        exit_code = main(words.split(), folder)
    except SystemExit as error:  # argparse leaves this way
        exit_code = error.code
    out, err = capsys.readouterr()
    assert exit_code == 2 and says in err
    assert err.count("\n") == 1 and out == ""


@pytest.mark.promise("input")
def test_a_renamed_parameter_is_refused_before_anything_runs(tmp_path, folder, capsys):
    path = folder / "03_stage1.ipynb"
    path.write_text(path.read_text().replace("variant =", "varient ="))
    assert main(["--results", str(tmp_path / "results")], folder) == 2
    assert "03_stage1 has no parameter variant" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_durations():
    assert [pipeline.duration(s) for s in (0.2, 59.6, 185, 7380)] == [
        "0 s", "1 min 00 s", "3 min 05 s", "2 h 03 min"]
