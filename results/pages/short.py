"""What was found, for the first screen of the README."""

import pandas as pd

from pages import study
from pages.text import markdown
from tevq.grid import Grid
from tevq.report import why
from tevq.report.claims import MARGIN, Claim, text
from tevq.runs.devices import ROOT

LARGER = ("gpu", "plain")  # presets shown beside it once they have run
SHORT = {  # a line of the README -> words of its claim
    "paints captions better, with combinations that training never shows":
        "text→image: te above sc, mean",
    "is further ahead on those than on combinations that training shows": "never shows",
    "paints them better than the best of `mb`, `mp` and `cb`": "text→image: te above the best",
    "paints them better on a coarser grid (stride 8)": "text→image at stride",
    "loses less in Quad1 when trained on a third of the scenes": "image, Quad1)",
    "describes images better, with words drawn by chance": "image→text: te above sc, mean",
    "describes images better, with the most likely words": "image→text, greedy",
    "uses fewer codes": "mnist: te uses fewer codes",
    "reconstructs worse (perceptual distance; as a share)": "mnist: te reconstructs",
    "keeps its codes better when an item moves by whole strides (kappa)": "sc: grid",
    "keeps its codes better when it moves by less than a stride (kappa)": "sc: subgrid",
    "keeps its codes better when other items appear (kappa)": "sc: context",
    "keeps its features better when an item moves by whole strides (relative error)": "features",
}
ANSWERS = {"same direction": "yes", "opposite direction": "no, worse"}  # else the verdict
COLUMNS = {"official": "official decoding", "best": "each at its best",
           "official_second": "official, second judge", "best_second": "best, second judge"}
CONTRASTS = (("te", "sc"), ("sc40", "te"), ("sc40", "sc"), ("merged", "te"), ("merged", "sc"),
             ("te_revived", "te"), ("te_revived", "sc"))


def in_short(grid: Grid) -> str:
    """What was found, a line per question: every number and verdict comes from the tables.

    Other presets whose tables are committed have a column each.
    """
    there = [name for name in LARGER if (ROOT / "results" / name / "tables/table1.csv").exists()]
    larger = {name: study.all_claims(study.published_grid(name)) for name in there}
    found = answers(study.all_claims(grid), larger)
    measured = why.table(grid)
    return f"{found}\n\n{why_in_short(measured)}" if measured.official_second.any() else found


def why_in_short(frame: pd.DataFrame) -> str:
    """What the runs of results/plan.md say so far: the answer, and the differences it rests on."""
    done, wanted = why.progress(frame)
    parts = ["**Orthogonal codes, or just fewer?** [A plan](results/plan.md), written before its "
             "runs, puts the question to new trainings. `sc40` is `sc` with 40 codes. `merged` has "
             "the codes of a trained `sc`, joined to 40. `te_revived` is `te` with all its codes "
             f"kept in use. So far {done} of {wanted} seeds have run with all of these."]
    rows = []
    for a, b in CONTRASTS:
        found = {head: why.paired(frame, a, b, column) for column, head in COLUMNS.items()}
        if seeds := len(found[COLUMNS["official"]].values):
            rows.append({"Difference": f"`{a}` minus `{b}`", "seeds": str(seeds)}
                        | {head: c.shown or "–" for head, c in found.items()})
    if not rows:
        return parts[0]
    parts += [f"{'Preliminary answer' if done < wanted else 'The answer'}: "
              f"*{(answer := why.verdict(frame))}*.", why.MEANINGS[answer], *_reasons(frame)]
    return "\n\n".join([" ".join(parts), markdown(pd.DataFrame(rows).set_index("Difference")),
                        " ".join([*_caveats(frame), variety(frame)])])


def _reasons(frame: pd.DataFrame) -> list[str]:
    """What the answer rests on, once there is one: endpoints, arms, shares."""
    if few := why.lacking(frame):
        return ["Fewer than two pairs with `te` have run of " + ", ".join(
            f"`{arm}`" for arm in few) + "."]
    decided = {name + judge: found for judge in why.JUDGES
               for name, found in why.decision(frame, judge).items()}
    if set(decided.values()) == {"not settled"}:
        return []
    found = ["By endpoint: " + "; ".join(f"{head}: *{decided[column]}*"
                                         for column, head in COLUMNS.items()) + "."]
    found += ["By arm, with official decoding: " + "; ".join(
        f"`{arm}` {why.standing(frame, arm).text}" for arm in why.DECIDING) + "."]
    if not why.revived(frame):
        found.append("`te_revived` does not count: its codes did not stay in use and orthogonal.")
    for arm in why.FEW:
        part, ends = why.share(frame, arm)
        found.append(f"`{arm}` has {part:.0%} of the gain of `te`, " + (
            f"95 % interval {ends.low:.0%} to {ends.high:.0%}." if ends else "with no interval."))
    between = why.interaction(frame)
    return [*found, f"Interaction with `te40`: {between.shown or 'not run yet'}."]


def _caveats(frame: pd.DataFrame) -> list[str]:
    """What the table does not show: scenes, how many codes are in use, how usual the pairs are."""
    planned = frame[frame.planned.astype(bool)]
    used = planned.groupby("variant").codes_used.mean().dropna().round()
    pairs = frame[frame.variant.isin(("sc", "te"))].pivot(
        index=["planned", "seed"], columns="variant", values="official").dropna()
    before = (pairs.te - pairs.sc).astype(float).get(False, pd.Series(dtype=float))
    found = ["Official decoding is temperature 1 and top-k 38. The best is chosen for each variant "
             "on validation scenes. The second judge is another network, trained apart; it and the "
             "best read only a part of the test scenes."]
    if len(used):
        found.append("Codes in use: " + ", ".join(
            f"`{name}` {used[name]:.0f}" for name in ("sc", "te", "sc40") if name in used) + ".")
    if len(before):
        found.append(f"`te` minus `sc` was {before.min():+.3f} to {before.max():+.3f} in the "
                     f"{len(before)} earlier pairs.")
    return found


def variety(frame: pd.DataFrame) -> str:
    """How many of the real items lie near painted ones, by decoding; means over seeds."""
    names = ["recall_official", "recall_greedy"]
    known = frame[frame.variant.isin(("sc", "te"))].dropna(subset=names)
    known = known[known.planned == known.planned.any()]  # those of the plan, once there are any
    found = known.pivot(index="seed", columns="variant", values=names).dropna()
    if not len(found):
        return "How varied they paint was not measured yet."
    return ("Accuracy is not variety. The share of real items that look like a painted one: "
            + "; ".join(f"{word} {found[name].sc.mean():.2f} (`sc`), {found[name].te.mean():.2f} "
                        "(`te`)" for name, word in zip(names, (
                            "official decoding", "greedy, always the most likely code"),
                            strict=True)) + ".")


def answers(every: list[Claim], larger: dict[str, list[Claim]] | None = None) -> str:
    """The claims of SHORT as questions with their answers; `larger`: those of other presets."""
    rows = []
    for line, words in SHORT.items():
        if not (c := _find(every, words)):
            continue
        rows.append({
            "Compared with `sc`, `te` ...": line,
            "Does it here?": ANSWERS.get(c.verdict, c.verdict)
            + f", but by less than {MARGIN}" * (c.small and c.verdict in ANSWERS),
            "ours [95 % interval], seeds": _interval(c)}
            | {f"preset `{name}`": _interval(_find(found, words))
               for name, found in (larger or {}).items()}
            | {"paper": "–" if c.paper is None else f"{c.paper:+.{c.digits}f}"})
    if not rows:
        return "Nothing has run yet."
    return (markdown(pd.DataFrame(rows).set_index("Compared with `sc`, `te` ...")) +
            "\n\n*Yes* and *no, worse*: our 95 % interval over seeds lies on that side of 0. *No "
            f"difference*: two one-sided tests at 5 % show that it lies within ±{MARGIN}. "
            "*Undecided*: none of these. Only the first row was planned, for three seeds; three "
            "more came when those had not decided it. The intervals hold for each row alone. All "
            "is of preset `laptop`, a small part of the paper's training: at its own size the "
            "paper may be right. [All results](results/laptop/README.md).")


def _find(every: list[Claim], words: str) -> Claim | None:
    return next((c for c in every if words in c.text and c.values), None)


def _interval(c: Claim | None) -> str:
    """Mean, interval and number of seeds of a claim; a dash without runs."""
    return "–" if c is None else (f"{c.estimate:+.{c.digits}f} {text(c.interval, c.digits)}, "
                                  f"{len(c.values)}")
