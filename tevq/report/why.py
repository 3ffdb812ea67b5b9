"""Why is te better than sc: orthogonal codes, or fewer? The analysis that results/plan.md names.

Everything is computed from run files. `table` has a row for every planned arm and seed, run or not,
and for the trainings of before the plan (`planned` is False); all other functions take such rows.
Endpoints are columns: `official` sampling and the arm's own `best` point of the decoding grid, and
the same as the second judge reads it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tevq.config import SettingsError
from tevq.evaluate.metrics import GRID
from tevq.grid import Grid
from tevq.presets import GROUPS, VARIANTS
from tevq.report.claims import MARGIN, Claim
from tevq.report.stats import Interval, holm, sign_flip, t_interval
from tevq.report.tables import MEASURES, QUADS
from tevq.runs.run import open_run

ARMS = {group: tuple(v.name for v in VARIANTS.values() if v.group == group)
        for group in ("reference", *GROUPS)}  # of results/plan.md, in its order
GROUP_OF = {arm: group for group, arms in ARMS.items() for arm in arms}
SEEDS, MORE = range(100, 106), range(106, 112)  # of every arm; further ones where they were run
FEW = ("merged", "sc40")  # of which one may reach te
DECIDING = (*FEW, "te_revived")
REVIVED = {"codes_used": (100, math.inf), "orthogonality": (0, 0.013)}  # then revival worked
OFFSET = ("fsq40", "fsq240", "lfq")  # equation 5 of vectors with a common offset says little
KINDS = ("quantizer", "evaluation", "measures")
OFFICIAL = (1.0, 38)
POINTS = sorted(GRID[:-1], key=lambda p: (abs(p[0] - 1), p[1] != 38, p[1] or 999))  # nearest first
JUDGES = {"": "first", "_second": "second"}
ENDPOINTS = ("official", "best")
SECONDARY = ("held out − seen", "i2t_greedy", "recall_official")  # under Holm
MEANINGS = {  # section 7 of the plan, and rule 6
    "vocabulary": "The gain comes from a smaller vocabulary. The penalty is a way to find its "
                  "size; equivariance is a by-product.",
    "orthogonality": "Few codes do not help; orthogonal ones do, however many.",
    "context": "The penalty helps only where attention and normalisation let codes depend on the "
               "rest of the scene.",
    "mixed": "Both have a part, where the intervals are narrow enough to tell.",
    "it depends on decoding": "Part of the effect is how top-k cuts a large vocabulary.",
    "not settled": "No explanation is claimed: a deciding arm is missing, or the gain of te was "
                   "not seen again.",
    "unsettled": "The two judges give different answers."}
PREDICTORS = ("codes_used", "perplexity", "bits", "nats_test", "round_trip", "i2t_loss", "l1",
              "ceiling", "orthogonality", *(f"kappa_{name}" for name in MEASURES), "feature_error")


def point(split: str, at: tuple[float, int], judge: str = "first") -> str:
    """Column of a point of the decoding grid: `first_test_0.25_6`."""
    return f"{judge}_{split}_{at[0]:g}_{at[1]}"


def table(grid: Grid) -> pd.DataFrame:
    """A row per arm and seed: variant, seed, group, planned, state, and every measure.

    `bits` and the nats are of an image; `state` is done, part or missing; `device` is cpu or cuda.
    """
    cells = [(arm, seed, True) for seed in (*SEEDS, *MORE) for arm in GROUP_OF]
    cells += [(arm, seed, False) for arm, seed in itertools.product(grid.variants, grid.seeds)
              if seed < SEEDS[0]]
    rows = []
    for arm, seed, planned in cells:
        found = _cell(grid, arm, seed)
        if seed not in MORE or found["state"] != "missing":
            rows.append({"preset": grid.preset, "variant": arm, "seed": seed, "planned": planned,
                         "group": GROUP_OF.get(arm, "earlier")} | found)
    columns = [*_numbers({}, {}, {}, {}, 1)]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*(c for c in frame if c not in columns), *columns])
    frame[columns] = frame[columns].astype(float)
    chosen = best_points(frame)
    for suffix, judge in JUDGES.items():
        frame[f"best{suffix}"] = [
            row[point("test", chosen[key], judge)] if (key := (row.variant, row.planned)) in chosen
            else math.nan for _, row in frame.iterrows()]
    return frame


def best_points(frame: pd.DataFrame) -> dict[tuple[str, bool], tuple[float, int]]:
    """The point of the grid with the best mean over seeds on `val`, of every (variant, planned).

    Of points equal to nine digits the one nearest to the official one. Unmeasured arms are not in.
    """
    means = frame.groupby(["variant", "planned"])[[point("val", at) for at in POINTS]].mean()
    means.columns = range(len(POINTS))
    return {key: POINTS[place] for key, place in means.round(9).dropna().idxmax(axis=1).items()}


def _cell(grid: Grid, arm: str, seed: int) -> dict[str, Any]:
    try:
        s = grid.cell(arm, seed)
    except SettingsError:  # an arm to come, or one that an override contradicts
        return {"state": "missing"}
    runs = {kind: open_run(s, kind, grid.results or None) for kind in ("stage1", *KINDS)}
    first, *found = (run.summary() or {} for run in runs.values())
    codes = (s.data.scene // s.stage1.stride) ** 2
    done = sum(map(bool, found))
    return {"state": "missing" if not done else "done" if done == len(KINDS) else "part",
            "run": runs["evaluation"].name, "device": runs["evaluation"].made_on.get("device", "")
            } | (_numbers(first, *found, codes) if first or done else {})


def _numbers(stage1: Mapping, quantizer: Mapping, evaluation: Mapping, measured: Mapping,
             codes: int) -> dict[str, float]:
    """Every measure of a cell from the summaries of its runs; NaN where a run lacks."""
    def mean(summary: Mapping, **where: Any) -> float:
        return _mean(summary.get("rows", ()), **where)

    def one(summary: Mapping, name: str, value: str, **where: Any) -> float:
        fitting = [row for row in summary.get(name, ()) if _fits(row, where)]
        return fitting[0][value] if len(fitting) == 1 else math.nan

    own = {"task": "t2i", "metric": "digit"}
    test, ink = {"split": "test"}, {"cells": "foreground"}
    found = {
        "official": mean(evaluation, decoding="sampled", **own, **test),
        "seen": mean(evaluation, decoding="sampled", split="test_seen", **own),
        "greedy": mean(evaluation, decoding="greedy", **own, **test),
        "i2t_greedy": mean(evaluation, decoding="greedy", task="i2t", metric="official_digit",
                           **test),
        "ceiling": mean(quantizer, task="ceiling-reconstruction", metric="digit", **test),
        **{name: one(quantizer, "reconstruction", name, **test)
           for name in ("codes_used", "perplexity", "l1", "norm_used", "norm_mean")},
        "orthogonality": stage1.get("orthogonality", math.nan)}
    found["bits"] = codes * float(np.log2(found["perplexity"]))
    found |= {f"kappa_{name}": one(quantizer, "equivariance", "kappa", measure=name, **ink)
              for name in MEASURES}
    found["feature_error"] = one(quantizer, "equivariance", "feature_error", measure="grid", **ink)
    found |= {f"nats_{split}": one(measured, "nats", "nats", split=split)
              for split in ("val", "test", "test_seen")}
    found["round_trip"] = one(measured, "round_trip", "kept", task="ceiling-reconstruction", **ink)
    damage = [_mean([r for r in measured.get("rows", ()) if (r.get("replaced", -1) > 0) == hit],
                    task="i2t", metric="official_digit") for hit in (False, True)]
    found["i2t_loss"] = damage[0] - damage[1]  # by replaced codes
    for name, at in {"official": OFFICIAL, "greedy": GRID[-1]}.items():
        found |= {f"{what}_{name}": one(measured, "diversity", what, task="t2i",
                                        temperature=at[0], top_k=at[1])
                  for what in ("recall", "precision", "frechet")}
    found |= {point(split, at, judge): mean(measured, judge=judge, split=split, temperature=at[0],
                                            top_k=at[1], **own)
              for judge in JUDGES.values() for split in ("val", "test") for at in GRID}
    found["real_second"] = mean(measured, judge="second", task="ceiling-real", metric="digit")
    return found | {"official_second": found[point("test", OFFICIAL, "second")]}


def _fits(row: Mapping, where: Mapping) -> bool:
    return all(row.get(key) == value for key, value in where.items())


def _mean(rows: Iterable[Mapping], **where: Any) -> float:
    """Mean of Quad1-4; NaN unless each is there once."""
    values = [row["value"] for row in rows if row["case"] in QUADS and _fits(row, where)]
    return sum(values) / len(QUADS) if len(values) == len(QUADS) else math.nan


def _values(frame: pd.DataFrame, endpoint: str, *arms: str) -> pd.DataFrame:
    """Planned seeds that have all the arms: rows seeds, columns arms."""
    rows = frame[frame.planned.astype(bool) & frame.variant.isin(arms)]
    found = rows.pivot(index="seed", columns="variant", values=endpoint)
    return found.reindex(columns=list(arms)).astype(float).dropna()


def paired(frame: pd.DataFrame, a: str, b: str, endpoint: str = "official") -> Claim:
    """a - b, seed by seed. Its `interval` is Student's; `small` is the two one-sided tests."""
    found = _values(frame, endpoint, a, b)
    return Claim(f"{a} − {b}, {endpoint}", "ours", tuple(found[a] - found[b]))


def interaction(frame: pd.DataFrame, endpoint: str = "official") -> Claim:
    """(te - sc) - (te40 - sc40): what the penalty adds only when there are many codes."""
    found = _values(frame, endpoint, "sc", "te", "sc40", "te40")
    return Claim(f"(te − sc) − (te40 − sc40), {endpoint}", "ours",
                 tuple(found.te - found.sc - found.te40 + found.sc40))


def share(frame: pd.DataFrame, arm: str = "sc40", endpoint: str = "official", draws: int = 4000
          ) -> tuple[float, Interval | None]:
    """(arm - sc) / (te - sc), means over seeds; percentiles of a bootstrap over seeds.

    NaN without seeds; no interval for fewer than two, or where a resampled te - sc may be 0 or less
    (more than 2.5 % of the draws): the share could then be anything.
    """
    found = _values(frame, endpoint, "sc", "te", arm).to_numpy()
    if not len(found):
        return math.nan, None
    pick = np.random.default_rng(0).integers(len(found), size=(draws, len(found)))
    sc, te, few = np.moveaxis(found[pick].mean(1), 1, 0)
    sc0, te0, few0 = found.mean(0)
    whole = float((few0 - sc0) / (te0 - sc0))
    if len(found) < 2 or np.quantile(te - sc, 0.025) <= 0:
        return whole, None
    return whole, Interval(*np.quantile((few - sc) / (te - sc), [0.025, 0.975]).tolist())


class Standing(NamedTuple):
    """Where an arm stands (rule 2): intervals of arm - te and of arm - sc."""

    to_te: Interval
    to_sc: Interval

    @property
    def reaches(self) -> bool:
        """No more than MARGIN below te."""
        return self.to_te.low > -MARGIN

    @property
    def stays(self) -> bool:
        """No more than MARGIN above sc."""
        return self.to_sc.high < MARGIN

    @property
    def text(self) -> str:
        """In words; between is what lies below te and above sc."""
        if not math.isfinite(self.to_te.low):
            return "fewer than two seeds"
        words = ["reaches te"] * self.reaches + ["stays at sc"] * self.stays
        between = self.to_te.high < 0 < self.to_sc.low
        return " and ".join(words) or ("lies between" if between else "too wide to tell")


def standing(frame: pd.DataFrame, arm: str, endpoint: str = "official") -> Standing:
    """Of a deciding arm; without end for fewer than two seeds."""
    level = 0.95 if arm in FEW else 0.9  # two of FEW are tried: Bonferroni
    return Standing(*(t_interval(paired(frame, arm, other, endpoint).values, level)
                      or Interval(-math.inf, math.inf) for other in ("te", "sc")))


def revival(frame: pd.DataFrame) -> pd.Series:
    """Rule 3 looks at these: means of te_revived, by column of REVIVED; NaN where not run."""
    return frame[frame.planned.astype(bool) & (frame.variant == "te_revived")][[*REVIVED]].mean()


def revived(frame: pd.DataFrame) -> bool:
    """Whether the codes of te_revived were in use and orthogonal, on average (rule 3)."""
    found = revival(frame)
    return all(low <= found[name] <= high for name, (low, high) in REVIVED.items())


def progress(frame: pd.DataFrame) -> tuple[int, int]:
    """Seeds that have all that decides, and how many the plan asks for: twelve with a GPU."""
    done = min(len(_values(frame, name + judge, "sc", "te", *DECIDING))
               for name in ENDPOINTS for judge in JUDGES)
    lent = (frame.planned.astype(bool) & (frame.device == "cuda")).any()
    return done, len(SEEDS) + len(MORE) * bool(lent)


def verdict(frame: pd.DataFrame) -> str:
    """The answer, a key of MEANINGS: that of our judge unless the second one differs (rule 6)."""
    found = {decision(frame, judge)["answer"] for judge in JUDGES}
    return found.pop() if len(found) == 1 else "unsettled"


def decision(frame: pd.DataFrame, judge: str = "") -> dict[str, str]:
    """The plan's rule for each endpoint, and the `answer` of both. judge: "" or `_second`."""
    found = {name: _decided(frame, name + judge) for name in ENDPOINTS}
    known = not any(lacking(frame, name + judge) for name in ENDPOINTS)
    return found | {"answer": found["official"] if len(set(found.values())) == 1 else
                    "it depends on decoding" if known else "not settled"}


def lacking(frame: pd.DataFrame, endpoint: str = "official") -> list[str]:
    """Arms that decide, and have fewer than two pairs with te."""
    return [arm for arm in ("sc", *DECIDING) if len(paired(frame, arm, "te", endpoint).values) < 2]


def _decided(frame: pd.DataFrame, endpoint: str) -> str:
    gain = paired(frame, "te", "sc", endpoint).interval
    if lacking(frame, endpoint) or gain.low <= 0:
        return "not settled"
    *few, alive = (standing(frame, arm, endpoint) for arm in DECIDING)
    works = revived(frame)
    vocabulary = works and alive.stays and any(arm.reaches for arm in few)
    orthogonality = works and alive.reaches and all(arm.stays for arm in few)
    if vocabulary != orthogonality:
        return "vocabulary" if vocabulary else "orthogonality"
    local = paired(frame, "te_local", "sc_local", endpoint)
    return "context" if local.small and not vocabulary else "mixed"


def secondary(frame: pd.DataFrame) -> pd.DataFrame:
    """The plan's family of tests besides the primary endpoint, exact p by sign flips, under Holm.

    Rows: contrast, endpoint, seeds, mean, p, `p Holm`. The family has all of them from the start;
    one without seeds has no p, and counts as 1.
    """
    frame, rows = frame.assign(**{"held out − seen": frame.official - frame.seen}), []
    for a, b in (("te", "sc"), ("sc40", "sc"), ("te_revived", "sc")):
        for endpoint in SECONDARY:
            values = paired(frame, a, b, endpoint).values
            rows.append({"contrast": f"{a} − {b}", "endpoint": endpoint, "seeds": len(values),
                         "mean": np.mean(values) if values else math.nan,
                         "p": sign_flip(values) if values else math.nan})
    found = pd.DataFrame(rows)
    return found.assign(**{"p Holm": np.where(found.p.isna(), math.nan, holm(found.p.fillna(1)))})


def predictors(frame: pd.DataFrame, endpoint: str = "official", draws: int = 1000) -> pd.DataFrame:
    """Which measure ranks the arms as generation does? Means over seeds, Spearman's correlation.

    A row per measure: `arms`, `rho`, `low` and `high` (bootstrap over arms), `least` and `most`
    (each group left out in turn). Only arms with all of a measure count.
    """
    means = frame.groupby(["variant", "group"])[[endpoint, *PREDICTORS]].mean().reset_index("group")
    means.loc[means.index.isin(OFFSET), "orthogonality"] = math.nan
    random, rows = np.random.default_rng(0), []
    for name in PREDICTORS:
        known = means[["group", endpoint, name]].dropna()
        if len(known) < 4:
            continue
        drawn = [known.iloc[pick] for pick in random.integers(len(known), size=(draws, len(known)))]
        spread = np.array([_rho(part[name], part[endpoint]) for part in drawn])
        without = [_rho(part[name], part[endpoint]) for group in known.group.unique()
                   if len(part := known[known.group != group]) > 2]
        low, high = np.nanquantile(spread, [0.025, 0.975]) if (spread == spread).any() else (
            math.nan, math.nan)
        rows.append({"measure": name, "arms": len(known), "rho": _rho(known[name], known[endpoint]),
                     "low": low, "high": high, "least": min(without, default=math.nan),
                     "most": max(without, default=math.nan)})
    columns = ["measure", "arms", "rho", "low", "high", "least", "most"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "rho", key=abs, ascending=False, ignore_index=True)


def _rho(a: pd.Series, b: pd.Series) -> float:
    """Spearman's rank correlation; NaN when one of them is constant."""
    return float(pd.concat([a, b], axis=1).corr("spearman").iloc[0, 1])
