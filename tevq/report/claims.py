"""The paper's claims and two of ours: what each compares, in our tables and in the paper's.

`verdicts.Claim` says how a claim is judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tevq.grid import Grid
from tevq.report import stats, tables
from tevq.report.stats import Group, Interval, contrast, t_interval
from tevq.report.tables import AS_PUBLISHED, QUADS, by_case, published, select
from tevq.report.verdicts import Claim, text

BASELINES = ("mb", "mp", "cb")
# what a generator must have learned: images by the number that is compared, captions greedily,
# because one unlucky word says little about learning
SEEN = {"t2i": ("sampled", "digit"), "i2t": ("greedy", "digit")}
TITLES = {"t2i": "text→image", "i2t": "image→text"}


def all_claims(built: dict[str, pd.DataFrame]) -> list[Claim]:
    """Every claim of sections 3 to 5 that a number can speak to, and ours about Table 4 when any of
    it has run. `built`: as `tables.build`.
    """
    return [*_generation(built["table1"]), _efficiency(built["table2"]),
            *_codes(built["table3"]), *_equivariance(built["equivariance"]),
            *_stride(built["stride"])]


def primary(table1: pd.DataFrame, task: str = "t2i", split: str = "test", case: str = "mean"
            ) -> Claim:
    """te - sc, digit accuracy, by default the mean over Quad1-4; `test` is held-out combinations.

    Text->image with the defaults is the one primary comparison of the study, chosen before looking.
    """
    where = {"mean": "mean of Quad1–4", "quad1": "Quad1 (the abstract's number)"}.get(case, case)
    return Claim(f"{TITLES[task]}: te above sc, {where}", "4.1" if task == "t2i" else "4.2",
                 _paired(table1, task, "te", "sc", case, split), *_gain(task, case),
                 _seen(table1, task, ("sc", "te")))


def family(table1: pd.DataFrame) -> pd.DataFrame:
    """te - sc per case and task: mean, t-interval, exact sign-flip p, Holm over all of them."""
    rows = []
    for task, (decoding, metric) in AS_PUBLISHED.items():
        for case in QUADS:
            values = _paired(table1, task, "te", "sc", case)
            paper, interval = _gain(task, case)
            rows.append({
                "task": task, "case": case, "metric": f"{metric}, {decoding}",
                "te − sc": np.mean(values) if values else np.nan,
                "interval (t)": text(t_interval(values)), "seeds": len(values),
                "paper": paper, "paper's interval": text(interval),
                "p sign-flip": stats.sign_flip(values) if values else np.nan})
    found = pd.DataFrame(rows)
    known = found["p sign-flip"].notna()
    found["p Holm"] = np.nan
    found.loc[known, "p Holm"] = stats.holm(found.loc[known, "p sign-flip"])
    return found


def bootstrap(grid: Grid, task: str = "t2i", split: str = "test") -> Interval | None:
    """Hierarchical bootstrap interval (seed, then scene) of te - sc, mean of Quad1-4."""
    column = "_".join((task, *AS_PUBLISHED[task]))
    found = tables.scene_counts(grid, ("sc", "te"), column, split)
    if found is None:
        return None
    counts, case = found
    quad = np.isin(case, QUADS)
    sc, te = (stats.Counts(c.correct[:, quad], c.n[:, quad])
              for c in (counts["sc"], counts["te"]))
    return stats.bootstrap_difference(sc, te, case[quad])


def at_equal_size(found: pd.DataFrame, baseline: str = "sc", ours: str = "te") -> pd.DataFrame:
    """How far merging the baseline's codes down to our number of codes takes its kappa to ours.

    found: as from `tables.vocabularies`. One row per seed and measure: `baseline` and `ours` as
    trained, `merged` (read off the baseline's line between two sizes, linear in the logarithm of
    the number of codes), and `codes`, ours. Left out: seeds that lack a variant, sizes beyond the
    line.
    """
    rows = []
    for (seed, measure), part in found.dropna(subset="kappa").groupby(["seed", "measure"],
                                                                      sort=False):
        line = part[part.variant == baseline].sort_values("codes_used")
        own = part[(part.variant == ours) & (part.groups == 0)]
        for codes, kappa in zip(own.codes_used, own.kappa, strict=True):
            if line.codes_used.min() <= codes <= line.codes_used.max():
                rows.append({"seed": seed, "measure": measure, "codes": codes,
                             "baseline": line[line.groups == 0].kappa.iloc[0], "ours": kappa,
                             "merged": np.interp(np.log(codes), np.log(line.codes_used),
                                                 line.kappa)})
    return pd.DataFrame(rows, columns=["seed", "measure", "codes", "baseline", "merged", "ours"])


def verdicts(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim, as text."""
    return pd.DataFrame([{
        "claim": c.text, "section": c.section,
        "ours": "–" if c.estimate is None else f"{c.estimate:+.{c.digits}f}",
        "our interval": text(c.interval, c.digits),
        "paper": "no number" if c.paper is None else f"{c.paper:+.{c.digits}f}",
        "paper's interval": text(c.paper_interval, c.digits),
        "verdict": c.verdict, "note": c.note}
        for c in claims])


def _generation(table1: pd.DataFrame) -> list[Claim]:
    found = [primary(table1, task, case=case)
             for case in ("mean", "quad1") for task in AS_PUBLISHED]
    for task in AS_PUBLISHED:
        present = [v for v in BASELINES if _paired(table1, task, "te", v)]
        rival = max(present, key=lambda v: _scores(table1, task, v).mean(), default="")
        which = rival + "".join(f", without {v}" for v in BASELINES if present and v not in present)
        best = max(BASELINES, key=lambda v: _published(task, v).mean)
        parts = [(1.0, _published(task, "te")), (-1.0, _published(task, best))]
        found.append(Claim(
            f"{TITLES[task]}: te above the best of mb, mp, cb" + (f" ({which})" if which else ""),
            "4.1" if task == "t2i" else "4.2",
            _paired(table1, task, "te", rival) if rival else (), *contrast(parts),
            _seen(table1, task, (rival, "te")),
            detail=_beside(table1, task, rival) if rival else ""))
    return [*found, _smaller_gain(table1), _below(table1)]


def _smaller_gain(table1: pd.DataFrame) -> Claim:
    gains = [_scores(table1, task, "te") - _scores(table1, task, "sc") for task in AS_PUBLISHED]
    parts = [(weight, _published(task, variant)) for task, variant, weight in (
        ("t2i", "te", 1.0), ("t2i", "sc", -1.0), ("i2t", "te", -1.0), ("i2t", "sc", 1.0))]
    return Claim("the gain of te over sc is larger in text→image than in image→text", "4.2",
                 tuple((gains[0] - gains[1]).dropna()), *contrast(parts),
                 _seen(table1, "t2i", ("sc", "te")) | _seen(table1, "i2t", ("sc", "te")),
                 detail=f"gains {gains[0].mean():+.3f} and {gains[1].mean():+.3f}")


def _below(table1: pd.DataFrame) -> Claim:
    """Text->image minus image->text per seed, mean over the variants that have the most seeds."""
    gaps = {variant: (_scores(table1, "t2i", variant) - _scores(table1, "i2t", variant)).dropna()
            for variant in dict.fromkeys(table1.variant)}
    most = max(map(len, gaps.values()), default=0)
    gaps = {variant: gap for variant, gap in gaps.items() if len(gap) == most > 0}
    variants = list(gaps) or list(dict.fromkeys(table1.variant))
    parts = [(sign / len(variants), _published(task, variant)) for variant in variants
             for task, sign in (("t2i", 1.0), ("i2t", -1.0))]
    values = pd.DataFrame(gaps).dropna().mean(axis=1) if gaps else ()
    seen = [_seen(table1, task, variants) for task in AS_PUBLISHED]
    return Claim(f"image→text below text→image (mean over {', '.join(variants)})", "4.2",
                 tuple(values), *contrast(parts), seen[0] | seen[1], detail=", ".join(
                     f"{variant} {gap.mean():+.3f}" for variant, gap in gaps.items()))


def _efficiency(table2: pd.DataFrame) -> Claim:
    sizes = {size: select(table2, size=size) for size in ("full", "third")}
    drops = {case: pd.DataFrame({v: _scores(sizes["full"], "t2i", v, case)
                                 - _scores(sizes["third"], "t2i", v, case)
                                 for v in ("sc", "te")}).dropna() for case in ("quad1", "mean")}
    parts = [(weight, _group(select(published(2), variant=variant, size=size)))
             for variant, size, weight in (("sc", "full", 1.0), ("sc", "third", -1.0),
                                           ("te", "full", -1.0), ("te", "third", 1.0))]
    seen = {f"{name} ({size})": value for size, rows in sizes.items()
            for name, value in _seen(rows, "t2i", ("sc", "te")).items()}
    every = drops["mean"].mean()  # four times the scenes of Quad1
    return Claim("a third of the training scenes costs te less than sc (Quad1, text→image)", "4.3",
                 tuple(drops["quad1"].sc - drops["quad1"].te), *contrast(parts), seen,
                 detail=f"mean of Quad1–4: sc {-every.sc:+.3f}, te {-every.te:+.3f}")


def _codes(table3: pd.DataFrame) -> list[Claim]:
    l1 = select(published(3), metric="l1").set_index(["source", "variant"]).value.unstack()
    marginal = float((l1.te / l1.sc - 1).max())  # the most that the paper calls so: Fashion-MNIST
    found = []
    for source in dict.fromkeys(table3.source[table3.variant.isin(("sc", "te"))]):
        rows = select(table3, source=source, split="test")
        same = source if source in set(published(3).source) else "mnist"
        theirs = select(published(3), source=same).set_index(["metric", "variant"]).value
        codes, l1 = (_by_variant(rows, metric) for metric in ("codes_used", "l1"))
        found.append(Claim(f"{source}: te uses fewer codes than sc", "5",
                           tuple((codes["te"] - codes["sc"]).dropna()),
                           theirs["codes_used", "te"] - theirs["codes_used", "sc"], None, sign=-1,
                           digits=1))
        found.append(Claim(
            f"{source}: te costs little fidelity: extra L1 at most {marginal:.1%} of sc's",
            "5", tuple((l1["te"] / l1["sc"] - 1).dropna()),
            theirs["l1", "te"] / theirs["l1", "sc"] - 1, None, limit=marginal))
    return found


def _equivariance(table: pd.DataFrame) -> list[Claim]:
    found = []
    for measure in tables.MEASURES:
        rows = select(table, task="measure", case=measure, cells="foreground", metric="kappa")
        kappa = _by_variant(rows[rows.source == rows.source.iloc[0]] if len(rows) else rows)
        found.append(Claim(f"te more equivariant than sc: {measure}, kappa on foreground", "3.2",
                           tuple((kappa["te"] - kappa["sc"]).dropna()), None, None))
    return found


def _stride(table: pd.DataFrame) -> list[Claim]:
    """Te above sc on the grid of Table 4, about which the paper says nothing."""
    if not (table.state == "done").any():
        return []
    return [Claim(f"{TITLES[task]} at stride {table.stride.iloc[0]}: te above sc, mean of Quad1–4",
                  "ours", _paired(table, task, "te", "sc"), None, None,
                  _seen(table, task, ("sc", "te"))) for task in AS_PUBLISHED]


def _by_variant(rows: pd.DataFrame, metric: str = "kappa") -> pd.DataFrame:
    """Values of one metric: rows seeds, columns sc and te."""
    rows = select(rows, metric=metric)
    return rows.pivot(index="seed", columns="variant", values="value").reindex(
        columns=["sc", "te"])


def _scores(table1: pd.DataFrame, task: str, variant: str, case: str = "mean",
            split: str = "test") -> pd.Series:
    """Accuracy as the paper counts it, by seed; missing seeds left out."""
    decoding, metric = AS_PUBLISHED[task]
    matrix = by_case(table1, task=task, split=split, decoding=decoding, metric=metric)
    if variant not in matrix.index.unique("variant"):
        return pd.Series(dtype=float)
    return matrix.loc[variant][case].dropna()


def _paired(table1: pd.DataFrame, task: str, a: str, b: str, case: str = "mean",
            split: str = "test") -> tuple[float, ...]:
    """a - b for every seed that both have."""
    both = _scores(table1, task, a, case, split) - _scores(table1, task, b, case, split)
    return tuple(both.dropna())


def _beside(table1: pd.DataFrame, task: str, rival: str) -> str:
    """What te and a rival reach on the seeds that both have, and which these are."""
    both = pd.DataFrame({v: _scores(table1, task, v) for v in ("te", rival)}).dropna()
    return (f"te {both.te.mean():.3f}, {rival} {both[rival].mean():.3f} on seed"
            f"{'s' * (len(both) > 1)} {', '.join(map(str, both.index))}")


def _seen(table1: pd.DataFrame, task: str, variants: Sequence[str]) -> dict[str, float]:
    """Accuracy on seen combinations, mean of Quad2-4, of the worst seed; missing ones left out."""
    decoding, metric = SEEN[task]
    matrix = by_case(table1, task=task, split="test_seen", decoding=decoding, metric=metric)
    worst = matrix[list(QUADS[1:])].mean(axis=1).groupby(level="variant").min()
    return {f"{v} {task}": float(worst[v]) for v in variants if worst.get(v, np.nan) >= 0}


def _gain(task: str, case: str) -> tuple[float, Interval | None]:
    """The paper's te - sc, with its interval."""
    return contrast([(1.0, _published(task, "te", case)), (-1.0, _published(task, "sc", case))])


def _published(task: str, variant: str, case: str = "mean") -> Group:
    """A case of Table 1, or the mean of Quad1-4 with the mean of their SDs: an upper bound of the
    SD of that mean.
    """
    rows = select(published(1), task=task, variant=variant)
    return _group(rows if case == "mean" else select(rows, case=case))


def _group(rows: pd.DataFrame) -> Group:
    return Group(float(rows.value.mean()), float(rows.sd.mean()))
