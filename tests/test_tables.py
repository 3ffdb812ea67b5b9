"""Tables from finished, missing and mixed runs; wide views."""

import json

import fake_runs
import numpy as np
import pandas as pd
import pytest
from pages import study

from tevq.config import SettingsError
from tevq.grid import choose
from tevq.report import claims, tables, views


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two seeds, three variants, MNIST; cb lacks seed 1, the runs on a third lack altogether."""
    found = choose("laptop", "cb,sc,te", "0,1", "", "", str(tmp_path_factory.mktemp("results")))
    fake_runs.finish(found, without=("evaluation/mnist-cb-s1", "p33"))
    return found


@pytest.fixture(scope="module")
def built(grid):
    return tables.build(grid)


# ---------------------------------------------------------------------------------- long format


def test_columns_and_complete_rows(built):
    for name, table in built.items():
        assert list(table.columns[:8]) == ["preset", "variant", "seed", "task", "case", "metric",
                                           "value", "n"], name
        keys = [c for c in ("run", "task", "split", "decoding", "case", "metric", "cells")
                if c in table]
        assert not table.duplicated(keys).any(), name
    # 3 variants x 2 seeds x 2 splits x (2 ceilings + 2 decodings of t2i: 24, 2 of i2t: 35 each)
    assert len(built["table1"]) == 3 * 2 * 2 * (4 * 24 + 2 * 35)


def test_values_are_those_of_the_runs(grid, built):
    run = tables.Cell(grid.cell("te", 1), "evaluation", "full", grid.results).run()
    rows = {(r["split"], r["task"], r["decoding"], r["case"], r["metric"]): r
            for r in run.summary()["rows"]}
    found = tables.select(built["table1"], run=run.name)
    assert len(found) == len(rows)
    for row in found.itertuples():
        source = rows[row.split, row.task, row.decoding, row.case, row.metric]
        assert (row.value, row.n, row.correct) == (source["value"], source["n"], source["correct"])
        assert row.classifier_accuracy == 0.996 and row.state == "done"


def test_missing_cells_stay_with_an_empty_value(built):
    gone = tables.select(built["table1"], variant="cb", seed=1, task="t2i")
    assert len(gone) == 96 and gone.value.isna().all() and gone.n.isna().all()
    assert set(gone.state) == {"missing"}
    third = tables.select(built["table2"], size="third")
    assert len(third) and third.value.isna().all()
    assert tables.select(built["table2"], size="full").value.notna().all()


@pytest.mark.promise("records")
def test_another_config_is_another_cell(grid):
    """Planted fault: run folders without the digest of their settings."""
    other = choose("laptop", "sc,te", "0", "", "stage2.lr=1e-4", grid.results)
    found = tables.build(other)["table1"]
    of_stage2 = found.task.isin(("t2i", "i2t"))
    assert found[of_stage2].value.isna().all()  # other generators: nothing is borrowed
    assert found[~of_stage2].value.notna().all()  # the same quantizers


def test_written_tables_read_back(grid, built):
    paths = tables.write(grid, built)
    assert {p.name for p in paths} == {f"{n}.csv" for n in ("table1", "table2", "table3",
                                                            "equivariance", "stride")}
    for name, table in built.items():
        back = tables.read(grid, name)
        assert list(back.columns) == list(table.columns)
        np.testing.assert_allclose(back.value, table.value, rtol=1e-5, equal_nan=True)
        assert (back.run == table.run).all() and back.n.equals(table.n)
    first = paths[0].read_bytes()
    tables.write(grid, tables.build(grid))
    assert paths[0].read_bytes() == first  # the same runs give the same file
    assert b"/" not in first.replace(b"evaluation/", b"").replace(b"quantizer/", b"")


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="run notebook 05 first"):
        tables.read(choose("smoke", results=str(tmp_path)), "table1")


def test_one_direction_expects_one_direction(tmp_path):
    one = choose("smoke", "te", "0", "", "stage2.directions=i2t", str(tmp_path))
    found = tables.build(one)
    assert set(found["table1"].task) == {"ceiling-real", "ceiling-reconstruction", "i2t"}
    assert found["table2"].empty


def test_sources_of_table_3(built, tmp_path):
    assert list(dict.fromkeys(built["table3"].source)) == ["mnist", "fashion"]
    digits = tables.build(choose("smoke", "sc,te", "0", results=str(tmp_path)))
    assert set(digits["table3"].source) == {"digits"}
    alone = tables.build(choose("laptop", "mb", "0", results=str(tmp_path)))
    assert set(alone["table3"].source) == {"mnist"}  # the other items are for sc and te
    assert not any("uses fewer codes" in claim.text for claim in claims.all_claims(alone))


def test_the_stride_of_table_4_stays_out_of_the_other_tables(grid, built, tmp_path):
    for name, table in built.items():
        assert set(table.stride) == ({8} if name == "stride" else {4}), name
    ours = study.strides(built)
    assert ours.index.names == ["stride", "variant", "of"]
    assert list(ours.index.unique(0)) == ["4", "8"] and list(ours.index.unique(1)) == ["sc", "te"]
    usual = views.accuracy(built["table1"], "t2i").loc[("te", "ours"), "mean of Quad1–4"]
    assert ours.loc[("4", "te", "ours"), "text→image"] == usual
    assert ours.loc[("4", "sc", "ours"), "codes used"] == "220 (1)"
    assert ours.loc[("8", "sc", "ours"), "codes used"] == "210 (1)"
    kappa = {s: float(ours.loc[(s, "te", "ours"), "kappa, grid"][:5]) for s in "48"}
    assert kappa["4"] - kappa["8"] == pytest.approx(0.1, abs=2e-3)
    order = [c for c in claims.all_claims(built) if "stride 8" in c.text]
    assert [c.paper for c in order] == [c.paper_interval for c in order] == [None, None]
    for claim, (task, metric) in zip(order, (("t2i", "digit"), ("i2t", "official_digit")),
                                     strict=True):  # a second route
        means = tables.select(built["stride"], task=task, split="test", decoding="sampled",
                              metric=metric)
        means = means[means.case != "center"].groupby(["variant", "seed"]).value.mean()
        assert claim.values == pytest.approx(tuple(means["te"] - means["sc"]))
    other = tables.build(choose("smoke", "te", "0", "", "stage1.stride=8", str(tmp_path)))
    assert other["stride"].empty and set(other["table1"].stride) == {8}
    assert study.strides(other).empty and claims.all_claims(other)


# ---------------------------------------------------------------------------------- matrices, views


def test_by_case(built):
    where = {"task": "t2i", "split": "test", "decoding": "sampled", "metric": "digit"}
    matrix = tables.by_case(built["table1"], **where)
    assert list(matrix.columns) == ["quad1", "quad2", "quad3", "quad4", "mean", "center"]
    assert matrix.loc["te", "mean"].tolist() == pytest.approx(
        matrix.loc["te"][list(tables.QUADS)].mean(axis=1).tolist())
    assert np.isnan(matrix.loc[("cb", 1), "mean"])
    with pytest.raises(ValueError, match="several values"):
        tables.by_case(built["table1"], task="t2i", split="test")


def test_published_numbers():
    one = tables.published(1)
    assert len(one) == 5 * 2 * 4 and one.sd.notna().all()
    te = tables.select(one, variant="te", task="t2i", case="quad1").iloc[0]
    assert (te.value, te.sd) == (0.931, 0.033)
    assert tables.select(one, variant="sc", task="i2t").value.tolist() == [.786, .692, .595, .542]
    two, three = tables.published(2), tables.published(3)
    drops = two.set_index(["variant", "size"]).value
    assert drops["sc", "full"] - drops["sc", "third"] == pytest.approx(0.073)
    assert drops["te", "full"] - drops["te", "third"] == pytest.approx(0.012)
    assert tables.select(three, metric="codes_used").value.tolist() == [252, 14, 250, 18]


def test_each_seed_is_shown_up_to_the_last_that_has_a_value():
    """Planted fault: a gap left out, so that a value stands at another seed's place."""
    values = pd.Series([float("nan"), 0.25, float("nan"), 0.5, float("nan"), float("nan")])
    assert views.each(values, 2) == "missing  0.25  missing  0.50"
    assert views.each(values[:1]) == ""


def test_accuracy_view(built):
    view = views.accuracy(built["table1"], "t2i")
    ours = tables.by_case(built["table1"], task="t2i", split="test", metric="digit",
                          decoding="sampled").loc["te"]
    mean, sd = ours.quad1.mean(), ours.quad1.std(ddof=1)
    assert view.loc[("te", "ours"), "Quad1"] == f"{mean:.3f} ({sd:.3f})"
    assert view.loc[("te", "paper"), "Quad1"] == "0.931 (0.033)"
    assert view.loc[("te", "ours − paper"), "Quad1"] == f"{mean - 0.931:+.3f}"
    assert view.loc[("te", "paper"), "center"] == "–"
    assert view.loc[("cb", "ours"), "Quad1"].endswith(" (n = 1)")
    assert ("cb", "each seed") not in view.index  # one seed: "ours" says it all
    assert view.loc[("te", "each seed"), "Quad1"] == "  ".join(f"{v:.3f}" for v in ours.quad1)
    assert view.loc[("sc", "ceiling: reconstructions"), "Quad1"] == "0.980 (0.000)"
    greedy = views.accuracy(built["table1"], "i2t", decoding="greedy", metric="exact")
    assert "paper" not in greedy.index.unique(1)  # the paper did not count that


def test_other_views(grid, built):
    assert set(views.sample_efficiency(built["table2"]).iloc[:, 1]) >= {"missing", "0.919 (0.022)"}
    three = views.reconstruction(built["table3"])
    assert three.loc[("fashion", "te", "paper"), "codes used"] == "18"
    assert three.loc[("mnist", "te", "ours"), "codes used"] == "20 (0)"
    distance = three.columns[-1]
    assert "classifier" in distance and three.loc[("mnist", "te", "paper"), distance] == "–"
    assert ("mnist", "cb", "ours") in three.index and ("mnist", "cb", "paper") not in three.index
    kappa = views.equivariance(built["equivariance"])
    assert kappa.loc[("mnist", "te"), "official, all"] == "0.785 (0.007)"
    every = views.metrics(built["table1"], "i2t", "greedy")
    assert every.loc[("cb", "held out"), "exact"].endswith(" (n = 1)")
    text = views.caption(grid, built["table1"])
    assert "scaled down" in text and "99.60%" in text and "seeds 0, 1" in text
    html = views.show(views.accuracy(built["table1"], "t2i"), "a caption", "id").to_html()
    assert "a caption" in html and "bold" in html


# ---------------------------------------------------------------------------------- scenes


def test_the_bootstrap_reads_its_own_split(grid, tmp_path, monkeypatch):
    """Planted faults: scenes of both splits; sc − te."""
    monkeypatch.setattr(fake_runs, "accuracy", lambda variant, seed, task, split, case: (
        0.9 if (variant, split) == ("te", "test") else 0.5))
    made = choose("laptop", "sc,te", "0,1", "", "", str(tmp_path))
    fake_runs.finish(made)
    held, seen = (claims.bootstrap(made, split=split) for split in ("test", "test_seen"))
    assert 0.3 < held.low < 0.4 < held.high and seen.low < 0 < seen.high
    assert claims.bootstrap(choose("laptop", "sc,te", "0,5", results=grid.results)) is None


def test_everything_shows_with_and_without_results(grid, built, tmp_path):
    empty = choose("smoke", "sc,te", "0", results=str(tmp_path))
    alone = choose("smoke", "mb", "0", results=str(tmp_path))  # nothing to compare
    half = choose("smoke", "sc,te", "0", "", "stage2.directions=i2t", str(tmp_path))
    for which, parts in ((grid, built), *((s, tables.build(s)) for s in (empty, alone, half))):
        for view in (views.accuracy(parts["table1"], "t2i"), views.accuracy(parts["table1"], "i2t"),
                     views.metrics(parts["table1"], "t2i", "sampled"), study.overview(parts),
                     views.sample_efficiency(parts["table2"]),
                     views.reconstruction(parts["table3"]), study.strides(parts),
                     views.equivariance(parts["equivariance"])):
            views.show(view, views.caption(which, parts["table1"]), "id").to_html()
        claims.verdicts(claims.all_claims(parts))
        claims.family(parts["table1"])


def test_fakes_are_json(tmp_path):
    grid = choose("smoke", "te", "0", results=str(tmp_path))
    fake_runs.finish(grid)
    for path in tmp_path.rglob("summary.json"):
        assert json.loads(path.read_text())
