"""What was found, for the first screen of the README."""

import itertools

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
COLUMNS = {"official": "official decoding", "best": "best decoding",
           "official_second": "official, second judge", "best_second": "best, second judge"}
SAME_SCENES = {"official": why.point("test", why.OFFICIAL)}  # those that the second judge reads
ARMS = {"te": "`te`: orthogonal codes", "sc40": "`sc40`: `sc` with 40 codes",
        "merged": "`merged`: the codes of a trained `sc`, joined to 40",
        "te_revived": "`te_revived`: `te`, its unused codes put back to use"}


def in_short(grid: Grid) -> str:
    """What was found, a line per question: every number and verdict comes from the tables.

    Other presets whose tables are committed have a column each.
    """
    there = [name for name in LARGER if (ROOT / "results" / name / "tables/table1.csv").exists()]
    larger = {name: study.all_claims(study.published_grid(name)) for name in there}
    found = answers(study.all_claims(grid), larger)
    measured = why.table(grid)
    return f"{found}\n\n{why_in_short(measured)}" if measured.official_second.any() else found


def lead(grid: Grid) -> str:
    """The two main answers, with their numbers, before everything else."""
    return answer(study.all_claims(grid), why.table(grid))


def answer(every: list[Claim], frame: pd.DataFrame) -> str:
    """Is `te` better, by its claim; and why, by the runs of results/plan.md."""
    if not (c := _find(every, next(iter(SHORT.values())))):
        return "**In short.** Nothing has run yet."
    told = ("**In short.** Does `te`, the paper's proposal, paint captions better than the "
            "baseline `sc`, with combinations that training never shows? "
            f"*{ANSWERS.get(c.verdict, c.verdict).capitalize()}*: {c.estimate:+.3f} "
            f"{text(c.interval)} in the share of right digits, {len(c.values)} seeds. Because its "
            "codes are orthogonal, or because they are few?")
    known = {arm: found.shown for arm in ARMS if (found := why.paired(frame, arm, "sc")).values}
    if not known:
        return f"{told} New trainings will tell."
    done, wanted = why.progress(frame)
    arms = "; ".join(f"{ARMS[arm].replace(':', ',')}, {shown}" for arm, shown in known.items())
    return " ".join([
        f"{told} *{why.verdict(frame).capitalize()}*{' so far' * (done < wanted)}: {done} of "
        f"{wanted} seeds have all that decides. Trained anew, the difference to `sc` is: {arms}.",
        *_revival(frame)])


def why_in_short(frame: pd.DataFrame) -> str:
    """What the runs of results/plan.md say so far: the answer, and the differences it rests on."""
    done, wanted = why.progress(frame)
    parts = ["**Orthogonal codes, or just fewer?** [A plan](results/plan.md), written before its "
             f"runs, puts the question to new trainings. So far {done} of {wanted} seeds have run "
             "with all that decides."]
    rows, moved = [], [0.0]
    for arm, name in ARMS.items():
        row = {"Trained anew": name, "seeds": "–"}
        for end, other in itertools.product(why.ENDPOINTS, ("sc", "te")):
            head = f"{COLUMNS[end]}: minus `{other}`"
            row[head] = "–"
            if arm == other:
                continue
            c, first, second = (why.paired(frame, arm, other, column) for column in (
                end, SAME_SCENES.get(end, end), f"{end}_second"))
            row[head] = c.shown or "not run yet"
            if c.values and first.values and second.values:
                row["seeds"] = str(len(c.values))
                moved.append(abs(second.estimate - first.estimate))
        rows.append(row)
    if {row["seeds"] for row in rows} == {"–"}:
        return parts[0]
    answer = why.verdict(frame)
    parts += [f"{'Preliminary answer' if done < wanted else 'The answer'}: *{answer}*."]
    parts += [why.MEANINGS[answer]] * (answer != "not settled") + _reasons(frame)
    return "\n\n".join([" ".join(parts), markdown(pd.DataFrame(rows).set_index("Trained anew")),
                        " ".join([*_caveats(frame, max(moved)), variety(frame)])])


def _revival(frame: pd.DataFrame) -> list[str]:
    """Why `te_revived` may not be counted, by rule 3 of the plan; nothing if it may or has not run.
    """
    found = why.revival(frame)
    if found.isna().any() or why.revived(frame):
        return []
    (least, _), (_, most) = why.REVIVED.values()
    return ["`te_revived` does not count unless its codes are both in use and orthogonal. It uses "
            f"{found.codes_used:.0f} codes (at least {least}); equation 5, which is 0 for "
            f"orthogonal codes, is {found.orthogonality:.3f} (at most {most})."]


def _reasons(frame: pd.DataFrame) -> list[str]:
    """What the answer rests on, once there is one: endpoints, arms, shares."""
    pairs = {arm: len(why.paired(frame, arm, "te").values) for arm in why.lacking(frame)}
    if pairs:
        told = ", ".join(f"`{arm}` {count}" for arm, count in pairs.items())
        return [f"An answer needs at least two seeds of `te` and each other row. So far: {told}."]
    decided = {name + judge: found for judge in why.JUDGES
               for name, found in why.decision(frame, judge).items()}
    if set(decided.values()) == {"not settled"}:
        return ["The gain of `te` over `sc` was not seen again: its interval is not above 0."]
    found = ["By endpoint: " + "; ".join(f"{head}: *{decided[column]}*"
                                         for column, head in COLUMNS.items()) + "."]
    found += ["By arm, with official decoding: " + "; ".join(
        f"`{arm}` {why.standing(frame, arm).text}" for arm in why.DECIDING) + "."]
    for arm in why.FEW:
        part, ends = why.share(frame, arm)
        found.append(f"`{arm}` has {part:.0%} of the gain of `te`, " + (
            f"95 % interval {ends.low:.0%} to {ends.high:.0%}." if ends else "with no interval."))
    between = why.interaction(frame)
    return [*found, f"Interaction with `te40`: {between.shown or 'not run yet'}."]


def _caveats(frame: pd.DataFrame, moved: float) -> list[str]:
    """What the table does not show: scenes, how far the second judge moves a difference, codes in
    use, how usual the pairs are."""
    planned = frame[frame.planned.astype(bool)]
    used = planned.groupby("variant").codes_used.mean().dropna().round()
    pairs = frame[frame.variant.isin(("sc", "te"))].pivot(
        index=["planned", "seed"], columns="variant", values="official").dropna()
    before = (pairs.te - pairs.sc).astype(float).get(False, pd.Series(dtype=float))
    found = ["Official decoding draws every code by chance, among the 38 most likely (temperature "
             "1, top-k 38). The best one of a grid is chosen for each row on validation scenes; it "
             "is read on a part of the test scenes. So is what a second judge sees, a network "
             "trained apart: on the same scenes it moves a difference by "
             f"{moved:.3f} at most."]
    if len(used):
        found.append("Codes in use: " + ", ".join(
            f"`{name}` {used[name]:.0f}" for name in ("sc", *ARMS) if name in used) + ".")
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
            + f", but by less than {MARGIN}" * (c.small and c.verdict in ANSWERS)
            + "; not to be trusted: it rests on pairs that happen to be alike" * bool(c.lucky),
            "ours [95 % interval], seeds": _interval(c)}
            | {f"preset `{name}`": _interval(_find(found, words))
               for name, found in (larger or {}).items()}
            | {"paper": "–" if c.paper is None else f"{c.paper:+.{c.digits}f}"})
    if not rows:
        return "Nothing has run yet."
    return (markdown(pd.DataFrame(rows).set_index("Compared with `sc`, `te` ...")) +
            "\n\nEach number is a difference to `sc`, averaged over seeds. Unless the row says "
            "otherwise, it is in the share of right digits, the mean of Quad1–4. *Kappa* is how "
            "often codes of items agree, beyond chance: 0 is chance, 1 is always. *Yes* and *no, "
            "worse*: our 95 % interval over seeds lies on that side of 0. *No "
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
