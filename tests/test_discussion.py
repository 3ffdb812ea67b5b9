"""What the discussion reads from logs and summaries."""

import fake_runs
import numpy as np
import pandas as pd
import pytest

from tevq.grid import choose
from tevq.report import plots_discussion, tables


def test_transitions():
    curves = pd.DataFrame({"scenes": "full", "stride": 4, "variant": "te", "seed": 0,
                           "split": "val", "sequences": [10, 20, 30],
                           "quad1": 0.9, "quad2": [0.1, 0.6, 0.9], "quad3": [0.1, 0.5, 0.9],
                           "quad4": [0.1, 0.4, 0.9], "center": 0.0})
    assert plots_discussion.transitions(curves).sequences.tolist() == [20]
    slow = curves.assign(quad2=0.2, quad3=0.2, quad4=0.2, scenes="third")
    assert plots_discussion.transitions(slow).sequences.isna().all()
    both = plots_discussion.transitions(pd.concat([curves, slow]))
    assert both.scenes.tolist() == ["full", "third"]
    assert plots_discussion.of_table1(both, choose("smoke", "te", "0")).scenes.tolist() == ["full"]


def test_learning_curves_are_means_over_seeds_with_every_held_out_run(tmp_path, monkeypatch):
    """Planted fault: the last seed's curve drawn as the variant's."""
    runs = [pd.DataFrame({"scenes": scenes, "stride": 4, "variant": "te", "seed": seed,
                          "split": split, "sequences": [10, 20],
                          "quad1": [0.0, last], "quad2": 0.0, "quad3": 0.0, "quad4": 0.0})
            for seed, last, scenes in ((0, 0.25, "full"), (1, 0.75, "full"), (0, 0.9, "third"))
            for split in ("val", "val_seen")]
    monkeypatch.setattr(plots_discussion, "learning", lambda grid: pd.concat(runs))
    grid = choose("smoke", "te", "0,1", results=str(tmp_path))
    lines = plots_discussion.curves(grid).axes[0].lines
    ends = sorted(line.get_ydata()[-1] for line in lines if line.get_linestyle() == "-")
    assert ends == [0.25, 0.5, 0.75]
    assert [line.get_ydata()[-1] for line in lines if line.get_linestyle() == ":"] == [0.5]


def test_length_of_unused_codes(tmp_path):
    grid = choose("smoke", "te", "0", results=str(tmp_path))
    run = tables.Cell(grid.settings, "quantizer", "full", grid.results).run("stage1")
    run.folder.mkdir(parents=True)
    K = grid.settings.stage1.codes
    lengths = np.r_[np.full(K - 16, 5.0), np.full(16, 1.0)]  # 16 short ones are in use
    run.log(20, codes_used=16, norm_mean=lengths.mean(), norm_used=1.0)
    run.log(40, codes_used=K, norm_mean=2.0, norm_used=2.0)
    found = plots_discussion.health(grid).norm_unused
    assert found[0] == pytest.approx(5.0) and np.isnan(found[1])


def line(variant: str, kappas: dict[int, float], own: int) -> pd.DataFrame:
    """Kappa by number of codes; `own` is the quantizer's own number."""
    return pd.DataFrame([{"variant": variant, "seed": 0, "measure": "grid", "codes_used": codes,
                          "groups": 0 if codes == own else codes, "kappa": kappa}
                         for codes, kappa in kappas.items()])


def test_a_small_vocabulary_is_compared_at_its_own_size():
    """The kappa of the baseline falls by 0.1 with every doubling, so 32 of 16 and 64 is halfway."""
    found = pd.concat([line("sc", {256: 0.1, 64: 0.3, 16: 0.5, 4: 0.7}, own=256),
                       line("te", {32: 0.6, 8: 0.9}, own=32)])
    (row,) = plots_discussion.at_equal_size(found).itertuples()
    assert (row.seed, row.measure, row.codes) == (0, "grid", 32)
    assert (row.baseline, row.ours) == (0.1, 0.6) and row.merged == pytest.approx(0.4)


@pytest.mark.parametrize("found", [
    line("sc", {256: 0.1, 16: 0.5}, own=256),  # no te
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {128: 0.6}, own=128)]),
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {2: 0.6}, own=2)]),
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {1: np.nan}, own=1)]),
])
def test_sizes_that_cannot_be_compared_are_left_out(found):
    assert plots_discussion.at_equal_size(found).empty


def test_vocabularies_of_finished_runs(tmp_path):
    grid = choose("smoke", "sc,te", "0", results=str(tmp_path))
    assert plots_discussion.vocabularies(grid).empty
    fake_runs.finish(grid)
    found = plots_discussion.vocabularies(grid)
    assert len(found) == 2 * len(tables.MEASURES) * 4 and set(found.groups) == {0, 4, 8, 16}
    assert not found.duplicated(["variant", "seed", "measure", "groups"]).any()
