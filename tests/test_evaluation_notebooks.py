"""Notebooks 05 and 06: their figures say what the data say, and their words what the tables say.

Their cells run here in a plain namespace, without a kernel; figures are caught instead of saved.
"""

import ast
import itertools
import json
from pathlib import Path

import fake_runs
import IPython.display
import numpy as np
import pandas as pd
import pytest
import torch
from small import TINY

from tevq import notebook
from tevq.data.captions import Clause
from tevq.evaluate import evaluate
from tevq.evaluate.evaluator import split_of
from tevq.grid import choose
from tevq.report import stats, style, tables, why
from tevq.report.claims import Claim
from tevq.runs.devices import ROOT

RESULTS = ROOT / "results"
SMOKE = {"preset": "smoke", "overrides": "", "variants": "", "seeds": "", "tables": ""}


@pytest.fixture
def execute(monkeypatch):
    """Runs a notebook: (name, results, parameters) -> its names, and its figures by name."""
    figures = {}
    monkeypatch.setattr(IPython.display, "display", lambda *things: [
        thing._repr_html_() for thing in things if hasattr(thing, "_repr_html_")])
    monkeypatch.setattr(notebook, "source", lambda *_: None)

    def save(figure, _, name):
        figure.canvas.draw()
        figures[name] = figure

    monkeypatch.setattr(notebook, "save", save)

    def run(name: str, results: Path | str, **values: str):
        names = {"__name__": "__main__"}
        for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                names |= SMOKE | {"results": str(results)} | values
            elif cell["cell_type"] == "code":
                tree = ast.parse("".join(cell["source"]))
                shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, cell["id"], "exec"), names)
                if shown:
                    value = eval(compile(ast.Expression(shown.value), cell["id"], "eval"), names)
                    IPython.display.display(value)
        return names, figures

    return run


def stamps(figure) -> str:
    """What stands under a figure about its data."""
    return " ".join([text.get_text() for text in figure.texts]
                    + [legend.get_title().get_text() for legend in figure.legends])


def blank(figures: dict) -> bool:
    """Whether there are figures, and none claims a run."""
    return bool(figures) and all("seeds 0" not in stamps(figure) for figure in figures.values())


def test_notebooks_run_with_nothing_finished(execute, tmp_path):
    assert blank(execute("06_discussion", tmp_path)[1])
    assert blank(execute("08_why", tmp_path)[1])
    names, figures = execute("05_evaluation", tmp_path)
    assert blank(figures)
    truth = {Clause(0, 0, 2), Clause(3, 3, 9)}
    text = "the upper left is white two, and the lower right is red nine, also the two."
    assert names["clauses_of"](text, truth) == [
        ("the upper left is white two", True), ("the lower right is red nine", False),
        ("the two", False)]
    twice = names["clauses_of"]("white two at the top left, white two at the top left.", truth)
    assert [right for _, right in twice] == [True, False]
    assert names["clauses_of"]("", truth) == [("", False)]
    every = {(c.kind, c.size): c for c in tables.cells(names["grid"])
             if c.settings.stage1.stride == 4 and c.settings.variant == "te"}
    assert names["lacks"](every["quantizer", "full"]) == "notebook 03"
    for kind in ("classifier", "stage1"):
        run = every["quantizer", "full"].run(kind)
        run.folder.mkdir(parents=True)
        run.finish({}, {"a": 1})
    assert names["lacks"](every["quantizer", "full"]) == ""
    for size in ("full", "third"):
        assert names["lacks"](every["evaluation", size]) == "notebook 04"


def test_notebooks_run_with_nothing_to_compare(execute, tmp_path):
    """One baseline, and generators that only describe."""
    values = {"variants": "mb", "overrides": "stage2.directions=i2t"}
    assert blank(execute("05_evaluation", tmp_path, **values)[1])
    assert blank(execute("06_discussion", tmp_path, **values)[1])


def test_notebook_08_shows_what_has_run_and_names_what_has_not(execute, tmp_path, capsys):
    """Planted faults: trainings of before the plan decide; an arm that has not run is not named;
    half of the arms make an answer; a pair that lacks a seed is not told."""
    grid = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    fake_runs.finish(grid)
    fake_runs.finish(choose("smoke", "sc,te", "100,101", results=str(tmp_path)))
    fake_runs.finish(choose("smoke", "te", "102", results=str(tmp_path)))
    names, figures = execute("08_why", tmp_path, variants="sc,te", seeds="0,1")
    said = capsys.readouterr().out
    assert "our judge: not settled" in said and "Preliminary answer: not settled. No expl" in said
    assert "Seeds with all that decides: 0 of 6" in said
    assert "not run yet: merged, sc40, te_revived" in said
    assert names["seeds_of_both"]("te", "sc") == "2; not 102"
    assert names["seeds_of_both"]("merged", "te") == "0"
    assert names["stands"]("merged", "official") == "fewer than two seeds"
    assert [line["arm"] for line in names["differences"]] == ["te"]
    assert len(figures) == 7
    drawn = figures["08_bits"].axes[0]
    planned = names["means"][names["means"].planned]
    filled = [tuple(points.get_offsets()[0]) for points in drawn.collections
              if len(points.get_facecolor())]
    assert sorted(filled) == sorted(zip(planned.bits, planned.official, strict=True))
    assert len(drawn.collections) == 4 and "simvq" in stamps(figures["08_bits"])
    found = figures["08_two_by_two"].axes[0]
    drawn = {round(float(y), 9) for line in found.lines for y in line.get_ydata()}
    assert {round(y, 9) for y in planned.official} <= drawn


def test_two_by_two_draws_seeds_that_have_all_four(execute, tmp_path):
    """Planted faults: arms of different seeds in one panel; seeds of a figure that are not told."""
    wide = "stage1.code_dim=64"  # te40 needs 40 at least
    for arms, seeds in (("sc,te", "100,101"), ("sc40,te40", "101")):
        fake_runs.finish(choose("smoke", arms, seeds, overrides=wide, results=str(tmp_path)))
    _, figures = execute("08_why", tmp_path, variants="sc,te", seeds="0,1", overrides=wide)
    assert "seeds 101 · one seed · all have run" in stamps(figures["08_two_by_two"])
    assert "seeds 100, 101 (sc, te); 101 (sc40, te40)" in stamps(figures["08_predictors"])


def test_every_seed_is_a_point_and_only_drawn_seeds_are_named(execute, tmp_path):
    """cb lacks seed 1, the runs on a third lack altogether. Planted faults: a mean for the seeds;
    the paper's values of another direction; all seeds of the grid named; cells of a seed beyond the
    preset's own, or of a table that was not asked for, called missing.
    """
    grid = choose("smoke", "cb,sc,te", "0,1", results=str(tmp_path))
    fake_runs.finish(grid, without=("evaluation/digits-cb-s1", "p33"))
    names, figures = execute("05_evaluation", tmp_path, variants="cb,sc,te", seeds="0,1")
    axis = figures["05_table1"].axes[0]
    drawn = np.concatenate([points.get_offsets()[:, 1] for points in axis.collections
                            if hasattr(points, "get_offsets")])
    ours = tables.by_case(names["built"]["table1"], task="t2i", split="test", metric="digit",
                          decoding="sampled").to_numpy().ravel()
    paper = tables.select(tables.published(1), task="t2i")
    for value in [*ours[~np.isnan(ours)], *paper[paper.variant.isin(grid.variants)].value]:
        assert np.isclose(drawn, value).any()
    assert "seeds 0 (cb); 0, 1 (sc, te)" in stamps(figures["05_table1"])
    assert "no runs yet" in stamps(figures["05_table2"])
    states = names["states"]
    assert states.loc[(1, "evaluation", "digits", "cb")].tolist() == ["evaluated", "not planned"]
    third = states.loc[(2, "evaluation", "digits", "te")]
    assert third.tolist() == ["missing: notebook 03", "not planned"]
    assert len(execute("06_discussion", tmp_path, variants="cb,sc,te", seeds="0,1")[1]) > 10


def test_rows_of_the_painted_examples(execute, tmp_path, monkeypatch):
    """Planted faults: the decoding is ignored; a missing run drawn, or not named; other scenes."""
    small = choose("smoke", "cb,sc,te", "0,1", "", TINY, str(tmp_path))
    scenes, asked = split_of(small.settings, "test")[0], []
    kept = evaluate.first_of_each_case(scenes.case)

    def load_painted(settings, split, results, index, decoding):
        asked.append((settings.variant, settings.seed, decoding))
        part = scenes.take(kept[index])
        painted = evaluate.Painted(torch.zeros(len(index), 3, 64, 64), part.label, part.colour)
        return painted if settings.variant != "cb" else None

    monkeypatch.setattr(evaluate, "load_examples", lambda *_: {"scene": kept.tolist()})
    monkeypatch.setattr(evaluate, "load_painted", load_painted)
    names, figures = execute("05_evaluation", tmp_path, variants="cb,sc,te", seeds="0,1",
                             overrides=TINY)
    assert {decoding for *_, decoding in asked} == {"sampled", "greedy"}
    figure = figures["05_text_to_image_greedy"]
    assert "greedy" in figure.get_suptitle() and "no picture: cb" in stamps(figure)
    rows = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert rows == ["asked for\n(real items)", "sc", "te"]
    marks = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert set(marks) == {"✓"} and len(marks) == 2 * (names["scenes"].place != 255).sum()
    titles = [axis.get_title(loc="center") for axis in figures["05_text_to_image_seeds"].axes]
    assert titles == ["asked for", "seed 0", "seed 1"] * 2


def test_curves_and_lengths_of_codes(execute, tmp_path, monkeypatch):
    """Means over seeds with every run; unused codes have a mean length of their own.

    Planted faults: the last seed's curve drawn as the variant's; runs on a third drawn, too.
    """
    runs = [pd.DataFrame({"scenes": scenes, "stride": 4, "variant": "te", "seed": seed,
                          "split": split, "sequences": [10, 20], "quad1": [0.0, last],
                          "quad2": 0.0, "quad3": 0.0, "quad4": 0.0, "center": 0.0})
            for seed, last, scenes in ((0, 0.25, "full"), (1, 0.75, "full"), (0, 0.9, "third"))
            for split in ("val", "val_seen")]
    monkeypatch.setattr(tables, "learning", lambda grid: pd.concat(runs, ignore_index=True))
    grid = choose("smoke", "te", "0,1", results=str(tmp_path))
    run = tables.Cell(grid.settings, "quantizer", "full", grid.results).run("stage1")
    run.folder.mkdir(parents=True)
    K = grid.settings.stage1.codes
    lengths = np.r_[np.full(K - 16, 5.0), np.full(16, 1.0)]  # 16 short ones are in use
    run.log(20, codes_used=16, norm_mean=lengths.mean(), norm_used=1.0)
    run.log(40, codes_used=K, norm_mean=2.0, norm_used=2.0)
    names, figures = execute("06_discussion", tmp_path, variants="te", seeds="0,1")
    unused = names["health"].norm_unused
    assert unused[0] == pytest.approx(5.0) and np.isnan(unused[1])
    lines = figures["06_learning_curves"].axes[0].lines
    assert sorted(line.get_ydata()[-1] for line in lines) == [0.25, 0.5, 0.75]


def test_two_intervals_decide_and_a_rank_correlation_is_exact(execute, tmp_path):
    """Planted faults: the paired interval alone decides; a p from chance draws or of one side."""
    names, _ = execute("05_evaluation", tmp_path)
    alike = pd.DataFrame({"te": [0.70, 0.80, 0.90], "sc": [0.69, 0.79, 0.8901]})
    found = names["gap"](alike)
    assert found["paired interval"].startswith("[+0.0") and found["both exclude zero"] == "no"
    assert found["within ±0.03"] == "yes" and found["seeds"] == 3
    assert names["gap"](alike + [0, -0.5])["both exclude zero"] == "yes"
    assert names["gap"](alike[:1])["both exclude zero"] == "–" and not names["gap"](alike[:0])
    names, _ = execute("06_discussion", tmp_path)
    rows = pd.DataFrame({"official": [0.5, 0.6, 0.7, 0.8, 0.9], "bits": [9, 7, 5, 3, 1]})
    assert names["ranked"](rows, "bits") == pytest.approx((-1, 2 / 120))
    assert names["ranked"](rows[:3], "bits") is None


def test_the_lead_is_said_to_change_only_by_its_interval(execute, tmp_path, monkeypatch, capsys):
    """Log-odds stay 1 apart on average, so only points shrink. Planted faults: one seed says that
    it shrinks; words of the points for the log-odds.
    """
    odds, runs = np.array([0.0, 1.0, 2.0, 3.0]), []
    for seed, variant in itertools.product((0, 1, 2), ("sc", "te")):
        above = (variant == "te") * (1 + 0.1 * (seed - 1) * (odds - 1.5))
        runs.append(pd.DataFrame({
            "scenes": "full", "stride": 4, "variant": variant, "seed": seed, "split": "val",
            "sequences": [10, 20, 30, 40], "center": 0.0}
            | dict.fromkeys(tables.QUADS, 1 / (1 + np.exp(-odds - above)))))
    for seeds in ("0", "0,1,2"):
        chosen = [run for run in runs if str(run.seed[0]) in seeds]
        monkeypatch.setattr(tables, "learning", lambda _, found=chosen: pd.concat(
            found, ignore_index=True))
        execute("06_discussion", tmp_path, variants="sc,te", seeds=seeds)
        said = capsys.readouterr().out
        assert ("the lead shrinks" in said) == (seeds != "0")
        assert ("one seed, no interval" in said) == (seeds == "0")
    parts = said.split("held out, ")
    assert parts[1].startswith("points") and "the lead shrinks" in parts[1]
    assert parts[2].startswith("log-odds") and "first half +1.000" in parts[2]
    assert "shrinks" not in parts[2]


def test_the_second_judge_compares_equal_seeds(execute, tmp_path, monkeypatch, capsys):
    """Planted faults: means over seeds 0 and 101 beside one of 101; what is left out unnamed."""
    real, own = why.table, [("sc", 0, 0.5), ("te", 0, 0.5), ("sc", 101, 0.7), ("te", 101, 0.9),
                            ("sc40", 101, 0.8)]

    def table(grid):
        frame = real(grid)
        for variant, seed, value in own:
            frame.loc[(frame.variant == variant) & (frame.seed == seed), "official_second"] = value
        return frame

    monkeypatch.setattr(why, "table", table)
    names, _ = execute("06_discussion", tmp_path, variants="sc,te")
    assert "not every variant has them: seeds 0" in capsys.readouterr().out
    assert names["measured"].set_index("variant").official_second.to_dict() == {
        "sc": 0.7, "te": 0.9, "sc40": 0.8}


def test_seeds_are_named_where_they_differ():
    rows = pd.DataFrame({"variant": ["mb", "te", "te"], "seed": [0, 1, 0]})
    assert style.seeds_of(rows) == "seeds 0 (mb); 0, 1 (te)"
    assert style.seeds_of(rows[rows.variant == "te"]) == "seeds 0, 1"
    assert style.seeds_of(rows[:0]) == "no runs yet"


# ------------------------------------------------------------- the words, and the committed results


@pytest.fixture(scope="module")
def committed() -> tuple:
    grid = choose("laptop", "mb,mp,cb,sc,te", "0,1,2,3,4,5", "1,2,3,4", results=str(RESULTS))
    return grid, tables.build(grid)


def test_table_cells_are_the_sums_of_the_scene_records(committed):
    """The shares of every evaluation, counted again from its scene-by-scene records."""
    checked = 0
    for cell in tables.cells(committed[0]):
        records = cell.run().folder / "scenes.csv.gz"
        if cell.kind != "evaluation" or not records.exists():
            continue
        sums = pd.read_csv(records).groupby(["split", "case"]).sum(numeric_only=True)
        for row in cell.run().summary()["rows"]:
            name = f"{row['task']}_{row['decoding']}_{row['metric']}"
            found = sums.loc[row["split"], row["case"]]
            assert row["n"] == found[f"{name}_n"]
            assert row["value"] == pytest.approx(found[f"{name}_correct"] / found[f"{name}_n"])
            checked += 1
    assert checked > 5_000


def gaps(wide: pd.DataFrame, a: str = "te", b: str = "sc") -> tuple:
    """a - b over the seeds that have both: the paired interval, and the one without pairs."""
    wide = wide[[a, b]].dropna().astype(float)
    parts = [(sign, stats.Group(wide[v].mean(), wide[v].std(), len(wide)))
             for v, sign in ((a, 1), (b, -1))]
    return stats.t_interval(wide[a] - wide[b]), stats.contrast(parts)[1]


def decided(wide: pd.DataFrame, a: str = "te", b: str = "sc") -> bool:
    return not any(0 in interval for interval in gaps(wide, a, b))


def equivalent(wide: pd.DataFrame) -> bool:
    return Claim("", "", tuple((wide.te - wide.sc).dropna().astype(float))).small


def runs(table: pd.DataFrame, task: str, split: str = "test", decoding: str = "sampled",
         **where: str) -> pd.DataFrame:
    """Accuracy as the paper counts it, mean of Quad1-4: rows seeds, columns variants."""
    matrix = tables.by_case(table, task=task, split=split, decoding=decoding,
                            metric=tables.AS_PUBLISHED[task][1], **where)
    return matrix["mean"].unstack("variant").astype(float)


def test_what_notebook_05_says_of_the_laptop_results(committed):
    """Planted faults: any sentence of section 8 that its own rule, both intervals, refutes."""
    table1, table2, table3, stride = (committed[1][name] for name in (
        "table1", "table2", "table3", "stride"))
    order = ["mb", "mp", "cb", "sc"]
    for task in tables.AS_PUBLISHED:
        found = runs(table1, task)
        assert found[order].mean().idxmax() == "mb"
        pairs = {pair for pair in itertools.combinations(order, 2) if decided(found, *pair)}
        assert pairs == ({("mb", "sc")} if task == "t2i" else set())
    held_out, seen = (runs(table1, "t2i", split) for split in ("test", "test_seen"))
    assert abs((held_out.te - held_out.sc - seen.te + seen.sc).mean()) < 0.01
    for decoding in ("sampled", "greedy"):
        assert gaps(runs(table1, "t2i", decoding=decoding))[0].low > 0
        assert equivalent(runs(stride, "t2i", decoding=decoding))
    assert gaps(runs(table1, "i2t"))[0].high < 0
    assert equivalent(runs(table1, "i2t", decoding="greedy"))
    assert max(found.high for found in gaps(runs(stride, "i2t", decoding="greedy"))) < 0
    for measure in tables.MEASURES:
        kappa = tables.select(stride, task="measure", metric="kappa", cells="foreground",
                              case=measure).pivot(index="seed", columns="variant", values="value")
        assert min(found.low for found in gaps(kappa)) > 0
    full, third = (tables.by_case(table2, split="test", size=size) for size in ("full", "third"))
    for case in ("quad1", "mean"):
        both = pd.concat({"full": full[case], "third": third[case]}, axis=1).dropna()
        paired = stats.t_interval((both.full - both.third).unstack("variant").eval("sc - te"))
        groups = [(v * s, stats.Group(part.mean(), part.std(), len(part)))
                  for name, v in (("sc", 1), ("te", -1)) for size, s in (("full", 1), ("third", -1))
                  for part in [both.loc[name, size]]]
        assert 0 in stats.contrast(groups)[1] and (0 in paired) == (case == "quad1")


def test_what_notebook_06_says_of_the_laptop_results(committed):
    grid, built = committed
    colours = tables.by_case(built["table1"], task="t2i", split="test", decoding="sampled",
                             metric="colour")["mean"].dropna()
    assert colours.min() > 0.99  # binding is done
    every = tables.select(tables.learning(grid), scenes="full", stride=4)
    curves = tables.select(every, split="val")
    several = curves[list(tables.QUADS[1:])].mean(axis=1) - curves.quad1
    assert abs(several.groupby(curves.variant).mean()).max() < 0.06  # Quad2-4 follow Quad1
    own = why.table(grid).query("not planned and variant in ('sc', 'te')")
    for _, rows in own.groupby("variant"):  # section 5
        assert rows[["official", "kappa_context"]].corr("spearman").iloc[0, 1] > 0.7
        later = rows.seed > 2
        for name in ("official", "kappa_context"):
            assert rows[name][later].mean() > rows[name][~later].mean()
    within = own[own.variant == "te"][["official", "feature_error"]].corr("spearman")
    assert within.iloc[0, 1] < -0.7
    fewer = own[own.variant == "sc"][["official", "bits"]].corr("spearman")
    assert fewer.iloc[0, 1] < -0.7
    sizes = tables.vocabularies(grid)
    errors = sizes[sizes.groups == 0].pivot(index=["measure", "seed"], columns="variant",
                                            values="feature_error").astype(float)
    beyond = tables.at_equal_size(sizes).set_index("measure")
    for measure in tables.MEASURES:
        gap = (errors.te - errors.sc).loc[measure].dropna()
        assert stats.t_interval(gap).low > 0  # features of te are less equivariant
        rest = stats.t_interval((beyond.ours - beyond.merged).loc[measure])
        assert (rest.low > 0) == (measure == "subgrid") and rest.high > 0
