"""What was found, for the first screen of the README."""

import pandas as pd

from pages import study
from pages.text import markdown
from tevq.grid import Grid
from tevq.report import why
from tevq.report.claims import MARGIN, Claim, text
from tevq.report.stats import t_interval
from tevq.runs.devices import ROOT

LARGER = ("gpu", "plain")  # presets shown beside it once they have run
SHORT = {  # a line of the README -> words of its claim
    "paints captions it never saw better": "text→image: te above sc, mean",
    "has a larger lead on captions it never saw than on captions like those it saw": "never shows",
    "has a lead that shrinks while both train": "shrinks",
    "paints them better than the best other baseline, too": "text→image: te above the best",
    "paints them better on a coarser grid (stride 8), too": "text→image at stride",
    "loses less with a third of the training scenes (Quad1 only, as in the paper)": "image, Quad1)",
    "loses less with a third of the training scenes (mean of Quad1–4)": "image, mean of Quad1–4)",
    "describes images it never saw better": "image→text: te above sc, mean",
    "uses fewer codes": "te uses fewer codes",
    "keeps its codes when an item moves by whole strides (kappa)": "sc: grid",
    "keeps its features then (relative error; less is better)": "features",
}
ANSWERS = {"same direction": "yes", "opposite direction": "no, the reverse"}  # else the verdict
DECIDING = (("te", "sc"), ("sc40", "te"), ("merged", "te"), ("te_revived", "sc"), ("sc40", "sc"),
            ("te40", "sc40"))


def in_short(grid: Grid) -> str:
    """What was found, a line per question: every number and verdict comes from the tables.

    Other presets whose tables are committed have a column each.
    """
    there = [name for name in LARGER if (ROOT / "results" / name / "tables/table1.csv").exists()]
    larger = {name: study.all_claims(study.published_grid(name)) for name in there}
    found = answers(study.all_claims(grid), larger)
    measured = why.table(grid)
    if not measured.official_second.any():
        return found
    return f"{found}\n\n{why_in_short(measured)} {second_judge(measured)}"


def why_in_short(frame: pd.DataFrame) -> str:
    """What the runs of results/plan.md say so far: the answer, and the differences it rests on."""
    done, planned = len(why.paired(frame, "te", "sc").values), len(why.SEEDS)
    parts = ["**Orthogonal codes, or just fewer?** [A plan](results/plan.md) that was written "
             f"before its runs puts the question to new trainings; {done} of {planned} pairs of "
             f"`te` and `sc` {'has' if done == 1 else 'have'} run. `sc40` is `sc` with 40 codes."]
    if done:
        parts.append(f"{'Preliminary' if done < planned else 'Its answer'}: "
                     f"*{why.decision(frame)['answer']}*.")
    for endpoint, words in (("official", "official sampling (temperature 1, top-k 38)"),
                            ("best", "each at its best, chosen on validation scenes")):
        pairs = [(pair, why.paired(frame, *pair, endpoint)) for pair in DECIDING]
        if found := [f"{a} − {b} {c.estimate:+.3f} "
                     + (text(c.interval) if c.interval else "(one seed)")
                     for (a, b), c in pairs if c.values]:
            parts.append(f"With {words}: {', '.join(found)}.")
    return " ".join(parts)


def second_judge(frame: pd.DataFrame) -> str:
    """What the second judge says of te - sc, and how varied both paint; means over seeds."""
    ours, real = why.point("test", why.OFFICIAL), "real_second"
    names = [ours, "official_second", real, "recall_official", "recall_greedy"]
    known = frame[frame.variant.isin(("sc", "te"))].dropna(subset=names)
    known = known[known.planned == known.planned.any()]  # those of the plan, once there are any
    found = known.pivot(index="seed", columns="variant", values=names).dropna()
    if not len(found):
        return "The second judge has read nothing yet."
    gains = [(found[name].te - found[name].sc).astype(float) for name in names[:2]]
    recall = {name: found[f"recall_{name}"].mean() for name in ("official", "greedy")}
    return (f"**A second judge** read fewer scenes (of {'seeds' if len(found) > 1 else 'seed'} "
            f"{', '.join(map(str, found.index))}). It is another network, trained apart, and right "
            f"on {found[real].to_numpy().mean():.1%} of real held-out test items. Of these painted "
            f"scenes it says te − sc = {gains[1].mean():+.3f}{_bounds(gains[1])}, the first "
            f"judge {gains[0].mean():+.3f}{_bounds(gains[0])}. Accuracy is not variety: of the "
            "real items, a share of " + ", and of ".join(
                f"{x.sc:.2f} (sc) and {x.te:.2f} (te) lies near one that is painted by {name} "
                "decoding" for name, x in recall.items())
            + ". Greedy decoding always takes the most likely code.")


def _bounds(values: pd.Series) -> str:
    return f" {text(ends)}" if (ends := t_interval(values)) else ""


def answers(every: list[Claim], larger: dict[str, list[Claim]] | None = None) -> str:
    """The claims of SHORT as questions with their answers; `larger`: those of other presets."""
    rows = []
    for line, words in SHORT.items():
        if not (c := _find(every, words)):
            continue
        rows.append({
            "Compared with `sc`, `te` ...": line,
            "Does it here?": ANSWERS.get(c.verdict, c.verdict)
            + f", but within ±{MARGIN}" * (c.small and c.verdict in ANSWERS),
            "ours [95 % interval], seeds": _interval(c)}
            | {f"preset `{name}`": _interval(_find(found, words))
               for name, found in (larger or {}).items()}
            | {"paper": "–" if c.paper is None else f"{c.paper:+.{c.digits}f}"})
    if not rows:
        return "Nothing has run yet."
    return (markdown(pd.DataFrame(rows).set_index("Compared with `sc`, `te` ...")) +
            "\n\n*Yes* and *no, the reverse*: our 95 % interval over seeds lies on that side of 0. "
            f"*Within ±{MARGIN}*: the sign is clear, but the effect is smaller than that. "
            f"*No difference*: {study.VERDICTS['no difference']}. *Undecided*: none of these.")


def _find(every: list[Claim], words: str) -> Claim | None:
    return next((c for c in every if words in c.text and c.values), None)


def _interval(c: Claim | None) -> str:
    """Mean, interval and number of seeds of a claim; a dash without runs."""
    return "–" if c is None else (f"{c.estimate:+.{c.digits}f} {text(c.interval, c.digits)}, "
                                  f"{len(c.values)}")
