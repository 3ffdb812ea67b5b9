"""Statistics for few seeds: every function says nothing (None) where the data say nothing.

The same seed means the same data order and start for every variant, so variants are compared seed
by seed. Letters: S seeds, N scenes. Intervals are two-sided, 95 % unless asked otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from tevq.config import SettingsError

LEVEL = 0.95
MOST_FLIPS = 20  # differences whose 2^n signs are still listed one by one


class Interval(NamedTuple):
    """A two-sided interval."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return bool(self.low <= value <= self.high)


class Counts(NamedTuple):
    """What was right, out of how many: arrays (S, N), one number per seed and scene."""

    correct: np.ndarray
    n: np.ndarray


class Group(NamedTuple):
    """A published mean with its SD over `n` runs."""

    mean: float
    sd: float
    n: int = 3  # the paper: "conducted three times" (section 4)


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample SD (n - 1); the SD is None for one value, the mean NaN for none."""
    found = np.asarray(values, dtype=float)
    if len(found) == 0:
        return math.nan, None
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else None


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's t-interval for the mean; None for fewer than two values."""
    mean, sd = mean_sd(values)
    if sd is None:
        return None
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * sd / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def contrast(parts: Sequence[tuple[float, Group]], level: float = LEVEL
             ) -> tuple[float, Interval | None]:
    """Weighted sum of published means, with Welch's interval (degrees of freedom after
    Satterthwaite). For one group and weight 1 that is its t-interval; None without any spread.
    """
    value = sum(weight * group.mean for weight, group in parts)
    spread = [weight**2 * group.sd**2 / group.n for weight, group in parts]
    total = sum(spread)
    if not total > 0:  # also when an SD is NaN: not published
        return value, None
    freedom = total**2 / sum(v**2 / (g.n - 1) for v, (_, g) in zip(spread, parts, strict=True))
    half = stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(total)
    return value, Interval(value - half, value + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p of the sign-flip test of a mean of 0: share of the 2^n sign patterns whose
    mean is at least as far from 0. It cannot go below 2 / 2^n: 0.25 for 3 seeds, 0.031 for 6.

    Raises SettingsError for no differences or more than 20.
    """
    found = np.asarray(differences, dtype=float)
    if not 1 <= len(found) <= MOST_FLIPS:
        raise SettingsError(f"{len(found)} differences; the exact test takes 1 to {MOST_FLIPS}")
    signs = np.array(list(itertools.product((1, -1), repeat=len(found))))
    sums = np.abs(signs @ found)
    return float((sums >= abs(found.sum()) - 1e-12 * np.abs(found).sum()).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the family-wise error stays below alpha."""
    found = np.asarray(p, dtype=float)
    order = np.argsort(found, kind="stable")
    steps = np.minimum(1, found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty(len(found))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted.tolist()


def mean_accuracy(counts: Counts, case: np.ndarray) -> np.ndarray:
    """Accuracy of every seed (S,): share per case, then the mean over the cases in `case` (N,)."""
    shares = [counts.correct[:, case == c].sum(1) / counts.n[:, case == c].sum(1)
              for c in np.unique(case)]
    return np.mean(shares, axis=0)


def bootstrap_difference(a: Counts, b: Counts, case: np.ndarray, draws: int = 4000, seed: int = 0,
                         level: float = LEVEL) -> Interval:
    """Hierarchical bootstrap interval (percentiles) for the mean over seeds of
    `mean_accuracy(b) - mean_accuracy(a)`.

    A draw takes S seeds with replacement, and for every seed taken as many scenes of every case
    with replacement; the digits of a scene stay together, and both variants keep the same seeds
    and scenes. With one seed the interval covers the choice of scenes only.

    Raises SettingsError unless both have the same shape (S, N) with one case per scene.
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
            found += b.correct[s, pick].sum(1) / b.n[s, pick].sum(1)
            found -= a.correct[s, pick].sum(1) / a.n[s, pick].sum(1)
    found /= len(a.n) * len(cases)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
