"""How a claim is judged: estimate, interval, the paper's, and a verdict.

Verdicts: `inside the paper's interval` (our estimate has the paper's sign and lies in its 95 %
interval), `same direction` (the paper's sign only; of a claim with a limit: within it), `not
supported` (the other sign, or above the limit), `undecided` (a generator has not passed its binding
transition, so its end point says nothing), `missing` (no runs). An interval of ours needs two seeds
or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tevq.report.stats import Interval, t_interval

LEARNED = 0.5  # seen digit accuracy, Quad2-4, past the binding transition (chance is 0.1)
SETTLED = 0.9  # a generator below it is named: more training would move its end point


class Claim(NamedTuple):
    """One claim. Numbers are differences unless the text says otherwise."""

    text: str
    section: str
    values: tuple[float, ...]  # ours, one per seed
    paper: float | None  # None: the paper prints no number
    paper_interval: Interval | None
    seen: Mapping[str, float] = {}  # generators compared -> seen accuracy, Quad2-4, worst seed
    sign: int = 1  # direction of the claim
    limit: float | None = None  # the claim holds up to here, whatever the sign
    digits: int = 3  # to show
    detail: str = ""  # what the mean hides

    @property
    def estimate(self) -> float | None:
        """Mean over seeds."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def interval(self) -> Interval | None:
        """t-interval over seeds; None for fewer than two."""
        return t_interval(self.values)

    @property
    def verdict(self) -> str:
        if not self.values:
            return "missing"
        if min(self.seen.values(), default=1.0) < LEARNED:
            return "undecided"
        if self.limit is not None:
            return "same direction" if self.estimate <= self.limit else "not supported"
        if self.estimate * self.sign <= 0:
            return "not supported"
        if self.paper_interval is not None and self.estimate in self.paper_interval:
            return "inside the paper's interval"
        return "same direction"

    @property
    def certainty(self) -> str:
        """What the interval adds to the verdict."""
        if self.interval is None:
            return "one seed: no interval" if self.values else ""
        seeds = f"{len(self.values)} seeds: "
        if self.limit is not None:
            return f"{seeds}limit {self.limit:.3f}, interval {text(self.interval)}"
        return f"{seeds}interval {'includes' if 0.0 in self.interval else 'excludes'} 0"

    @property
    def learning(self) -> str:
        """Which generators are below SETTLED, by what they do on seen combinations."""
        low = [f"{name} {value:.3f}" for name, value in self.seen.items() if value < SETTLED]
        return f"below {SETTLED} on seen Quad2–4: {', '.join(low)}" if self.values and low else ""

    @property
    def note(self) -> str:
        """How far the verdict can be trusted."""
        parts = (self.certainty, self.detail, self.learning) if self.values else ()
        return "; ".join(filter(None, parts))


def text(interval: Interval | None, digits: int = 3) -> str:
    """[low, high], or a dash."""
    return "–" if interval is None else f"[{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"
