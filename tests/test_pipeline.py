"""The run graph, what is skipped, what a failure does, and what wrong input says."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import write_all, write_notebook
from torchvision.datasets import MNIST

from tevq import cluster, execute, pipeline
from tevq.__main__ import main
from tevq.config import LOCAL, PUBLISHED, ROOT
from tevq.grid import FRACTION, choose
from tevq.runs import devices
from tevq.runs.run import Run, open_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


def finish(job: execute.Job) -> Path:
    """What a finished notebook leaves."""
    job.copy.parent.mkdir(exist_ok=True)
    job.copy.write_text("{}")
    job.copy.with_suffix(".html").write_text("")
    return job.copy


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Executions are pretended: the list of labels that were started."""
    labels: list[str] = []

    def launch(job, stopped):
        labels.append(finish(job).stem)
        return execute.Outcome("done", 1.0)

    monkeypatch.setattr(execute, "launch", launch)
    return labels


def grid(tmp_path: Path, variants: str = "sc,te", tables: str = "1", **more):
    return choose(variants=variants, tables=tables, results=str(tmp_path / "results"), **more)


def test_every_node_comes_after_those_it_needs():
    nodes = pipeline.build(choose("gpu", tables="1,2,3"))
    labels = [node.label for node in nodes]
    assert len(labels) == len(set(labels))
    for place, node in enumerate(nodes):
        assert set(node.needs) <= set(labels[:place])
    assert nodes[0].label == "01_dataset" and nodes[-4].notebook == "06_discussion"
    # 5 variants x 3 seeds through both stages; Tables 2 and 3 add sc and te at every seed
    counts = {name: sum(node.notebook == name for node in nodes) for name in pipeline.NOTEBOOKS}
    assert counts["03_stage1"] == 15 + 6 and counts["04_stage2"] == 15 + 6


def test_what_is_no_part_of_the_study_runs_on_request_only():
    nodes = pipeline.build(choose("smoke"))
    usual, widths = {node.label for node in pipeline.select(nodes, "")}, pipeline.width(nodes)
    for name in ("00_try_it", "07_benchmarks", "09_playground"):
        assert name not in usual
        assert [node.label for node in pipeline.select(nodes, name[:2])] == [name]
        assert widths[name] == 1 and not next(n for n in nodes if n.label == name).needs
    assert "01_dataset" in usual and widths["01_dataset"] == 1


def test_tables_add_their_nodes():
    nodes = {n.label: n for n in pipeline.build(choose("gpu", "mb,te", "7", "2,3"))}
    third, other = nodes["04_stage2-te-s7-0.33"], nodes["03_stage1-te-s7-fashion"]
    assert third.parameters["fraction"] == FRACTION and third.needs == ("03_stage1-te-s7",)
    assert third.settings[0].stage2.fraction == FRACTION
    assert other.parameters["source"] == other.settings[0].data.source == "fashion"
    assert {third.label, other.label} <= set(nodes["05_evaluation"].needs)
    assert not any("mb" in label and label.endswith(("0.33", "fashion")) for label in nodes)
    assert not any("fashion" in node.label for node in pipeline.build(choose("smoke", tables="3")))
    assert not any("stride" in label for label in nodes)


def test_table_4_adds_both_stages_at_its_stride():
    chosen = choose("gpu", "mb,te", "7", "4", {"stage2.lr": 0.1})
    nodes = {n.label: n for n in pipeline.build(chosen)}
    first, second = nodes["03_stage1-te-s7-stride8"], nodes["04_stage2-te-s7-stride8"]
    for node in (first, second):
        assert node.parameters["overrides"] == {"stage2.lr": 0.1, "stage1.stride": 8}
        assert node.settings[0].stage1.stride == 8 and node.settings[0].stage2.lr == 0.1
    assert second.needs == (first.label,) and second.label in nodes["05_evaluation"].needs
    assert "03_stage1-mb-s7-stride8" not in nodes
    already = pipeline.build(choose("gpu", "te", "7", "4", {"stage1.stride": 8}))
    assert not any("stride" in node.label for node in already)


def test_threads_do_not_depend_on_what_is_skipped():
    nodes = pipeline.build(choose(variants="sc,te", tables="1"))
    widths = pipeline.width(nodes)
    assert widths["01_dataset"] == widths["05_evaluation"] == 1
    assert widths["03_stage1-sc-s0"] == 2 and widths["04_stage2-te-s0"] == 3  # 02 beside the 04s


def test_finished_and_unchanged_is_skipped(tmp_path, folder, launched):
    assert pipeline.run(pipeline.plan(grid(tmp_path), folder=folder)) == 0
    assert launched[0] == "01_dataset" and {"06_discussion", "08_why"} == set(launched[-2:])
    assert len(launched) == len(set(launched)) == 9
    again = pipeline.plan(grid(tmp_path), folder=folder)
    assert not again.to_run and pipeline.run(again) == 0 and len(launched) == 9


def why(tmp_path, folder, label, **more) -> str:
    return pipeline.plan(grid(tmp_path, **more), folder=folder).reasons[label]


def test_a_change_runs_again_with_what_follows(tmp_path, folder, launched):
    pipeline.run(pipeline.plan(grid(tmp_path), folder=folder))
    write_notebook(folder, "03_stage1", "1 + 1")
    changed = pipeline.plan(grid(tmp_path), folder=folder)
    assert changed.reasons["03_stage1-te-s0"] == "changed: notebook"
    assert "changed" in changed.reasons["06_discussion"]
    assert changed.reasons["01_dataset"] == ""


def test_only_the_settings_a_notebook_depends_on_count(tmp_path, folder, launched):
    pipeline.run(pipeline.plan(grid(tmp_path), folder=folder))
    more = {"overrides": {"stage2.lr": 0.5}}
    assert why(tmp_path, folder, "03_stage1-te-s0", **more) == ""
    assert why(tmp_path, folder, "04_stage2-te-s0", **more) == "changed: settings"
    assert why(tmp_path, folder, "04_stage2-mb-s0", variants="mb,te") == "not run yet"


@pytest.mark.promise("grid")
def test_missing_outputs_run_again(tmp_path, folder, launched):
    pipeline.run(pipeline.plan(grid(tmp_path), folder=folder))
    made = pipeline.plan(grid(tmp_path), folder=folder)
    made.jobs["05_evaluation"].copy.with_suffix(".html").unlink()
    assert why(tmp_path, folder, "05_evaluation") == pipeline.PAGE
    assert why(tmp_path, folder, "06_discussion") == ""  # nothing is executed for a page
    made.jobs["05_evaluation"].copy.unlink()
    assert "05_evaluation.ipynb is missing" in why(tmp_path, folder, "05_evaluation")
    assert why(tmp_path, folder, "06_discussion") == "after 05_evaluation"
    forced = pipeline.plan(grid(tmp_path), "05", force=True, folder=folder)
    assert [node.label for node in forced.to_run] == ["05_evaluation"]
    pipeline.run(forced)
    assert why(tmp_path, folder, "06_discussion") == "older than 05_evaluation"


def test_results_a_notebook_wrote_are_looked_after(tmp_path, folder, monkeypatch):
    def launch(job, stopped):
        table = finish(job).parent.parent / "tables/table1.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("a\n")
        return execute.Outcome("done")

    monkeypatch.setattr(execute, "launch", launch)
    pipeline.run(pipeline.plan(grid(tmp_path), "05", folder=folder))
    (tmp_path / "results/smoke/tables/table1.csv").unlink()
    assert "table1.csv is missing" in why(tmp_path, folder, "05_evaluation")


def test_a_change_of_any_source_is_seen(monkeypatch, tmp_path):
    """Planted fault: `glob`, which passes over subfolders."""
    place = tmp_path / "tevq/models/vqgan.py"
    place.parent.mkdir(parents=True)
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    place.write_text("y = 1\n")
    before = cluster.code_digest()
    assert cluster.code_digest() == before
    place.write_text("y = 2\n")
    assert cluster.code_digest() != before


@pytest.mark.promise("grid")
def test_a_failure_leaves_out_only_what_needs_it(tmp_path, folder, monkeypatch, capsys):
    """Planted fault: a node runs although one that it needs has failed."""
    made = pipeline.plan(grid(tmp_path), folder=folder)
    order = []

    def launch(job, stopped) -> execute.Outcome:
        order.append(job.label)
        if job.label != "04_stage2-sc-s0":
            finish(job)
            return execute.Outcome("done", 1.0)
        return execute.Outcome("failed", 1.0, "In [3]: KeyError: 'a'")

    monkeypatch.setattr(execute, "launch", launch)
    assert pipeline.run(made, jobs=2) == 1
    assert set(order) == {n.label for n in made.nodes} - {
        "05_evaluation", "06_discussion", "08_why"}
    assert order.index("04_stage2-te-s0") > order.index("03_stage1-te-s0")
    said = capsys.readouterr().out
    assert "failed: 04_stage2-sc-s0: In [3]: KeyError: 'a'; log " in said
    assert "04_stage2-sc-s0.log" in said and "results/smoke/notebooks/*.html" in said
    assert "left out 05_evaluation; " in said and "left out 06_discussion; " in said
    assert "\nstarted 01_dataset, log " in said
    assert "failed 04_stage2-sc-s0 after 0:00:01: In [3]: KeyError: 'a'; " in said
    assert "\ndone 01_dataset after 0:00:01; 1 of 9 notebooks\n" in said
    # the next run does only what is missing
    assert {n.label for n in pipeline.plan(grid(tmp_path), folder=folder).to_run} == {
        "04_stage2-sc-s0", "05_evaluation", "06_discussion", "08_why"}


def test_an_error_of_a_worker_is_a_failure_of_its_notebook(tmp_path, folder, monkeypatch, capsys):
    """Planted fault: the error ends the command."""
    def launch(job, stopped):
        raise ValueError("no such thing") if job.label == "01_dataset" else AssertionError

    monkeypatch.setattr(execute, "launch", launch)
    assert pipeline.run(pipeline.plan(grid(tmp_path), "01,03", folder=folder), 2) == 1
    said = capsys.readouterr().out
    assert "failed: 01_dataset: ValueError: no such thing" in said
    assert "left out 03_stage1-sc-s0; " in said and "left out 03_stage1-te-s0; " in said


def test_as_many_side_by_side_as_asked(tmp_path, folder, monkeypatch):
    made = pipeline.plan(grid(tmp_path, "mb,mp,cb,sc,te"), folder=folder)
    lock, now, most = threading.Lock(), [0], [0]

    def launch(job, stopped) -> execute.Outcome:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(1.5)  # Dask takes a moment to move what waits to an idle worker
        with lock:
            now[0] -= 1
        return execute.Outcome("done")

    monkeypatch.setattr(execute, "launch", launch)
    pipeline.run(made, jobs=3)
    assert most[0] == 3


def test_nothing_to_run_starts_no_cluster(tmp_path, folder, launched, monkeypatch):
    """Planted fault: a cluster for an empty plan, which costs seconds."""
    pipeline.run(pipeline.plan(grid(tmp_path), folder=folder))
    monkeypatch.setattr(cluster, "workers", None)
    assert pipeline.run(pipeline.plan(grid(tmp_path), folder=folder)) == 0


@pytest.mark.parametrize("words", ["--help", "--notebooks 01"])
def test_without_work_nothing_large_is_imported(words, tmp_path, folder, launched):
    """Planted fault: torch imported for the names of run folders."""
    results = tmp_path / "results"
    pipeline.run(pipeline.plan(grid(tmp_path, tables="1,2,3"), "01", folder=folder))
    program = ("import sys; from pathlib import Path; from tevq.__main__ import main\n"
               f"try: main({words.split()!r} + ['--results', {str(results)!r}], "
               f"Path({str(folder)!r}))\nexcept SystemExit: pass\n"
               "found = {'torch', 'distributed', 'papermill', 'pandas'} & set(sys.modules)\n"
               "sys.exit(' '.join(found) or 0)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dry_run_touches_nothing(tmp_path, folder, capsys):
    words = ["--dry-run", "--results", str(tmp_path / "results"), "--variants", "te"]
    assert main(words, folder) == 0
    assert "run   03_stage1-te-s0" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--preset lapto", "unknown preset 'lapto'; did you mean 'laptop'? Allowed: gpu, laptop, "),
        ("--variants sc,tee", "did you mean 'te'?"),
        ("--seeds 0,-1", "seed '-1'"),
        ("--notebooks 10", "unknown notebook '10'"),
        ("--tables 5", "unknown table 5"),
        ("--set stage1.stepz=1", "did you mean 'stage1.steps'?"),
        ("--set stage1.steps=many", "stage1.steps = 'many' is not of type int"),
        ("--set stage1.steps", "is not name=value"),
        ("--set stage1.codes=16384", "cannot all be orthogonal"),
        ("--jobs -1", "--jobs -1"),
        ("--jobs 0", "--jobs 0 is not allowed"),
        ("--dry-run --site --preset xx", "use --site, --test, --torture alone, not --dry-run --si"),
        ("--test --jobs 2", "alone, not --test --jobs 2"),
        ("--dry-run --slurm nofile.yaml", "No such file or directory: 'nofile.yaml'"),
        ("--dry-run --set data.source=folder:/nope", "there are no folders in /nope"),
        ("--dry-run --set data.source=torchvision:NOPE", "'NOPE'; allowed: EMNIST, Fash"),
        ("--dry-run --set data.source=idx:/nope", "no IDX file /nope-train-images"),
        ("--prest smoke", "unrecognized arguments"),
    ],
)
@pytest.mark.promise("input")
def test_wrong_input_is_one_line_and_code_2(words, says, folder, monkeypatch, capsys):
    """Planted faults: `main` does not catch SettingsError; sources and files not looked for."""
    def start(*words):
        raise AssertionError(f"started {words}")

    monkeypatch.setattr(os, "execv", start)
    try:
        exit_code = main(words.split(), folder)
    except SystemExit as error:  # argparse leaves this way
        exit_code = error.code
    out, err = capsys.readouterr()
    assert exit_code == 2 and says in err
    assert err.count("\n") == 1 and out == ""


@pytest.mark.promise("input")
@pytest.mark.parametrize("option", ["--seeds", "--variants", "--notebooks", "--tables", "--set",
                                    "--results", "--lease", "--scheduler", "--slurm", "--preset"])
def test_an_empty_value_is_refused(option, folder, capsys):
    """Planted fault: the empty value of a shell variable that is not set means the default."""
    assert main(["--dry-run", option, ""], folder) == 2
    assert capsys.readouterr().err.startswith(f"tevq: {option} is empty; ")
    assert choose(seeds="", variants="").variants == ("sc", "te")  # in notebooks the preset's own


def test_data_sets_of_torchvision_are_planned_without_a_download(folder, monkeypatch, capsys):
    """Planted fault: the items loaded to look for the source."""
    monkeypatch.setattr(MNIST, "__init__", None)
    words = ["--dry-run", "--notebooks", "01", "--set", "data.source=torchvision:EMNIST/letters"]
    assert main(words, folder) == 0
    assert "run   01_dataset" in capsys.readouterr().out


@pytest.mark.promise("input")
def test_a_results_folder_that_cannot_be_is_named_as_it_was_given(tmp_path, folder, capsys):
    """Planted fault: the first file in it named instead."""
    (tmp_path / "file").touch()
    assert main(["--notebooks", "01", "--results", str(tmp_path / "file")], folder) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"tevq: cannot write {tmp_path / 'file'}: ") and "--results" in said


def test_every_choice_has_a_folder_of_its_own(monkeypatch):
    """Planted fault: the tables of two seeds over those of three."""
    monkeypatch.delenv("TEVQ_RESULTS", raising=False)
    assert choose("laptop").folder == LOCAL / "laptop"
    assert choose("laptop", "sc,te", "0", "1").folder == LOCAL / "laptop-sc_te-s0"
    assert choose("laptop", tables="1,2").folder == LOCAL / "laptop-t1_2"
    one, other = (choose("laptop", overrides=f"stage2.steps={n}").folder for n in (7, 8))
    assert one != other and one.parent == other.parent == LOCAL
    assert choose("laptop", "te", results="elsewhere").folder == Path("elsewhere/laptop").resolve()
    monkeypatch.setenv("TEVQ_RESULTS", str(PUBLISHED))  # as --publish does
    assert choose("laptop", "te").folder == PUBLISHED / "laptop"


def published(tmp_path, monkeypatch) -> dict[str, Run]:
    """Finished runs in a published folder of their own: by kind, as another command finds them."""
    from tevq import config, grid
    from tevq.runs import run

    for module in (config, grid, run):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path / "results", raising=False)
        monkeypatch.setattr(module, "LOCAL", tmp_path / "results/local", raising=False)
    monkeypatch.delenv("TEVQ_RESULTS", raising=False)
    found = {}
    for kind in ("classifier", "stage1", "quantizer"):
        made = open_run(choose().settings, kind, tmp_path / "results")
        made.finish({"seconds": 1.0}, None if kind == "quantizer" else {})
        found[kind] = made
    return found


def test_finished_published_runs_are_found_and_never_written(tmp_path, monkeypatch):
    """Planted faults: not looked for; written to; locked, in a folder that may be read-only."""
    there, settings = published(tmp_path, monkeypatch), choose().settings
    before = sorted(path for path in there["stage1"].folder.rglob("*"))
    here = open_run(settings, "stage1")
    assert here.has_weights and here.folder == there["stage1"].folder
    with here.lock():
        assert here.own == tmp_path / "results/local/smoke/runs" / there["stage1"].name
    assert sorted(path for path in there["stage1"].folder.rglob("*")) == before
    assert not open_run(settings, "stage1", tmp_path / "elsewhere").done
    # numbers of published networks do not pass for those of networks that were trained here
    assert open_run(settings, "quantizer").folder == there["quantizer"].folder
    Run(here.own, here.config).finish({"seconds": 2.0}, {"a": 1})
    assert open_run(settings, "stage1").summary()["seconds"] == 2
    assert not open_run(settings, "quantizer").done


def test_a_published_run_without_weights_is_trained_here(tmp_path, monkeypatch):
    """Planted faults: its summary taken for a training; the training not seen by who waited."""
    there, settings = published(tmp_path, monkeypatch), choose().settings
    weights, = (there["stage1"].folder / "state").iterdir()
    models = tmp_path / "results/smoke/models"
    models.mkdir()
    shipped = models / f"stage1-{there['stage1'].folder.name}.{weights.name.split('.', 1)[1]}"
    weights.rename(shipped)
    assert open_run(settings, "stage1").has_weights  # git keeps some
    shipped.unlink()
    one, other = open_run(settings, "stage1"), open_run(settings, "stage1")
    assert one.done and not one.has_weights
    with one.lock():
        one.start(devices.detect("float32"))
        one.finish({"seconds": 3.0}, {})
    with other.lock():
        assert other.has_weights and other.summary()["seconds"] == 3
    assert there["stage1"].summary()["seconds"] == 1


FIGURE = """\
import matplotlib.pyplot as plt
notebook.save(plt.figure(), study, "06_accuracy_equivariance")"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git clone")
def test_a_command_changes_no_file_that_git_keeps(tmp_path):
    """Planted fault: results/<preset> as the default."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--shared", ROOT, clone], check=True)
    for path in ("tevq", ".gitignore"):  # as they are, committed or not
        subprocess.run(["cp", "-r", ROOT / path, clone], check=True)
    write_notebook(clone / "notebooks", "06_discussion", FIGURE)
    subprocess.run(["git", "-C", clone, "add", "-A"], check=True)
    subprocess.run(["git", "-C", clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit",
                    "-qm", "as it is", "--allow-empty"], check=True)
    env = {k: v for k, v in execute.environment().items() if k != "TEVQ_RESULTS"}
    env["PYTHONPATH"] = env["PYTHONPATH"].replace(str(ROOT), str(clone))
    words = [sys.executable, "-m", "tevq", "--preset", "laptop", "--notebooks", "06"]
    done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "results/local/laptop/notebooks/06_discussion.html").exists()
    assert not subprocess.check_output(["git", "-C", clone, "status", "--porcelain"])


def test_local_tables_are_named_beside_the_published_ones(tmp_path, monkeypatch):
    """Planted fault: the line printed although one of the two is missing."""
    monkeypatch.setattr("tevq.config.PUBLISHED", tmp_path / "published")
    made = pipeline.plan(grid(tmp_path))
    for place in ("results", "published"):
        assert "compare: " not in pipeline.summary(made, {}, 1.0)
        table = tmp_path / place / "smoke/tables/table1.csv"
        table.parent.mkdir(parents=True)
        table.write_text("a\n")
    assert "compare: " in (last := pipeline.summary(made, {}, 1.0).splitlines()[-1])
    assert "results/smoke/tables" in last and "published/smoke/tables" in last
