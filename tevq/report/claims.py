"""The paper's claims and some of ours: what each compares, and how it is judged."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tevq.grid import Grid
from tevq.report import stats, tables
from tevq.report.stats import Group, Interval, contrast, t_interval
from tevq.report.tables import AS_PUBLISHED, QUADS, by_case, published, select
from tevq.runs.run import open_run

LEARNED = 0.5  # seen digit accuracy, Quad2-4, of a generator that places items (chance is 0.1)
SETTLED = 0.9  # a generator below it is named: more training would move its end point
MARGIN = 0.03  # a difference of shares that we call none
BASELINES = ("sc", "mb", "mp", "cb")
# what a generator must have learned: images by the number that is compared, captions greedily,
# because one unlucky word says little about learning
SEEN = {"t2i": ("sampled", "digit"), "i2t": ("greedy", "digit")}
TITLES = {"t2i": "text→image", "i2t": "image→text"}
SECTIONS = {"t2i": "4.1", "i2t": "4.2"}


class Claim(NamedTuple):
    """One claim. Numbers are differences unless the text says otherwise."""

    text: str
    section: str
    values: tuple[float, ...]  # ours, one per seed
    paper: float | None = None  # None: the paper prints no number
    paper_interval: Interval | None = None
    seen: Mapping[str, float] = {}  # generators compared -> seen accuracy, Quad2-4, worst seed
    sign: int = 1  # direction of the claim
    limit: float | None = None  # the claim holds up to here, whatever the sign
    digits: int = 3  # to show
    margin: float | None = MARGIN  # of what counts as none; None: no difference of accuracies
    detail: str = ""  # what the mean hides
    groups: Sequence[tuple[float, Group]] = ()  # what is compared, weighted, without its pairs

    @property
    def estimate(self) -> float | None:
        """Mean over seeds."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def interval(self) -> Interval | None:
        """t-interval over seeds; None for fewer than two."""
        return t_interval(self.values)

    @property
    def shown(self) -> str:
        """Mean and interval in words; empty without runs."""
        span = text(self.interval) if self.interval else "(one seed)"
        return f"{self.estimate:+.3f} {span}" if self.values else ""

    @property
    def small(self) -> bool:
        """Two one-sided tests: the 90 % interval of the difference lies within ±margin."""
        inner = t_interval(self.values, 0.9) if self.margin else None
        return inner is not None and -self.margin < inner.low and inner.high < self.margin

    @property
    def lucky(self) -> str:
        """Welch's interval, without pairs, if 0 is in it and not in ours: the pairs are alike."""
        wide = contrast(self.groups)[1] if self.interval else None
        return text(wide) if wide and 0 in wide and 0 not in self.interval else ""

    @property
    def verdict(self) -> str:
        """One of the words that `results/laptop/README.md` explains."""
        if self.interval is None or min(self.seen.values(), default=1.0) < LEARNED:
            return "undecided" if self.values else "missing"
        low, high = self.interval
        if self.limit is not None:
            return ("within the limit" if high <= self.limit else
                    "above the limit" if low > self.limit else "undecided")
        if low > 0 or high < 0:
            return f"{'same' if (low > 0) == (self.sign > 0) else 'opposite'} direction"
        return "no difference" if self.small else "undecided"

    @property
    def note(self) -> str:
        """What the verdict rests on, and what it hides."""
        if not self.values:
            return ""
        low = [f"{name} {value:.3f}" for name, value in self.seen.items() if value < SETTLED]
        inside = self.paper_interval is not None and self.estimate in self.paper_interval
        return "; ".join(filter(None, (
            f"{len(self.values)} seeds" if self.interval else "one seed: no interval",
            "inside the paper's interval" if inside else "",
            f"within ±{self.margin}" if self.small and self.verdict != "no difference" else "",
            f"not to be trusted: unpaired {self.lucky}" if self.lucky else "",
            f"limit {self.limit:.3f}" if self.limit is not None else "", self.detail,
            f"below {SETTLED} on seen Quad2–4: {', '.join(low)}" if low else "")))


def text(interval: Interval | None, digits: int = 3) -> str:
    """[low, high], or a dash."""
    return "–" if interval is None else f"[{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def all_claims(built: dict[str, pd.DataFrame]) -> list[Claim]:
    """Every claim of sections 3 to 5 that a number can speak to, and ours; those about Table 4 when
    any of it has run. `built`: as `tables.build`."""
    table1, stride = built["table1"], built["stride"]
    beyond_seen, smaller = _gains(table1)
    return [*(primary(table1, task, case=case) for case in ("mean", "quad1")
              for task in AS_PUBLISHED),
            *(_greedy(table1, task) for task in AS_PUBLISHED),
            beyond_seen, *(_against_the_best(table1, task) for task in AS_PUBLISHED),
            *(_order(table1, task) for task in AS_PUBLISHED), smaller, _below(table1),
            *_efficiency(built["table2"]), *_codes(built["table3"]),
            *_equivariance(built["equivariance"]),
            *(primary(stride, task)._replace(
                text=f"{TITLES[task]} at stride {stride.stride.iloc[0]}: te above sc, mean of "
                "Quad1–4", section="ours", paper=None, paper_interval=None)
              for task in AS_PUBLISHED if (stride.state == "done").any())]


def verdicts(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim, as text."""
    return pd.DataFrame([{
        "claim": c.text, "section": c.section,
        "ours": "–" if c.estimate is None else f"{c.estimate:+.{c.digits}f}",
        "our interval": text(c.interval, c.digits),
        "paper": "no number" if c.paper is None else f"{c.paper:+.{c.digits}f}",
        "paper's interval": text(c.paper_interval, c.digits),
        "verdict": c.verdict, "note": c.note} for c in claims])


def primary(table1: pd.DataFrame, task: str = "t2i", split: str = "test", case: str = "mean"
            ) -> Claim:
    """te - sc, digit accuracy, by default the mean over Quad1-4; `test` is held-out combinations.

    Text->image with the defaults is the one primary comparison of the study, chosen before looking.
    """
    where = {"mean": "mean of Quad1–4", "quad1": "Quad1 (the abstract's number)"}.get(case, case)
    return _versus(table1, task, "te", "sc", f"te above sc, {where}", case, split)


def family(table1: pd.DataFrame) -> pd.DataFrame:
    """te - sc per case and task: mean, t-interval, exact sign-flip p, Holm over all of them."""
    every = {(task, case): primary(table1, task, case=case)
             for task in AS_PUBLISHED for case in QUADS}
    found = pd.DataFrame([{
        "task": task, "case": case, "metric": ", ".join(AS_PUBLISHED[task][::-1]),
        "te − sc": np.nan if claim.estimate is None else claim.estimate,
        "interval (t)": text(claim.interval), "seeds": len(claim.values),
        "paper": claim.paper, "paper's interval": text(claim.paper_interval),
        "p sign-flip": stats.sign_flip(claim.values) if claim.values else np.nan}
        for (task, case), claim in every.items()])
    known = found["p sign-flip"].dropna()
    found["p Holm"] = pd.Series(stats.holm(known.to_list()), known.index, dtype=float)
    return found


def bootstrap(grid: Grid, task: str = "t2i", split: str = "test") -> Interval | None:
    """Hierarchical bootstrap interval (seed, then scene) of te - sc, mean of Quad1-4.
    From the counts of every scene, `scenes.csv.gz`. None when a run lacks."""
    column, found = "_".join((task, *AS_PUBLISHED[task])), {"sc": [], "te": []}
    for variant, seed in itertools.product(found, grid.seeds):
        run = open_run(grid.cell(variant, seed), "evaluation", grid.results or None)
        path = run.folder / "scenes.csv.gz"
        if not run.done or not path.exists():
            return None
        lines = pd.read_csv(path)
        if f"{column}_n" not in lines:
            return None
        found[variant].append(lines[(lines.split == split) & lines["case"].isin(QUADS)])
    sc, te = (stats.Counts(*(np.stack([lines[f"{column}_{what}"] for lines in runs])
                             for what in ("correct", "n"))) for runs in found.values())
    return stats.bootstrap_difference(sc, te, found["te"][0]["case"].to_numpy())


def scores(table1: pd.DataFrame, task: str, case: str = "mean", split: str = "test",
           decoding: str = "") -> pd.DataFrame:
    """Accuracy as the paper counts it, by default as it decodes: rows seeds, columns variants."""
    usual, metric = AS_PUBLISHED[task]
    decoding = decoding or usual
    matrix = by_case(table1, task=task, split=split, decoding=decoding, metric=metric)[case]
    return matrix.unstack("variant").reindex(columns=[*BASELINES, "te"]).astype(float)


def _gain(table1: pd.DataFrame, task: str, split: str = "test") -> pd.Series:
    """te - sc by seed, mean of Quad1-4."""
    found = scores(table1, task, split=split)
    return found.te - found.sc


def _versus(table1: pd.DataFrame, task: str, a: str, b: str, words: str, case: str = "mean",
            split: str = "test", theirs: str = "", detail: str = "") -> Claim:
    """a above b; `theirs`: the paper's variant in the place of b, when it is another one."""
    found = scores(table1, task, case, split)[[a, b]].dropna()
    return Claim(f"{TITLES[task]}: {words}", SECTIONS[task], tuple(found[a] - found[b]),
                 *contrast([(1.0, _published(case=case, task=task, variant=a)),
                            (-1.0, _published(case=case, task=task, variant=theirs or b))]),
                 _seen(table1, task, a, b), detail=detail, groups=groups_of(found, (1, -1)))


def groups_of(found: pd.DataFrame, weights: Iterable[float]) -> list[tuple[float, Group]]:
    """The columns, rows seeds, as weighted groups."""
    return [(weight, Group(found[name].mean(), found[name].std(), len(found)))
            for name, weight in zip(found, weights, strict=True)]


def _greedy(table1: pd.DataFrame, task: str) -> Claim:
    """te - sc where the most likely token is taken instead of one drawn by chance."""
    found = scores(table1, task, decoding="greedy")[["te", "sc"]].dropna()
    return Claim(f"{TITLES[task]}, greedy: te above sc, mean of Quad1–4", "ours",
                 tuple(found.te - found.sc), groups=groups_of(found, (1, -1)),
                 detail=f"te {found.te.mean():.3f}, sc {found.sc.mean():.3f}")


def _gains(table1: pd.DataFrame) -> list[Claim]:
    """Where the gain of te over sc is larger: on combinations never seen (if it is not, te is the
    better painter of any scene), and in text->image."""
    held_out, written = (_gain(table1, task) for task in AS_PUBLISHED)
    seen, signs = _gain(table1, "t2i", "test_seen"), {"t2i": 1.0, "i2t": -1.0}
    detail = "gains {:+.3f} and {:+.3f}".format
    return [
        Claim("text→image: the gain of te over sc is larger on combinations that training never "
              "shows", "ours", tuple((held_out - seen).dropna()),
              detail=detail(held_out.mean(), seen.mean())),
        Claim("the gain of te over sc is larger in text→image than in image→text", "4.2",
              tuple((held_out - written).dropna()),
              *contrast([(sign * weight, _published(task=task, variant=variant))
                         for task, sign in signs.items()
                         for variant, weight in (("te", 1), ("sc", -1))]),
              _seen(table1, "t2i", "sc", "te") | _seen(table1, "i2t", "sc", "te"),
              detail=detail(held_out.mean(), written.mean()))]


def _against_the_best(table1: pd.DataFrame, task: str) -> Claim:
    """te minus the best other downsampler, on the seeds that both have."""
    found, others = scores(table1, task), BASELINES[1:]
    present = [v for v in others if len(found[["te", v]].dropna())]
    rival = max(present, key=lambda v: found[v].mean(), default=others[0])
    which = ", without ".join([rival, *(v for v in others if v not in present)])
    both = found[["te", rival]].dropna()
    return _versus(table1, task, "te", rival, "te above the best of mb, mp, cb"
                   + f" ({which})" * bool(present),
                   theirs=max(others, key=lambda v: _published(task=task, variant=v).mean),
                   detail=f"te {both.te.mean():.3f}, {rival} {both[rival].mean():.3f} on seeds "
                   f"{', '.join(map(str, both.index))}" * bool(present))


def _order(table1: pd.DataFrame, task: str) -> Claim:
    """sc - mb, and the order of all four baselines."""
    ours = scores(table1, task)[list(BASELINES)].dropna().mean()
    theirs = pd.Series({v: _published(task=task, variant=v).mean for v in BASELINES})
    return _versus(table1, task, "sc", "mb", "sc above mb, mean of Quad1–4", detail=", ".join(
        f"{name} {' > '.join(means.sort_values(ascending=False).index)}"
        for name, means in (("ours", ours), ("paper", theirs)) if ours.notna().all()))


def _below(table1: pd.DataFrame) -> Claim:
    """Text->image minus image->text ("for all methods"): the variant with the smallest gap."""
    gaps = (scores(table1, "t2i") - scores(table1, "i2t")).dropna(axis="columns", how="all")
    least = gaps.mean().idxmin() if gaps.size else "te"
    return Claim(f"image→text below text→image in every variant (least: {least})", "4.2",
                 tuple(gaps[least].dropna()) if gaps.size else (),
                 *contrast([(1.0, _published(task="t2i", variant=least)),
                            (-1.0, _published(task="i2t", variant=least))]),
                 _seen(table1, "t2i", least) | _seen(table1, "i2t", least),
                 detail=", ".join(f"{variant} {gap.mean():+.3f} {text(t_interval(gap.dropna()))}"
                                  for variant, gap in gaps.items()))


def _efficiency(table2: pd.DataFrame) -> list[Claim]:
    """What a third of the scenes costs: Quad1 as the paper counts, and four times the scenes."""
    full, third = (select(table2, size=size) for size in ("full", "third"))
    paper = contrast([(weight * sign, _published(2, variant=variant, size=size))
                      for variant, weight in (("sc", 1.0), ("te", -1.0))
                      for size, sign in (("full", 1), ("third", -1))])
    seen = {f"{name} ({size})": value for size, rows in (("full", full), ("third", third))
            for name, value in _seen(rows, "t2i", "sc", "te").items()}
    found = []
    for case, section, where, theirs in (("quad1", "4.3", "Quad1", paper),
                                         ("mean", "ours", "mean of Quad1–4", (None, None))):
        both = pd.concat({size: scores(rows, "t2i", case)[["sc", "te"]] for size, rows in (
            ("full", full), ("third", third))}, axis=1).dropna()
        cost = both.full - both.third
        found.append(Claim(
            f"a third of the training scenes costs te less than sc (text→image, {where})", section,
            tuple(cost.sc - cost.te), *theirs, seen,
            detail=f"sc {-cost.sc.mean():+.3f}, te {-cost.te.mean():+.3f}",
            groups=groups_of(both, (1, -1, -1, 1))))
    return found


def _codes(table3: pd.DataFrame) -> list[Claim]:
    theirs = published(3).set_index(["metric", "source", "variant"]).value.unstack()
    extra, found = theirs.loc["l1"].te / theirs.loc["l1"].sc - 1, []
    limit = float(extra.max())  # the most that the paper calls marginal: Fashion-MNIST
    for source in dict.fromkeys(table3.source[table3.variant.isin(("sc", "te"))]):
        rows = select(table3, source=source, split="test")
        same = source if source in extra.index else "mnist"
        codes, l1, distance = (_by_variant(rows, metric=metric)
                               for metric in ("codes_used", "l1", "perceptual"))
        paper, far = (theirs.loc[metric, same] for metric in ("codes_used", "perceptual"))
        found += [
            Claim(f"{source}: te uses fewer codes than sc", "5", tuple(codes.te - codes.sc),
                  paper.te - paper.sc, sign=-1, digits=1, margin=None),
            Claim(f"{source}: te costs little fidelity: extra L1 at most {limit:.1%} of sc's, the "
                  "most in the paper", "5", tuple(l1.te / l1.sc - 1), float(extra[same]),
                  limit=limit, margin=None),
            Claim(f"{source}: te reconstructs worse: extra perceptual distance, as a share of sc's",
                  "5", tuple(distance.te / distance.sc - 1), float(far.te / far.sc - 1),
                  margin=None)]
    return found


def _equivariance(table: pd.DataFrame) -> list[Claim]:
    rows = select(table, task="measure", cells="foreground", source=table.source.head(1).squeeze())
    kappas = {name: _by_variant(rows, metric="kappa", case=name) for name in tables.MEASURES}
    error = _by_variant(rows, metric="feature_error", case="grid")
    return [*(Claim(f"te more equivariant than sc: {name}, kappa on foreground", "3.2",
                    tuple(kappa.te - kappa.sc), margin=None) for name, kappa in kappas.items()),
            Claim("te's features more equivariant than sc's: relative error, grid, on foreground",
                  "ours", tuple(error.te - error.sc), sign=-1, margin=None)]


def _by_variant(rows: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Values of one metric, of the seeds that both have: rows seeds, columns sc and te."""
    return select(rows, **where).pivot(index="seed", columns="variant", values="value").reindex(
        columns=["sc", "te"]).dropna()


def _seen(table1: pd.DataFrame, task: str, *variants: str) -> dict[str, float]:
    """Accuracy on seen combinations, mean of Quad2-4, of the worst seed; missing ones left out."""
    decoding, metric = SEEN[task]
    matrix = by_case(table1, task=task, split="test_seen", decoding=decoding, metric=metric)
    worst = matrix[list(QUADS[1:])].mean(axis=1).groupby(level="variant").min()
    return {f"{v} {task}": float(worst[v]) for v in variants if worst.get(v, np.nan) >= 0}


def _published(table: int = 1, case: str = "mean", **where: str) -> Group:
    """A case of Table 1 or 2, or the mean of its cases with the mean of their SDs, an upper one."""
    rows = select(published(table), **where, **({} if case == "mean" else {"case": case}))
    return Group(float(rows.value.mean()), float(rows.sd.mean()))
