"""All results of the committed study: its tables, claims and verdicts."""

import pandas as pd

from pages.text import markdown, three
from tevq.grid import Grid, choose
from tevq.report import claims, tables, views
from tevq.report.claims import LEARNED, MARGIN, Claim, text
from tevq.report.stats import t_interval
from tevq.report.tables import select
from tevq.runs.devices import ROOT

PRESET = "laptop"
TABLE2 = "Table 2: text→image digit accuracy in Quad1, trained on all scenes and on a third"
STRIDES = "At another stride: means over Quad1–4, held-out combinations"
VERDICTS = {  # they rest on our own uncertainty, the 95 % t-interval over seeds
    "same direction": "our 95 % interval over seeds lies on the claim's side of 0",
    "within the limit": "of a claim with a limit: the whole interval does not exceed it",
    "opposite direction": "the interval lies on the other side of 0",
    "above the limit": "of a claim with a limit: the whole interval exceeds it",
    "no difference": "of accuracies: an equivalence test (two one-sided tests at 5 %) shows that "
                     f"the mean lies within ±{MARGIN}",
    "undecided": "none of these; or one seed; or a generator below "
                 f"{LEARNED} in Quad2–4 even on combinations that training shows (worst seed)",
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


def published_grid(preset: str = PRESET) -> Grid:
    """The study whose tables are committed: the variants and seeds that Table 1 has."""
    table = tables.read(choose(preset, results=str(ROOT / "results")), "table1")
    variants, seeds = (list(dict.fromkeys(table[c])) for c in ("variant", "seed"))
    return choose(preset, variants, seeds, results=str(ROOT / "results"))


def results(grid: Grid) -> str:
    """All results of a study: means, claims with their verdicts, why, and every table."""
    built = read(grid)
    family, curve = claims.family(built["table1"]), gain_over_training(grid) or ()
    every = all_claims(grid)
    parts = [f"*{views.caption(grid, built['table1'])}.*",
             "Digit accuracies on combinations never seen in training, means of Quad1–4:",
             markdown(overview(built)),
             "![Table 1 as a figure, beside the paper's numbers](figures/05_table1.png)",
             "![Images painted from held-out captions](figures/05_text_to_image_greedy.png)",
             "## Which claims hold here?",
             "".join(f"* *{verdict}*: {words}\n" for verdict, words in VERDICTS.items()),
             markdown(claims.verdicts(every).set_index("claim")), primary(grid, built),
             f"te − sc in every cell of Table 1. {floor(family)}",
             markdown(family.set_index(["task", "case"]).map(three))]
    if curve:
        parts += ["**Does the gain last?** Text→image on held-out validation scenes, mean of "
                  "Quad1–4, while both train:", markdown(curve[0].map(three))]
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


def all_claims(grid: Grid) -> list[Claim]:
    """All claims of a study, that about its learning curves too."""
    return [*claims.all_claims(read(grid)), *(gain_over_training(grid) or ())[1:]]


def gain_over_training(grid: Grid) -> tuple[pd.DataFrame, Claim] | None:
    """te - sc of the learning curves on held-out validation scenes: does the gain shrink?

    A row per number of sequences: sc, te, gain, interval. The claim compares log-odds: their mean
    gain over the first half of the training minus that over the second. None without curves of
    both.
    """
    lead = tables.lead(grid).reset_index()
    lead = lead[lead.split == "val"]
    if lead.empty:
        return None
    steps = lead.groupby("sequences")
    rows = steps[["sc", "te", "points"]].mean().rename(columns={"points": "gain"}).assign(
        interval=steps.points.agg(lambda gain: text(t_interval(gain))))
    first = lead.sequences <= lead.sequences.max() / 2
    early, late = (lead[half].groupby("seed")["log-odds"].mean() for half in (first, ~first))
    points = [lead[half].points.mean() for half in (first, ~first)]
    return rows, Claim(
        "the gain of te over sc, in log-odds, shrinks with training (first half − second half)",
        "ours", tuple(early - late), margin=None, detail=" and ".join(
            f"{half.mean():+.3f} {text(t_interval(half))}" for half in (early, late))
        + "; as differences of shares {:+.3f} and {:+.3f}".format(*points))


def overview(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per variant: accuracies (means over Quad1-4, held out), codes, equivariance."""
    return views.plain(means(usual(built, built["table1"].source.iloc[0]), ["variant"]))


def strides(built: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Table 4: sc and te at both strides. Accuracies are means over Quad1-4, held out.

    The networks differ too (a coarser stride has one more level), and so do the shifts of `grid`
    (multiples of the stride): compare the variants of one stride.
    """
    other = built["stride"]
    same = usual(built, other.source.iloc[0]) if len(other) else other
    parts = [same[same.variant.isin(other.variant)], other]
    rows = pd.concat(sorted(parts, key=lambda part: part.stride.min())).astype({"stride": str})
    return views.beside(means(rows, ["stride", "variant"]))


def usual(built: dict[str, pd.DataFrame], source: str) -> pd.DataFrame:
    """Tables 1, 3 and equivariance in one, of one source."""
    return select(pd.concat([built[name] for name in ("table1", "table3", "equivariance")]),
                  source=source)


def means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
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
    means = means.map(three).assign(**{"of the gain, beyond size": share.map("{:.0%}".format)})
    return ["**Better codes, or only fewer?** A coarser quantizer agrees with itself more often. "
            "Kappa on foreground cells of sc, of sc with neighbouring codes merged after training "
            "to as many as te has (read off between merges to 128, 64, 32, ... codes), and of te. "
            "A share of a gain near 0 means little; notebook 06 has the intervals:",
            markdown(means)]


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


def read(grid: Grid) -> dict[str, pd.DataFrame]:
    return {name: tables.read(grid, name) for name in tables.NAMES}
