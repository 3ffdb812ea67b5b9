"""Statistics for few seeds, on scipy. A function returns None where the data say nothing.

Variants are compared seed by seed: a seed is the same order of the data for all. Letters: S seeds,
N scenes. Intervals are two-sided, 95 % unless asked otherwise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from tevq.config import SettingsError


class Interval(NamedTuple):
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return bool(self.low <= value <= self.high)


class Counts(NamedTuple):  # arrays (S, N): one number per seed and scene
    correct: np.ndarray
    n: np.ndarray


class Group(NamedTuple):  # of runs
    mean: float
    sd: float
    n: int = 3  # the paper: "conducted three times" (section 4)


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample SD (n - 1); the SD is None for one value, the mean NaN for none."""
    found = np.asarray(values, dtype=float)
    mean = float(found.mean()) if len(found) else math.nan
    return mean, float(found.std(ddof=1)) if len(found) > 1 else None


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t-interval for the mean; None for fewer than two values."""
    (mean, sd), n = mean_sd(values), len(values)
    return None if sd is None else contrast([(1.0, Group(mean, sd, n))], level)[1] or Interval(
        mean, mean)


def contrast(parts: Sequence[tuple[float, Group]], level: float = 0.95
             ) -> tuple[float, Interval | None]:
    """Weighted sum of means, with Welch's interval (Satterthwaite's degrees of freedom). For one
    group and weight 1 that is its t-interval; None without any spread."""
    value = sum(weight * group.mean for weight, group in parts)
    spread = np.array([weight**2 * group.sd**2 / group.n for weight, group in parts])
    if not (total := spread.sum()) > 0:  # also when an SD is NaN: not published
        return value, None
    freedom = total**2 / sum(spread**2 / [group.n - 1 for _, group in parts])
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total)
    return value, Interval(value - half, value + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p of the sign-flip test of a mean of 0, for up to 20 differences. It cannot
    go below 2 / 2^n: 0.25 for 3 seeds, 0.031 for 6."""
    return 1.0 if len(differences) == 1 else float(stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=2**20).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the family-wise error stays below alpha."""
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1, np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1))
    return np.maximum.accumulate(steps)[np.argsort(order)].tolist()


def bootstrap_difference(a: Counts, b: Counts, case: np.ndarray, draws: int = 4000,
                         seed: int = 0) -> Interval:
    """Hierarchical bootstrap interval (percentiles) for b - a: the mean over seeds and over the
    cases in `case` (N,) of the accuracy in a case.

    A draw takes S seeds with replacement, then for each as many scenes of every case. Digits of a
    scene stay together; both variants keep the same seeds and scenes (scipy's bootstrap has one
    level only). With one seed the interval covers the choice of scenes only. Raises SettingsError
    unless both have shape (S, N) with one case per scene.
    """
    if not a.correct.shape == b.correct.shape == (*a.n.shape[:1], len(case)) == b.n.shape:
        raise SettingsError(f"counts of shapes {a.correct.shape} and {b.correct.shape} for "
                            f"{len(case)} scenes cannot be compared; use the same seeds and scenes")
    random = np.random.default_rng(seed)
    cases = [np.flatnonzero(case == c) for c in np.unique(case)]
    found = np.zeros(draws)
    for _ in range(len(a.n)):
        s = random.integers(len(a.n), size=(draws, 1))
        for scenes in cases:
            pick = scenes[random.integers(len(scenes), size=(draws, len(scenes)))]
            for sign, counts in ((1, b), (-1, a)):
                found += sign * counts.correct[s, pick].sum(1) / counts.n[s, pick].sum(1)
    return Interval(*np.quantile(found / (len(a.n) * len(cases)), [0.025, 0.975]).tolist())
