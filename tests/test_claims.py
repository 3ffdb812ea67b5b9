"""Verdicts on claims from numbers given by hand, and what claims compare."""

import fake_runs
import numpy as np
import pandas as pd
import pytest
from pages import study

from tevq.grid import choose
from tevq.report import claims, stats, tables, views
from tevq.report.claims import Claim
from tevq.report.stats import Interval


@pytest.mark.parametrize(("values", "verdict"), [
    ((0.1, 0.11, 0.09), "same direction"),
    ((-0.1, -0.11, -0.09), "opposite direction"),
    ((0.01, 0.012, 0.011), "same direction"),  # small, but not zero
    ((0.011, -0.01, 0.0, 0.005), "no difference"),
    ((0.3, -0.1), "undecided"),  # the interval includes 0
    ((0.05, -0.05, 0.02), "undecided"),  # and it is wider than the margin
    ((0.3,), "undecided"),  # one seed
    ((), "missing"),
])
def test_verdicts_rest_on_our_own_interval(values, verdict):
    """Planted faults: the sign of the mean alone; the paper's interval as a verdict."""
    claim = Claim("x", "4.1", values, 0.1, Interval(-1, 1))
    assert claim.verdict == verdict and verdict in study.VERDICTS
    assert ("inside the paper's interval" in claim.note) == bool(values)


def test_no_difference_is_two_one_sided_tests():
    """A second route: scipy's one-sided t-tests against both ends of the margin."""
    from scipy.stats import ttest_1samp

    random = np.random.default_rng(0)
    for scale in (0.005, 0.02, 0.03, 0.06):
        for mean in (0.0, 0.01, 0.02, 0.035):
            values = tuple(mean + scale * random.standard_normal(6))
            low = ttest_1samp(values, -claims.MARGIN, alternative="greater").pvalue
            high = ttest_1samp(values, claims.MARGIN, alternative="less").pvalue
            assert Claim("x", "", values).small == (max(low, high) < 0.05)


def test_no_difference_needs_ninety_percent_only():
    """The 90 % interval is ±0.0288, the 95 % interval ±0.0368. Planted fault: the wider one."""
    values = 3 * (0.032, -0.032)
    assert stats.t_interval(values).high > claims.MARGIN
    assert Claim("x", "", values).verdict == "no difference"


def test_a_difference_that_is_there_but_small_says_both():
    claim = Claim("x", "3.2", (0.007, 0.008, 0.006), None)
    assert claim.verdict == "same direction" and "within ±0.03" in claim.note
    kappa = Claim("x", "3.2", (0.01, -0.01, 0.0), margin=None)  # no difference of accuracies
    assert kappa.verdict == "undecided" and not kappa.small and "within" not in kappa.note
    assert kappa._replace(margin=0.03).small


def test_only_accuracies_have_a_margin():
    """Planted fault: a kappa of .98 cannot rise by .03, and would count as no difference."""
    every = {c.text: c for c in study.all_claims(study.published_grid())}
    unlike = ("kappa", "features", "codes than", "fidelity", "reconstructs", "log-odds")
    assert len(every) > 25
    for text, c in every.items():
        assert (c.margin is None) == any(word in text for word in unlike), text


def test_greedy_and_relative_claims_by_hand():
    """Planted faults: sampled numbers in greedy claims; a difference in place of a share."""
    grid = study.published_grid()
    every = {c.text: c for c in study.all_claims(grid)}
    table, three = tables.read(grid, "table1"), tables.read(grid, "table3")
    rows = table[(table.task == "i2t") & (table.decoding == "greedy") & (table.split == "test")
                 & (table.metric == "official_digit") & (table["case"] != "center")]
    mean = rows.groupby(["seed", "variant"]).value.mean().unstack()
    assert every["image→text, greedy: te above sc, mean of Quad1–4"].values == pytest.approx(
        (mean.te - mean.sc).dropna().tolist())
    rows = three[(three.metric == "perceptual") & (three.source == "mnist")
                 & (three.split == "test")].pivot(index="seed", columns="variant", values="value")
    claim = next(c for text, c in every.items() if text.startswith("mnist: te reconstructs worse"))
    assert claim.values == pytest.approx((rows.te / rows.sc - 1).dropna().tolist())
    assert claim.paper == pytest.approx(0.0048 / 0.0036 - 1)


def test_a_difference_of_alike_pairs_is_not_to_be_trusted():
    """Planted faults: the paired interval twice; a group with the wrong sign; one told of where
    both intervals agree."""
    from scipy.stats import ttest_ind

    every = {c.text: c for c in study.all_claims(study.published_grid())}
    lucky = [text for text, c in every.items() if c.lucky]
    assert [text[:20] for text in lucky] == ["a third of the train", "text→image at stride"]
    assert all(f"not to be trusted: unpaired {every[text].lucky}" in every[text].note
               for text in lucky)
    table = tables.read(study.published_grid(), "stride")
    rows = tables.select(table, task="t2i", decoding="sampled", metric="digit", split="test")
    mean = rows[rows.case != "center"].groupby(["seed", "variant"]).value.mean().unstack().dropna()
    theirs = ttest_ind(mean.te, mean.sc, equal_var=False).confidence_interval()
    assert every[lucky[1]].lucky == f"[{theirs.low:+.3f}, {theirs.high:+.3f}]"
    claim = every[lucky[0]]
    estimate = sum(weight * group.mean for weight, group in claim.groups)
    assert estimate == pytest.approx(claim.estimate) and len(claim.groups) == 4
    assert claim.verdict == "same direction" and "not to be" not in every[
        "text→image: te above sc, mean of Quad1–4"].note


def test_a_generator_below_the_mark_is_named_and_one_that_learned_nothing_decides_nothing():
    far = (0.3, 0.31, 0.32)
    claim = Claim("x", "4.1", far, 0.1, None, {"sc t2i": 0.57, "te t2i": 0.95})
    assert claim.verdict == "same direction"
    assert claim.note == "3 seeds; below 0.9 on seen Quad2–4: sc t2i 0.570"
    assert claim._replace(seen={"sc t2i": 0.49}).verdict == "undecided"
    assert claim._replace(values=()).note == "" and "one seed" in claim._replace(values=(1,)).note


def test_a_negative_and_a_limited_claim():
    fewer = Claim("fewer", "5", (-200.0, -190.0), -238, sign=-1, digits=1)
    assert fewer.verdict == "same direction"
    assert fewer._replace(values=(200.0, 190.0)).verdict == "opposite direction"
    little = Claim("little", "5", (0.10, 0.11, 0.12), 0.06, limit=0.25)
    assert little.verdict == "within the limit" and "limit 0.250" in little.note
    assert little._replace(limit=0.05).verdict == "above the limit"
    assert little._replace(limit=0.11).verdict == "undecided"


def test_generators_that_learned_nothing_are_undecided(tmp_path, monkeypatch):
    monkeypatch.setattr(fake_runs, "accuracy", lambda *_: 0.2)
    grid = choose("smoke", "sc,te", "0,1", results=str(tmp_path))
    fake_runs.finish(grid)
    first = claims.primary(tables.build(grid)["table1"])
    assert first.verdict == "undecided" and "sc t2i 0." in first.note


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two seeds, three variants, MNIST; cb lacks seed 1, the runs on a third lack altogether."""
    grid = choose("laptop", "cb,sc,te", "0,1", "", "", str(tmp_path_factory.mktemp("results")))
    fake_runs.finish(grid, without=("evaluation/mnist-cb-s1", "p33"))
    return tables.build(grid)


def means(table: pd.DataFrame, task: str, metric: str, split: str = "test") -> pd.Series:
    """A second route: mean of Quad1-4 by (variant, seed)."""
    rows = tables.select(table, task=task, split=split, metric=metric, decoding="sampled")
    return rows[rows.case != "center"].groupby(["variant", "seed"]).value.mean()


def test_claims_by_a_second_route(built):
    every = {claim.text: claim for claim in claims.all_claims(built)}
    assert len(claims.verdicts(list(every.values()))) == len(every)
    first = every["text→image: te above sc, mean of Quad1–4"]
    held, seen = (means(built["table1"], "t2i", "digit", split) for split in ("test", "test_seen"))
    gain = held["te"] - held["sc"]
    assert first.values == pytest.approx(tuple(gain))
    assert first.paper == pytest.approx((0.119 + 0.107 + 0.1 + 0.107) / 4)
    beyond = next(claim for text, claim in every.items() if "never shows" in text)
    assert beyond.values == pytest.approx(tuple(gain - (seen["te"] - seen["sc"])))
    headline = [every[f"{task}: te above sc, Quad1 (the abstract's number)"]
                for task in claims.TITLES.values()]
    assert [claim.paper for claim in headline] == pytest.approx([0.119, 0.039])
    assert headline[0].paper_interval == pytest.approx(
        stats.contrast([(1, stats.Group(0.931, 0.033)), (-1, stats.Group(0.812, 0.032))])[1])
    assert every["mnist: te uses fewer codes than sc"].values == (-200.0, -201.0)
    kappa = next(claim for text, claim in every.items() if "subgrid" in text)
    assert kappa.values == pytest.approx((0.22, 0.22)) and kappa.paper is None
    rival = every["text→image: te above the best of mb, mp, cb (cb, without mb, without mp)"]
    assert rival.detail.startswith(f"te {held['te', 0]:.3f}, cb 0.")
    assert rival.detail.endswith(" on seeds 0") and rival.detail in rival.note
    order = every["text→image: sc above mb, mean of Quad1–4"]
    assert order.verdict == "missing" and order.paper == pytest.approx(0.79225 - 0.669)


@pytest.mark.parametrize("task, decoding", [("t2i", "sampled"), ("i2t", "greedy")])
def test_seen_is_the_worst_seed_on_two_to_four_items(built, task, decoding):
    """Planted faults: the mean over seeds; Quad1 counted, which any generator learns first; what
    captions were learned read from sampled ones; held-out combinations."""
    rows = tables.select(built["table1"], task=task, split="test_seen", metric="digit",
                         decoding=decoding)
    rows = rows[rows.case.isin(("quad2", "quad3", "quad4"))]
    worst = rows.groupby(["variant", "seed"]).value.mean().groupby("variant").min()
    assert claims.primary(built["table1"], task).seen == pytest.approx(
        {f"sc {task}": worst.sc, f"te {task}": worst.te})


def test_numbers_of_the_paper_beside_ours(built):
    """Planted faults: another rival than the paper's best; the largest of its SDs."""
    every = {claim.text: claim for claim in claims.all_claims(built)}
    rows = tables.select(tables.published(1), task="t2i").groupby("variant")
    mean, sd = rows.value.mean(), rows.sd.mean()
    assert mean[["mb", "mp", "cb"]].idxmax() == "cb"
    for words, b in (("te above sc, mean of Quad1–4", "sc"), ("te above the best", "cb")):
        claim = next(c for text, c in every.items() if text.startswith(f"text→image: {words}"))
        difference, interval = stats.contrast([(1, stats.Group(mean.te, sd.te)),
                                               (-1, stats.Group(mean[b], sd[b]))])
        assert claim.paper == pytest.approx(difference)
        assert claim.paper_interval == pytest.approx(interval)


def test_the_gain_in_both_directions_by_hand(built):
    """Planted faults: the seen combinations in the place of image→text; the paper's gains added."""
    claim = next(c for c in claims.all_claims(built) if "larger in text→image" in c.text)
    painted, written = (means(built["table1"], task, metric)
                        for task, metric in (("t2i", "digit"), ("i2t", "official_digit")))
    gains = [found["te"] - found["sc"] for found in (painted, written)]
    assert claim.values == pytest.approx(tuple(gains[0] - gains[1]))
    mean = tables.published(1).groupby(["task", "variant"]).value.mean()
    assert claim.paper == pytest.approx(mean["t2i", "te"] - mean["t2i", "sc"]
                                        - mean["i2t", "te"] + mean["i2t", "sc"])


def test_extra_l1_and_its_limit_by_hand(built):
    """0.011 to 0.010, and a ten-thousandth more of both for seed 1; the limit is the paper's.
    Planted faults: the share of te's L1; the smaller one of the paper's two."""
    claim = next(c for c in claims.all_claims(built) if "costs little fidelity" in c.text)
    assert claim.values == pytest.approx((0.011 / 0.010 - 1, 0.0111 / 0.0101 - 1))
    l1 = tables.published(3).query("metric == 'l1'").pivot(index="source", columns="variant",
                                                           values="value")
    assert claim.limit == pytest.approx(max(l1.te / l1.sc) - 1)
    assert claim.paper == pytest.approx(l1.te["mnist"] / l1.sc["mnist"] - 1)


def test_a_claim_about_every_variant_is_judged_by_the_least(built):
    """Planted fault: a mean over variants, in which one that holds hides those that do not."""
    painted, written = (means(built["table1"], task, metric)
                        for task, metric in (("t2i", "digit"), ("i2t", "official_digit")))
    gaps = (painted - written).dropna().groupby("variant")
    below = next(c for c in claims.all_claims(built) if "below" in c.text)
    assert f"(least: {gaps.mean().idxmin()})" in below.text
    assert below.estimate == pytest.approx(gaps.mean().min())
    shown = dict(part.split()[:2] for part in below.detail.replace("], ", "]; ").replace(
        "–, ", "–; ").split("; "))
    assert {v: float(x) for v, x in shown.items()} == pytest.approx(dict(gaps.mean()), abs=1e-3)


def test_a_variant_that_the_paper_has_not_is_no_part_of_its_claims(built):
    """Planted fault: a difference to a number that was never published."""
    renamed = built | {"table1": built["table1"].replace({"variant": {"cb": "ap"}})}
    every = claims.all_claims(renamed)
    assert not any("ap" in f"{claim.text} {claim.detail}".split() for claim in every)
    assert all(claim.paper is None or np.isfinite(claim.paper) for claim in every)
    assert ("ap", "ours") in views.accuracy(renamed["table1"], "t2i").index


def test_orders_of_the_baselines(tmp_path):
    grid = choose("smoke", "mb,mp,cb,sc,te", "0,1", "1", "", str(tmp_path))
    fake_runs.finish(grid)
    built = tables.build(grid)
    order = next(c for c in claims.all_claims(built) if "sc above mb" in c.text)
    ours = means(built["table1"], "t2i", "digit").groupby("variant").mean().drop("te")
    names = " > ".join(ours.sort_values(ascending=False).index)
    assert f"ours {names}, paper sc > cb > mp > mb" in order.note


def test_sample_efficiency_by_a_second_route(tmp_path):
    """Quad1, mean of all quads, and what generators on a third do on seen combinations."""
    grid = choose("laptop", "sc,te", "0", "1,2", "", str(tmp_path))
    fake_runs.finish(grid)
    built = tables.build(grid)
    quad1, every = (c for c in claims.all_claims(built) if "a third" in c.text)
    rows = tables.select(built["table2"], split="test")
    rows = rows[rows.case != "center"].set_index(["variant", "size", "case"]).value
    drop = rows.xs("full", level="size") - rows.xs("third", level="size")
    assert quad1.values == pytest.approx([drop["sc", "quad1"] - drop["te", "quad1"]])
    assert quad1.paper == pytest.approx(0.061) and every.paper is None
    mean = drop.groupby("variant").mean()
    assert every.values == pytest.approx([mean.sc - mean.te])
    assert every.detail == f"sc {-mean.sc:+.3f}, te {-mean.te:+.3f}"
    assert list(quad1.seen) == ["sc t2i (full)", "te t2i (full)", "sc t2i (third)",
                                "te t2i (third)"]


def test_family_says_how_low_its_p_values_can_go(built):
    """With two seeds no p is below 0.5, so eight tests leave nothing below 1. Planted fault: p
    without Holm."""
    family = claims.family(built["table1"])
    assert len(family) == 8 and family["p sign-flip"].min() == 0.5
    assert (family["p Holm"] == 1).all()
    assert "below 0.500, and Holm over 8 tests not below 1.00" in study.floor(family)


# ------------------------------------------------------------------- merged codes


def line(variant: str, kappas: dict[int, float], own: int) -> pd.DataFrame:
    """Kappa by number of codes; `own` is the quantizer's own number."""
    return pd.DataFrame([{"variant": variant, "seed": 0, "measure": "grid", "codes_used": codes,
                          "groups": 0 if codes == own else codes, "kappa": kappa}
                         for codes, kappa in kappas.items()])


def test_a_small_vocabulary_is_compared_at_its_own_size():
    """The kappa of the baseline falls by 0.1 with every doubling, so 32 of 16 and 64 is halfway."""
    found = pd.concat([line("sc", {256: 0.1, 64: 0.3, 16: 0.5, 4: 0.7}, own=256),
                       line("te", {32: 0.6, 8: 0.9}, own=32)])
    (row,) = tables.at_equal_size(found).itertuples()
    assert (row.seed, row.measure, row.codes) == (0, "grid", 32)
    assert (row.baseline, row.ours) == (0.1, 0.6) and row.merged == pytest.approx(0.4)


@pytest.mark.parametrize("found", [
    line("sc", {256: 0.1, 16: 0.5}, own=256),  # no te
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {128: 0.6}, own=128)]),
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {2: 0.6}, own=2)]),
    pd.concat([line("sc", {64: 0.1, 16: 0.5}, own=64), line("te", {1: np.nan}, own=1)]),
])
def test_sizes_that_cannot_be_compared_are_left_out(found):
    assert tables.at_equal_size(found).empty


def test_vocabularies_of_finished_runs(tmp_path):
    grid = choose("smoke", "sc,te", "0", results=str(tmp_path))
    assert tables.vocabularies(grid).empty
    fake_runs.finish(grid)
    found = tables.vocabularies(grid)
    assert len(found) == 2 * len(tables.MEASURES) * 4 and set(found.groups) == {0, 4, 8, 16}
    assert not found.duplicated(["variant", "seed", "measure", "groups"]).any()
