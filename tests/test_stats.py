"""Statistics against scipy, brute force and known values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tevq.config import SettingsError
from tevq.report import stats
from tevq.report.stats import Counts, Group, Interval

VALUES = [0.12, 0.07, 0.15, 0.11]


def test_mean_and_sd():
    mean, sd = stats.mean_sd(VALUES)
    assert mean == pytest.approx(0.1125)
    assert sd == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in VALUES) / 3))
    assert stats.mean_sd([0.5]) == (0.5, None)  # one seed has no SD
    mean, sd = stats.mean_sd([])
    assert math.isnan(mean) and sd is None


def test_t_interval_is_scipys_and_known_for_three():
    found = stats.t_interval(VALUES)
    sem = scipy_stats.sem(VALUES)
    assert found == pytest.approx(scipy_stats.t.interval(0.95, 3, np.mean(VALUES), sem))
    three = stats.t_interval([-1.0, 0.0, 1.0])  # SD 1: half-width 2.484 SD
    assert three.high == pytest.approx(2.484, abs=1e-3) and three.low == -three.high
    assert stats.t_interval([0.3]) is None and stats.t_interval([]) is None


def test_interval_contains():
    assert 0.0 in Interval(-1, 1) and 1.0 in Interval(-1, 1) and 1.01 not in Interval(-1, 1)


def _sample(mean: float, sd: float, n: int) -> np.ndarray:
    """n numbers with exactly this mean and SD."""
    z = np.arange(n) - (n - 1) / 2
    return mean + sd * z / z.std(ddof=1)


def test_contrast_is_welchs_interval():
    a, b = Group(0.931, 0.033), Group(0.812, 0.032, 5)
    value, interval = stats.contrast([(1, a), (-1, b)])
    result = scipy_stats.ttest_ind(_sample(*a), _sample(*b), equal_var=False)
    assert value == pytest.approx(0.119)
    assert interval == pytest.approx(tuple(result.confidence_interval(0.95)))
    # one group: its own t-interval
    _, alone = stats.contrast([(1, a)])
    assert alone == pytest.approx(tuple(stats.t_interval(_sample(*a))))


def test_contrast_agrees_with_the_known_p_values_of_table_1():
    # Welch p of te against sc, text->image Quad1 and Quad4: .011 and .078
    for te, sc, p in ((Group(0.931, 0.033), Group(0.812, 0.032), 0.011),
                      (Group(0.868, 0.059), Group(0.761, 0.051), 0.078)):
        parts = [(1, te), (-1, sc)]
        assert (0 in stats.contrast(parts, 1 - p - 0.001)[1]) is False
        assert (0 in stats.contrast(parts, 1 - p + 0.001)[1]) is True


def test_contrast_scales_with_its_weight():
    """Planted fault: a variance that is weighted once."""
    once, half = (stats.contrast([(weight, Group(1.0, 0.2, 4))]) for weight in (1.0, 0.5))
    assert (half[0], *half[1]) == pytest.approx([x / 2 for x in (once[0], *once[1])])


def test_contrast_without_spread_has_no_interval():
    assert stats.contrast([(1, Group(252, math.nan)), (-1, Group(14, math.nan))]) == (238, None)
    assert stats.contrast([(1, Group(0.5, 0.0))]) == (0.5, None)


def _brute_sign_flip(values: list[float]) -> float:
    observed = abs(sum(values))
    flipped = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
               for signs in itertools.product((1, -1), repeat=len(values))]
    return sum(f >= observed - 1e-12 for f in flipped) / len(flipped)


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.2, 0.3], [0.1, -0.2, 0.3, 0.05], [0.0, 0.0],
                                    [0.1] * 6])
def test_sign_flip_against_brute_force(values):
    assert stats.sign_flip(values) == _brute_sign_flip(values)


def test_sign_flip_floor_and_scipy():
    floors = {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.125, 5: 0.0625, 6: 0.03125}
    for n, floor in floors.items():
        assert stats.sign_flip([0.1 + 0.01 * i for i in range(n)]) == floor
    values = np.array([0.3, -0.1, 0.25, 0.4, 0.05])
    exact = scipy_stats.permutation_test((values, np.zeros(5)), lambda a, b: np.mean(a - b),
                                         permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip(values) == pytest.approx(exact.pvalue)
    assert stats.sign_flip(1e6 * values) == stats.sign_flip(values) == stats.sign_flip(-values)


def test_holm_known_values():
    """Planted fault: a p-value above 1."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.6]) == [1.0, 1.0]
    assert stats.holm([0.02]) == [0.02] and stats.holm([]) == []


def _counts(seed: int, p: float, seeds: int, scenes: int, digits: int = 2) -> Counts:
    random = np.random.default_rng(seed)
    n = np.full((seeds, scenes), digits)
    return Counts(random.binomial(n, p), n)


def test_bootstrap_weighs_cases_not_digits():
    """Planted fault: a mean over scenes or digits. Every draw of one scene a case is the same."""
    case = np.array(["quad1", "quad4"])
    te = Counts(np.array([[1, 1]]), np.array([[1, 4]]))
    sc = Counts(np.zeros((1, 2), dtype=int), te.n)
    assert stats.bootstrap_difference(sc, te, case) == pytest.approx((0.625, 0.625))


def test_bootstrap_difference_centre_and_width():
    case = np.repeat(["quad1", "quad2"], 300)
    sc, te = _counts(0, 0.7, 1, 600), _counts(1, 0.8, 1, 600)
    interval = stats.bootstrap_difference(sc, te, case)
    observed = (te.correct - sc.correct).sum() / te.n.sum()  # cases of equal size
    assert observed in interval
    # one seed: scenes only, so the normal interval of independent digits is the second route
    half = 1.96 * math.sqrt((0.7 * 0.3 + 0.8 * 0.2) / 1200)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.12)


def test_bootstrap_is_paired_and_clustered():
    case = np.repeat(["quad1", "quad2"], 200)
    sc = _counts(0, 0.7, 2, 400)
    same = stats.bootstrap_difference(sc, sc, case)
    assert same == (0.0, 0.0)  # scenes and seeds are shared: no noise is left
    # all digits of a scene right or wrong together: wider than independent digits
    random = np.random.default_rng(3)
    n = np.full((1, 400), 4)
    together = Counts(4 * random.binomial(1, 0.7, (1, 400)), n)
    apart = Counts(random.binomial(n, 0.7), n)
    zero = Counts(np.zeros_like(n), n)
    widths = [high - low for low, high in (stats.bootstrap_difference(zero, c, case)
                                           for c in (together, apart))]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)


def test_bootstrap_covers_the_spread_of_seeds():
    case = np.repeat(["quad1"], 400)
    n = np.full((3, 400), 2)
    random = np.random.default_rng(4)
    te = Counts(random.binomial(n, np.array([[0.5], [0.7], [0.9]])), n)
    sc = Counts(random.binomial(n, 0.5), n)
    low, high = stats.bootstrap_difference(sc, te, case)
    assert low < 0.06 and high > 0.34  # all draws of the worst, of the best seed


def test_the_bootstrap_gives_a_seed_all_its_cases():
    """Planted fault: seeds drawn anew for every case, which makes the interval too narrow."""
    n = np.ones((2, 8), dtype=int)
    sc, te = (Counts(np.repeat([[right], [0]], 8, 1), n) for right in (0, 1))
    assert stats.bootstrap_difference(sc, te, np.arange(8)) == (0.0, 1.0)


def test_bootstrap_is_reproducible_and_refuses_other_scenes():
    case = np.repeat(["quad1", "quad2"], 20)
    sc, te = _counts(0, 0.7, 2, 40), _counts(1, 0.8, 2, 40)
    assert stats.bootstrap_difference(sc, te, case) == stats.bootstrap_difference(sc, te, case)
    with pytest.raises(SettingsError, match="use the same seeds and scenes"):
        stats.bootstrap_difference(sc, _counts(1, 0.8, 1, 40), case)
    with pytest.raises(SettingsError, match="39 scenes"):
        stats.bootstrap_difference(sc, te, case[:-1])
