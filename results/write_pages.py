"""Writes the generated parts of the pages from the committed tables.

Run it as `python results/write_pages.py`. With `--record smoke` it first notes, in times.csv, what
the finished command `./run_all.sh --preset smoke` took on this machine, and what came out.

A generated part stands between two marks in a Markdown file. Nothing in it is typed, and a test
compares it with the tables.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))  # finds tevq when it is not installed

from tevq import pipeline, presets
from tevq.bench import timing
from tevq.bench.timing import OURS
from tevq.config import SettingsError
from tevq.data.captions import LENGTH, TEMPLATES, vocabulary
from tevq.data.source import class_names
from tevq.grid import Grid, choose
from tevq.models import transformer
from tevq.report import claims, tables, views, why
from tevq.report.claims import LEARNED, MARGIN, Claim, text
from tevq.report.stats import t_interval
from tevq.report.tables import QUADS, select
from tevq.runs.budget import in_words
from tevq.runs.devices import ROOT
from tevq.runs.run import Run, open_run
from tevq.runs.storage import read_json, write_atomically

PRESET = "laptop"
LARGER = ("gpu", "plain")  # presets shown beside it once they have run
TIMES = ROOT / "results" / "times.csv"
CELL = 25  # minutes that a cell of `laptop` should take alone on two cores with AMX
ALONE, BESIDE, SHARED = "two threads", "one thread, two cells side by side", "several on a card"
SEEN = ["text→image", "codes used", "kappa, grid"]  # numbers of the overview, for `guide`
TABLE2 = "Table 2: text→image digit accuracy in Quad1, trained on all scenes and on a third"
STRIDES = "At another stride: means over Quad1–4, held-out combinations"
BEGIN = "<!-- {}: made by `python results/write_pages.py`, do not edit -->"
END = "<!-- end of {} -->"
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
VERDICTS = {  # they rest on our own uncertainty, the 95 % t-interval over seeds
    "same direction": "our 95 % interval over seeds lies on the claim's side of 0",
    "within the limit": "of a claim with a limit: the whole interval does not exceed it",
    "opposite direction": "the interval lies on the other side of 0",
    "above the limit": "of a claim with a limit: the whole interval exceeds it",
    "no difference": "an equivalence test (two one-sided tests at 5 %) shows that the mean lies "
                     f"within ±{MARGIN}",
    "undecided": "none of these; or one seed; or a generator below "
                 f"{LEARNED} even on combinations that training shows",
    "missing": "no runs",
}
_KAPPA = {"task": "measure", "metric": "kappa", "cells": "foreground"}
OVERVIEW = {  # the numbers that say most about a variant
    "text→image": {"task": "t2i", "decoding": "sampled", "metric": "digit"},
    "text→image, greedy": {"task": "t2i", "decoding": "greedy", "metric": "digit"},
    "image→text": {"task": "i2t", "decoding": "sampled", "metric": "official_digit"},
    "ceiling: reconstructions": {"task": "ceiling-reconstruction", "metric": "digit"},
    "codes used": {"task": "reconstruction", "metric": "codes_used"},
    "kappa, grid": {"case": "grid"} | _KAPPA, "kappa, context": {"case": "context"} | _KAPPA,
}
DECIDING = (("te", "sc"), ("sc40", "sc"), ("te40", "sc40"), ("merged", "te"), ("te_revived", "sc"))
PACE = {  # words -> a job and a peer of notebook 07
    "a Stage-1 step": ("Stage-1 step, laptop", "taming, bfloat16, channels_last"),
    "a Stage-2 step": ("Stage-2 step, laptop", "transformers GPT-2"),
    "sampling": ("sampling, paper", "transformers GPT-2")}
ANSWERS = {"same direction": "yes", "opposite direction": "no, the reverse"}  # else the verdict


def published_grid(preset: str = PRESET) -> Grid:
    """The study whose tables are committed: the variants and seeds that Table 1 has."""
    table = tables.read(choose(preset, results=str(ROOT / "results")), "table1")
    variants, seeds = (list(dict.fromkeys(table[c])) for c in ("variant", "seed"))
    return choose(preset, variants, seeds, results=str(ROOT / "results"))


def in_short(grid: Grid) -> str:
    """What was found, a line per question: every number and verdict comes from the tables.

    Other presets whose tables are committed have a column each.
    """
    there = [name for name in LARGER if (ROOT / "results" / name / "tables/table1.csv").exists()]
    found = answers(_claims(grid), {name: _claims(published_grid(name)) for name in there})
    measured = why.table(grid)
    if not measured.official_second.any():
        return found
    return f"{found} {second_judge(measured)}\n\n{why_in_short(measured)}"


def why_in_short(frame: pd.DataFrame) -> str:
    """What the runs of results/plan.md say so far: the answer, and the differences it rests on."""
    done, planned = len(why.paired(frame, "te", "sc").values), len(why.SEEDS)
    parts = ["**Orthogonal codes, or just fewer?** [A plan](results/plan.md) that was written "
             f"before its runs asks new trainings; {done} of {planned} pairs of `te` and `sc` have "
             "run."]
    if done:
        parts.append(f"{'Preliminary' if done < planned else 'Its answer'}: "
                     f"*{why.decision(frame)['answer']}*.")
    for endpoint, words in (("official", "official sampling"), ("best", "each at its best")):
        pairs = [(pair, why.paired(frame, *pair, endpoint)) for pair in DECIDING]
        if found := [f"{a} − {b} {c.estimate:+.3f} {text(c.interval) if c.interval else 'one seed'}"
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
    return ("A second judge, another network trained apart, is right on "
            f"{found[real].to_numpy().mean():.1%} of real held-out test items. Of the same painted "
            f"scenes it says te − sc = {gains[1].mean():+.3f}{_bounds(gains[1])}, the first "
            f"judge {gains[0].mean():+.3f}{_bounds(gains[0])}. Accuracy is not variety: of the "
            "real items, a share of " + ", and of ".join(
                f"{x.sc:.2f} (sc) and {x.te:.2f} (te) lies near one that is painted by {name} "
                "decoding" for name, x in recall.items())
            + f" ({'seeds' if len(found) > 1 else 'seed'} {', '.join(map(str, found.index))}).")


def _bounds(values: pd.Series) -> str:
    return f" {text(ends)}" if (ends := t_interval(values)) else ""


def _claims(grid: Grid) -> list[Claim]:
    """All claims of a study, that about its learning curves too."""
    return [*claims.all_claims(_read(grid)), *(gain_over_training(grid) or ())[1:]]


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
            f"*No difference*: {VERDICTS['no difference']}. *Undecided*: none of these.")


def _find(every: list[Claim], words: str) -> Claim | None:
    return next((c for c in every if words in c.text and c.values), None)


def _interval(c: Claim | None) -> str:
    """Mean, interval and number of seeds of a claim; a dash without runs."""
    return "–" if c is None else (f"{c.estimate:+.{c.digits}f} {text(c.interval, c.digits)}, "
                                  f"{len(c.values)}")


def results(grid: Grid) -> str:
    """All results of a study: means, claims with their verdicts, why, and every table."""
    built = _read(grid)
    family, curve = claims.family(built["table1"]), gain_over_training(grid) or ()
    every = _claims(grid)
    parts = [f"*{views.caption(grid, built['table1'])}.*",
             "Digit accuracies on combinations never seen in training, means of Quad1–4:",
             markdown(overview(built)),
             "![Table 1 as a figure, beside the paper's numbers](figures/05_table1.png)",
             "![Images painted from held-out captions](figures/05_text_to_image_greedy.png)",
             "## Which claims hold here?",
             "".join(f"* *{verdict}*: {words}\n" for verdict, words in VERDICTS.items()),
             markdown(claims.verdicts(every).set_index("claim")), primary(grid, built),
             f"te − sc in every cell of Table 1. {floor(family)}",
             markdown(family.set_index(["task", "case"]).map(_three))]
    if curve:
        parts += ["**Does the gain last?** Text→image on held-out validation scenes, mean of "
                  "Quad1–4, while both train:", markdown(curve[0].map(_three))]
    parts += [*coarser(grid), "## Every table"]
    parts += [f"<details>\n<summary>{title}</summary>\n\n{markdown(view)}\n\n</details>"
              for title, view in details(built).items()]
    return "\n\n".join(parts)


def floor(family: pd.DataFrame) -> str:
    """Below which value no p of the table can go."""
    seeds, tests = family.seeds.max(), family["p Holm"].count()
    lowest = 2 / 2 ** max(1, seeds)
    return (f"With {seeds} seeds the exact p cannot go below {lowest:.3f}, and Holm over {tests} "
            f"tests not below {min(1, tests * lowest):.2f}, whatever the effect is.")


def primary(grid: Grid, built: dict[str, pd.DataFrame]) -> str:
    """The one comparison that was chosen before looking, and its two intervals."""
    claim = claims.primary(built["table1"])
    if claim.estimate is None:
        return "The primary comparison, text→image of te − sc, has no runs yet."
    return ("The primary comparison, chosen before looking, is the first row: "
            f"{claim.estimate:+.3f} over {len(claim.values)} seeds. Student's interval over seeds "
            f"{text(claim.interval)} decides. The hierarchical bootstrap over seeds and scenes, "
            f"{text(claims.bootstrap(grid))}, resamples few seeds and is too narrow.")


def gain_over_training(grid: Grid, split: str = "val") -> tuple[pd.DataFrame, Claim] | None:
    """te - sc of the learning curves, text->image, mean of Quad1-4: does the gain shrink?

    A row per number of sequences: sc, te, gain, interval. The claim is the mean gain over the first
    half of the training minus that over the second. None without curves of both.
    """
    curves = select(tables.learning(grid), split=split, scenes="full",
                    stride=grid.settings.stage1.stride)
    if not {"sc", "te"} <= set(curves.variant):
        return None
    found = curves.assign(y=curves[list(QUADS)].mean(axis=1)).pivot(
        index="sequences", columns=["variant", "seed"], values="y")
    gain = (found["te"] - found["sc"]).dropna(axis=1)
    rows = pd.DataFrame({"sc": found["sc"].mean(axis=1), "te": found["te"].mean(axis=1),
                         "gain": gain.mean(axis=1),
                         "interval": [text(t_interval(line)) for line in gain.to_numpy()]})
    first = gain.index <= gain.index.max() / 2
    early, late = gain[first].mean(), gain[~first].mean()
    return rows, Claim(
        "the gain of te over sc shrinks with training (first half − second half)", "ours",
        tuple(early - late), detail=" and ".join(
            f"{half.mean():+.3f} {text(t_interval(half))}" for half in (early, late)))


def overview(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per variant: accuracies (means over Quad1-4, held out), codes, equivariance."""
    return views.plain(_means(_usual(built, built["table1"].source.iloc[0]), ["variant"]))


def strides(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: sc and te at both strides. Accuracies are means over Quad1-4, held out.

    The networks differ too (a coarser stride has one more level), and so do the shifts of `grid`
    (multiples of the stride): compare the variants of one stride.
    """
    other = built["stride"]
    usual = _usual(built, other.source.iloc[0]) if len(other) else other
    parts = [usual[usual.variant.isin(other.variant)], other]
    rows = pd.concat(sorted(parts, key=lambda part: part.stride.min())).astype({"stride": str})
    return views.beside(_means(rows, ["stride", "variant"]))


def _usual(built: dict[str, pd.DataFrame], source: str) -> pd.DataFrame:
    """Tables 1, 3 and equivariance in one, of one source."""
    return select(pd.concat([built[name] for name in ("table1", "table3", "equivariance")]),
                  source=source)


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The heads of the overview by key and seed; means over the cases Quad1-4."""
    rows = rows[((rows.split == "test") | (rows.task == "measure")) & (rows.case != "center")]
    return tables.wide(pd.concat([select(rows, **where).assign(metric=head)
                                  for head, where in OVERVIEW.items()]), keys, list(OVERVIEW))


def coarser(grid: Grid) -> list[str]:
    """Is te more equivariant, or only coarser? sc with its codes merged to te's number answers."""
    equal = tables.at_equal_size(tables.vocabularies(grid))
    if equal.empty:
        return []
    heads = {"baseline": "sc", "merged": "sc, merged", "ours": "te"}
    means = equal.groupby("measure", sort=False)[list(heads)].mean().rename(columns=heads)
    share = (means["te"] - means["sc, merged"]) / (means.te - means.sc)
    means = means.map(_three).assign(**{"of the gain, beyond size": share.map("{:.0%}".format)})
    return ["**Better codes, or only fewer?** A coarser quantizer agrees with itself more often. "
            "Kappa on foreground cells of sc, of sc with neighbouring codes merged after training "
            "to as many as te has (read off between merges to 128, 64, 32, ... codes), and of te. "
            "A share of a gain near 0 means little:", markdown(means)]


def details(built: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every table by its title; those of which nothing has run are left out."""
    table1, ran = built["table1"], {name: table[table.state == "done"]
                                    for name, table in built.items()}
    found = {
        "Table 1, text→image: digit accuracy on combinations never seen in training (center: seen)":
            views.accuracy(table1, "t2i"),
        "Table 1, text→image, on combinations that training shows (test_seen)":
            views.accuracy(table1, "t2i", split="test_seen"),
        "Text→image with the most probable code every time (greedy): all metrics, means of "
        "Quad1–4": views.metrics(table1, "t2i", "greedy"),
        "Table 1, image→text: digit accuracy by the official rule, sampled captions":
            views.accuracy(table1, "i2t"),
        TABLE2: views.sample_efficiency(built["table2"]),
        "Table 3: codes used at least once, and what reconstructions lose":
            views.reconstruction(built["table3"]),
        "Equivariance: agreement of codes beyond chance (kappa) when an item moves or its "
        "surroundings change": views.equivariance(built["equivariance"]),
        STRIDES: strides(built),
    }
    left_out = {TABLE2: not (ran["table2"]["size"] == "third").any(), STRIDES: ran["stride"].empty}
    return {title: view for title, view in found.items() if not left_out.get(title)}


def markdown(view: pd.DataFrame) -> str:
    """A table as GitHub Markdown."""
    rows = [[*(name or "" for name in view.index.names), *view.columns],
            ["---"] * (view.index.nlevels + view.shape[1])]
    rows += [[*(key if isinstance(key, tuple) else (key,)), *row]
             for key, row in zip(view.index, view.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def promises(grid: Grid) -> str:
    """What the last `./run_all.sh --torture` found."""
    table = pd.read_csv(ROOT / "results" / "reliability.csv", keep_default_na=False)
    total, one = table.passed + table.failed + table.skipped, table.iloc[0]
    view = pd.DataFrame({"Promise": table.promise, "Measured": table.measured.replace("", "–"),
                         "Tests passed": table.passed.astype(str) + " of " + total.astype(str)})
    return markdown(view.set_index(["Promise", "Tests passed"])) + (
        f"\n\n*{table.seconds.sum() / 60:.0f} minutes of tests on {one.cores} cores "
        f"({one.device}), torch {one.torch}, {one.date}, commit {one.commit[:7]}.*")


def scaling(grid: Grid) -> str:
    """What trainings cost: counted, measured in committed runs, extrapolated."""
    table = pd.read_csv(ROOT / "results" / "cost.csv")
    measured = [_measured(grid, row.preset, row.stage) for row in table.itertuples()]
    view = pd.DataFrame({
        "Preset": table.preset, "Training": table.stage,
        "Samples": table.samples.map("{:,}".format),
        "GFLOP a sample": table.gflop_per_sample.map("{:g}".format),
        "PFLOP": table.pflop.map("{:g}".format), "Measured": measured,
        "H200 hours, extrapolated": table.h200_hours.map("{:g}".format)})
    return markdown(view.set_index(["Preset", "Training"])) + (
        "\n\n*Matrix products and convolutions, forward and backward, counted by torch. "
        f"Extrapolated to {table.assumed_share[0]:.0%} of an H200's bfloat16 rate, which large "
        "networks may reach; those of `laptop` are too small for it. Five variants and three "
        "seeds are 15 times as much.*")


def record(preset: str) -> None:
    """A line of times.csv about the finished study of a preset in `results/local`."""
    grid = choose(preset)
    finished = [read_json(path) for path in (grid.folder / "logs").glob("*.json")]
    copies = [read_json(path)["metadata"]["tevq"] for path in grid.folder.glob("notebooks/*.ipynb")]
    runs = sorted(grid.folder.glob("runs/*/*/config.json"))
    on = json.loads(runs[-1].read_text(encoding="utf-8"))["machine"]
    seen = _means(_usual(_read(grid), grid.settings.data.source), ["variant"]).astype(
        float).groupby(level="variant").mean()
    line = {"preset": preset, "device": on["device"], "device_name": on["device_name"],
            "cores": on["cores"], "minutes": round((max(r["finished"] for r in finished) - min(
                r["finished"] - r["seconds"] for r in finished)) / 60, 1),
            "memory_gb": round(max(c["memory_mb"] for c in copies) / 1000, 1),
            "disk_mb": round(sum(f.stat().st_size for f in grid.folder.rglob("*")) / 1e6),
            "busy": round(os.getloadavg()[2], 1), "commit": on["commit"],
            **{f"{name}, {v}": round(seen.loc[v, name], 3) for name in SEEN for v in seen.index}}
    old = _times()
    old = old[(old.preset != preset) | (old.device != on["device"])]
    pd.concat([old, pd.DataFrame([line])]).to_csv(TIMES, index=False, lineterminator="\n")


def _times() -> pd.DataFrame:
    return pd.read_csv(TIMES) if TIMES.exists() else pd.DataFrame(columns=["preset", "device"])


def guide(grid: Grid) -> str:
    """A line a command: time, memory, disk, and the numbers that one should see."""
    told, none = _times().set_index(["preset", "device"]), "not measured yet"
    study = f"--preset {grid.preset} --variants sc,te --seeds"
    seen = overview(_read(grid)).loc[["sc", "te"], SEEN]
    anew, rows = {device: _anew(grid, device) for device in ("cpu", "cuda")}, []
    for preset, words in (("smoke", ""), (grid.preset, f"{study} 0"), (grid.preset, f"{study} 7"),
                          ("gpu", "--preset gpu"), ("paper", "--preset paper")):
        here = {d: told.loc[preset, d] for d in ("cpu", "cuda") if (preset, d) in told.index}
        times = {d: f"{line.minutes:g} min" for d, line in here.items()}
        if words.startswith(study):
            times = {"cpu": _rendered(grid)} if words.endswith(" 0") else anew
        first = next(iter(here.values()), None)
        numbers = {v: [f"{n} {seen.loc[v, n]}" for n in SEEN] for v in seen.index} \
            if preset == grid.preset else {} if first is None else {
                v: [f"{n} {first[f'{n}, {v}']:g}" for n in SEEN] for v in ("sc", "te")}
        rows.append({"Command": f"`./run_all.sh {words}`".replace(" `", "`"),
                     "Two cores": times.get("cpu", none), "A GPU": times.get("cuda", none),
                     "Memory of a notebook": none if first is None else f"{first.memory_gb:g} GB",
                     "Disk": none if first is None else f"{first.disk_mb:g} MB",
                     "You should see": "; ".join(f"`{v}`: {', '.join(part)}" for v, part in
                                                 numbers.items()) or none})
    notes = [f"`{preset}`: {line.cores:g} cores ({line.device_name}), mean load at the end "
             f"{line.busy:g} (above the number of cores, other work shared them). "
             for (preset, _), line in told.iterrows()]
    return markdown(pd.DataFrame(rows).set_index("Command")) + (
        f"\n\n*{''.join(notes)}Seed 0 of `laptop` comes trained; the line below trains anew: means "
        "of the committed trainings and evaluations, one after the other. Text→image is digit "
        "accuracy on held-out combinations, sampled, mean of Quad1–4.*")


def _rendered(grid: Grid) -> str:
    """Time of all notebooks of sc and te, seed 0, over finished runs: from the published copies."""
    books = [node.notebook for node in pipeline.select(pipeline.build(choose(
        grid.preset, "sc,te", "0", results=str(ROOT / "results"))), "")]
    seconds = {book: [read_json(path)["metadata"]["tevq"]["seconds"] for path in
                      (ROOT / "results" / grid.preset / "notebooks").glob(f"{book}*.ipynb")]
               for book in books}
    absent = [book[:2] for book, found in seconds.items() if not found]  # not published
    return in_words(sum(sum(seconds[book]) / len(seconds[book]) for book in books
                        if seconds[book])) + f", without {', '.join(absent)}" * bool(absent)


def _anew(grid: Grid, device: str) -> str:
    """Time of a seed of sc and te that nobody has trained: twice the mean of each kind of run."""
    total, names = 0.0, {}
    for kind in ("stage1", "quantizer", "stage2", "evaluation"):
        runs = [Run(path.parent, {}) for path in sorted(
            (ROOT / "results" / grid.preset / "runs" / kind).glob("*/summary.json"))]
        told = [run for run in runs if run.made_on.get("device") == device]
        if not told:
            return "not measured yet"
        total += 2 * sum(run.summary()["seconds"] for run in told) / len(told)
        names |= dict.fromkeys(run.made_on["device_name"] for run in told)
    return f"{in_words(total)} ({', '.join(names)})"


def sizes(grid: Grid) -> str:
    """What the presets differ in, a column a preset."""
    found = {}
    for name, preset in presets.PRESETS.items():
        s = preset()
        images, sequences = views.samples(s)
        found[f"`{name}`"] = {
            "Items": s.data.source, "Training scenes": f"{s.data.train:,}",
            "Stage 1: images seen": f"{images:,}", "Stage 2: sequences seen": f"{sequences:,}",
            "Codebook": f"{s.stage1.codes} codes, {s.stage1.codebook_start} start",
            "Perceptual loss": s.stage1.perceptual,
            "Adversarial loss": f"from step {s.stage1.disc_start:,}"
            if s.stage1.disc_start < s.stage1.steps else "not reached",
            "Optimizer of Stage 2": s.stage2.optimizer}
    return markdown(pd.DataFrame(found))


def official(grid: Grid) -> str:
    """What still differs between the official code, the paper and preset `paper`."""
    s = presets.load("paper", "te")
    words, first, second = vocabulary(class_names(s.data.source)), s.stage1, s.stage2
    millions = sum(p.numel() for p in transformer.build(s).parameters()) / 1e6
    rows = [
        ("Codes, K", "128", "at least 252 (Table 3)", first.codes),
        ("Scenes of Stage 1", "a set of its own, of unknown size", "300,000",
         f"{s.data.train:,}, those of Stage 2"),
        ("Reconstruction loss", "L1", "L2", "L1"),
        ("Dropout within LPIPS", "on, by oversight", "–", "off"),
        ("Held-out combinations", "unknown", "one is printed", "of ten classes, nine by choice"),
        ("Captions", "files, by unknown templates", "one example",
         f"{len(TEMPLATES)} templates, {second.captions} in every epoch"),
        ("Digits in captions", "numerals", "words", s.data.words),
        ("Vocabulary", "78 BPE tokens; every word is one", "–", f"{len(words)} words"),
        ("Tokens of a caption, at most", 50, "–", LENGTH),
        ("Parameters of the generator", "10.66 M; 10.73 M at K = 256", "–", f"{millions:.2f} M"),
        ("Ids of PAD while sampling", "can be drawn", "–", "cannot"),
        ("Top k", "tenth of all logits: 25; 38 at K = 256", "–", s.evaluation.top_k),
        ("A batch of Stage 2", "one update in each direction", "–",
         {"both": "one update; directions take turns"}.get(second.directions, second.directions)),
        ("Clipping of gradients", "on each GPU, before their mean", "–",
         f"at {second.clip:g}, on one GPU"),
        ("Classifier", "ResNet-18; pixels in [0, 1]", "99.5 %",
         f"{s.classifier.architecture}; pixels in [-1, 1]"),
        ("Its training", "AdamW, rate unknown", "–",
         f"AdamW, one cycle up to {s.classifier.lr:g}, {s.classifier.steps:,} steps"),
        ("Scored scenes", "half of the validation folder, while training", "3,000 for test",
         f"{s.data.test:,} for test, after training"),
        ("Precision", "float32", "–", f"{s.precision}: bfloat16 where there is any"),
    ]
    table = pd.DataFrame(rows, columns=["", "Official code", "Paper", "Preset `paper`"])
    return markdown(table.set_index(""))


def files(grid: Grid) -> str:
    """A line a module: the first sentence of its docstring."""
    package, lines = ROOT / "tevq", []
    for path in sorted(package.rglob("*.py"), key=lambda path: (path.parent, path)):
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")
        if path.name == "__init__.py":
            lines.append(f"\n**{path.parent.relative_to(ROOT).as_posix()}**: {first[0]}\n")
        else:
            lines.append(f"* `{path.stem}`: {' '.join(first[0].split())}")
    return "\n".join(lines).strip()


def speed(grid: Grid) -> str:
    """The last benchmark of every processor: ours against each peer, and the share of the limit."""
    return "\n\n".join(_speed(path.parent) for path in sorted(
        (ROOT / "results" / "benchmarks").glob("*/summary.csv")))


def pace(grid: Grid) -> str:
    """One sentence for the README: a step of each stage and sampling, on every processor."""
    told = []
    for path in sorted((ROOT / "results" / "benchmarks").glob("*/summary.csv")):
        table = pd.read_csv(path).dropna(subset="ratio").set_index("work")
        ratios = [f"{words} {part.ratio.iloc[0]:.2f} times" for words, (work, peer) in PACE.items()
                  if len(part := table[table.contender.str.startswith(peer)].filter([work], axis=0))]
        on = json.loads((path.parent / "machine.json").read_text(encoding="utf-8"))
        told.append(f"{on['device_name']}, {on['cores']} cores: {', '.join(ratios)}")
    return (f"As fast as the packages that people use: {'; '.join(told)}. "
            "[All of it](results/benchmarks/README.md).")


def _speed(folder: Path) -> str:
    """Table of a processor; what a job or a file of later notebooks would say is left out."""
    table = pd.read_csv(folder / "summary.csv")
    on = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    own = table[table.contender == OURS].set_index("work").share_of_limit
    rows = [_line(row, own[row.work]) for row in table.itertuples()
            if row.contender != OURS or row.target > 0]
    rows += [(row.work, row.against, _ranged(row.value, row.low, row.high),
              f"at most {row.target:g}", "yes" if row.met else "no", "–, –")
             for row in timing.bounds(folder).itertuples()]
    view = pd.DataFrame(rows, columns=[
        "Work", "Against", "Measured: ours / theirs (range)", "Target", "Holds",
        "Of the limit: ours, theirs"])
    held, absent = (view.Holds.eq(word).sum() for word in ("yes", "not run"))
    turns = pd.read_csv(folder / "turns.csv").groupby(["work", "contender"]).turn.nunique()
    times = "–".join(map(str, sorted({turns.min(), turns.max()})))
    peers = ", ".join(f"{name} {version}" for name, version in on["peers"].items())
    return (f"**{on['device_name']}**: {held} of {view.Holds.ne('–').sum() - absent} targets hold"
            + f"; not run: {absent}" * bool(absent) + "."
            f"\n\n{markdown(view.set_index(['Work', 'Against']))}\n\n"
            f"*{on['cores']} cores ({on['device_name']}), {on['precision']}, torch "
            f"{on['versions']['torch']}, commit {on['commit'][:7]}; medians of {times} turns; "
            f"{peers}.*")


def _line(row, own: float) -> tuple[str, ...]:
    """A contender as a row of its processor's table; `own`: our share of the limit in this job."""
    against, target = row.contender, f"{row.target:g}" if row.target > 0 else "–"
    measured = _ranged(row.ratio, row.ratio_low, row.ratio_high)
    if row.contender == OURS:
        against, measured, target = {
            "rate": ("–", f"{row.rate:,.0f} {row.unit} a second", f"{row.target:,.0f}"),
            "share_of_limit": ("the limit", f"{own:.0%}", f"{row.target:.0%}")}[row.measure]
    holds = "yes" if str(row.met) == "True" else "no"
    if pd.isna(row.rate):
        measured, holds = f"not run: {row.missing}", "not run"
    limits = [own] if row.contender == OURS else [own, row.share_of_limit]
    return row.work, against, measured, target, "–" if target == "–" else holds, ", ".join(
        f"{x:.0%}" if x == x else "–" for x in limits)


def _ranged(value: float, low: float, high: float) -> str:
    return f"{value:.2f}" + f" ({low:.2f}–{high:.2f})" * bool(low < high)


def tried(grid: Grid) -> str:
    """What was tried to be faster, and what it gave; work and profile stand in its first row."""
    rows = pd.read_csv(ROOT / "results" / "benchmarks" / "tried.csv", keep_default_na=False)
    rows.work = rows.work.mask(rows.work.duplicated(), "")
    return markdown(rows.set_index("work"))


def cells(grid: Grid) -> str:
    """Minutes of finished cells, a row a processor and way: only cells with all parts on one."""
    minutes = _cells(ROOT / "results" / grid.preset / "runs")
    if minutes.empty:
        return "No cell has been finished yet."
    rows, ways = [], ["processor", "precision", "way", "stride"]
    for (name, precision, way, stride), part in minutes.groupby(ways):
        asked = "Intel" in name and precision == "bfloat16" and way == ALONE and stride == 4
        means = part[["stage1", "stage2", "evaluation"]].mean()
        rows.append((name, precision, way, stride, len(part), *means.map("{:.0f}".format),
                     f"{means.sum():.0f}", f"at most {CELL}" if asked else "–",
                     ("yes" if means.sum() <= CELL else "no") if asked else "–"))
    view = pd.DataFrame(rows, columns=[
        "Processor", "Precision", "How", "Stride", "Cells", "Stage 1", "Stage 2", "Evaluation",
        "Whole cell", "Target", "Holds"]).sort_values("Stride", kind="stable")
    told = "" if view.Target.ne("–").any() else (
        f" Not measured yet: a cell alone on two cores with AMX, target at most {CELL} minutes.")
    return markdown(view.set_index(["Processor", "Precision", "How"])) + (
        f"\n\n*Minutes: means over finished cells of `{grid.preset}` whose parts all ran on one "
        f"type of processor, from the records of the runs.{told}*")


def _cells(runs: Path) -> pd.DataFrame:
    """A row a finished cell: processor, precision, way, stride, and minutes of its three parts."""
    found: dict[str, dict[str, Run]] = {"stage1": {}, "stage2": {}, "evaluation": {}}
    rows = []
    for kind, known in found.items():
        for path in sorted(runs.glob(f"{kind}/*/summary.json")):
            run = Run(path.parent, {})
            known[_cell_of(run, kind)] = run
    for key, run in found["evaluation"].items():
        parts = {"stage1": found["stage1"].get(_cell_of(run, "stage1")),
                 "stage2": found["stage2"].get(key), "evaluation": run}
        if len({part and part.made_on.get("device_name") for part in parts.values()}) > 1:
            continue
        on, threads = parts["stage2"].made_on, max(p.made_on["threads"] for p in parts.values())
        way = SHARED if on["device"] == "cuda" else ALONE if threads > 1 else BESIDE
        rows.append({"processor": on["device_name"], "precision": on["precision"], "way": way,
                     "stride": run.record["settings"]["stage1"]["stride"]}
                    | {kind: part.summary()["seconds"] / 60 for kind, part in parts.items()})
    return pd.DataFrame(rows)


def _cell_of(run: Run, kind: str) -> str:
    """What the parts of a cell have in common: items, variant, seed, Stage 1; else Stage 2, too."""
    tree = run.record["settings"]
    groups = ("variant", "seed", "stage1", *("stage2",) * (kind != "stage1"))
    return json.dumps([tree["data"]["source"], *(tree[name] for name in groups)], sort_keys=True)


def _read(grid: Grid) -> dict[str, pd.DataFrame]:
    return {name: tables.read(grid, name) for name in tables.NAMES}


def _three(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _measured(grid: Grid, preset: str, kind: str) -> str:
    """Mean minutes of the committed trainings of a preset, one text per kind of machine."""
    minutes: dict[tuple, list[float]] = {}
    for cell in grid.cells if preset == grid.preset else ():
        run = open_run(cell, kind, grid.results)
        if (summary := run.summary()) and (on := run.made_on):
            key = on["device_name"], on["precision"], on["threads"]
            minutes.setdefault(key, []).append(summary["seconds"] / 60)
    return "; ".join(
        f"{sum(found) / len(found):.0f} min ({len(found)} run{'s' * (len(found) > 1)}, {name}, "
        f"{precision}, {threads} thread{'s' * (threads > 1)})"
        for (name, precision, threads), found in minutes.items()) or "–"


Part = Callable[[Grid], str]
PAGES: dict[str, dict[str, Part]] = {
    "README.md": {"short": in_short, "pace": pace},
    "tevq/README.md": {"files": files, "presets": sizes, "official": official, "guide": guide,
                       "scaling": scaling},
    "results/laptop/README.md": {"results": results},
    "results/benchmarks/README.md": {"speed": speed, "cells": cells, "tried": tried},
    "results/reliability.md": {"promises": promises},
}


def updated(page: str, old: str, grid: Grid) -> str:
    """The text of a page with its generated parts replaced. Raises SettingsError without marks."""
    for part, write in PAGES[page].items():
        begin, end = BEGIN.format(part), END.format(part)
        start, stop = old.find(begin), old.find(end)
        if start < 0 or stop < start:
            raise SettingsError(f"{page} lacks the lines {begin} and {end}")
        old = f"{old[: start + len(begin)]}\n\n{write(grid)}\n\n{old[stop:]}"
    return old


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        record(sys.argv[2])
    for page in PAGES:
        path = ROOT / page
        text_now = updated(page, path.read_text(encoding="utf-8"), published_grid())
        write_atomically(path, text_now.encode())
