"""Writes the generated parts of the README from the committed tables: `python -m tevq.report.pages`.

Nothing in those parts of the README is typed; a test compares them with the tables.
"""

from __future__ import annotations

import json

import pandas as pd

from tevq.bench import cost
from tevq.bench import timing as bench
from tevq.config import SettingsError
from tevq.grid import Grid, choose
from tevq.report import claims, tables, views
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.runs.storage import write_atomically

PRESET = "laptop"
NAMES = ("table1", "table2", "table3", "equivariance", "stride")
README = devices.ROOT / "README.md"
RELIABILITY = devices.ROOT / "results" / "reliability.csv"
TABLE2 = "Table 2: text→image digit accuracy in Quad1, trained on all scenes and on a third"
STRIDES = "At another stride: means over Quad1–4, held-out combinations"
PICTURES = {
    "results/laptop/figures/05_table1.png": "Table 1 as a figure, beside the paper's numbers",
    "results/laptop/figures/05_text_to_image_greedy.png": "Images painted from held-out captions",
}
MARKS = {part: (f"<!-- {part}: made by `python -m tevq.report.pages`, do not edit -->\n",
                f"<!-- end of {part} -->") for part in ("results", "promises", "scaling", "speed")}


def published_grid(preset: str = PRESET) -> Grid:
    """The study whose tables are committed: the variants and seeds that Table 1 has."""
    table = tables.read(choose(preset, results=str(devices.ROOT / "results")), "table1")
    variants, seeds = (list(dict.fromkeys(table[c])) for c in ("variant", "seed"))
    return choose(preset, variants, seeds, results=str(devices.ROOT / "results"))


def block(grid: Grid) -> str:
    """Markdown of the main results of a study: in short, the claims, why, and every table."""
    built = {name: tables.read(grid, name) for name in NAMES}
    every = claims.all_claims(built)
    parts = [f"*{views.caption(grid, built['table1'])}.*",
             "Digit accuracies on combinations never seen in training, means of Quad1–4:",
             markdown(views.overview(built)),
             *(f"![{title}]({path})" for path, title in PICTURES.items()),
             "**Which claims of the paper hold here?** Differences; "
             "[06](results/laptop/notebooks/06_discussion.ipynb) explains the verdicts.",
             markdown(claims.verdicts(every).set_index("claim")),
             primary(grid, built), *why(grid)]
    parts += [f"<details>\n<summary>{title}</summary>\n\n{markdown(view)}\n\n</details>"
              for title, view in details(built).items()]
    return "\n\n".join(parts) + "\n"


def primary(grid: Grid, built: dict[str, pd.DataFrame]) -> str:
    """The one comparison that was chosen before looking: both intervals, and its control."""
    claim, seen = (claims.primary(built["table1"], split=split) for split in ("test", "test_seen"))
    if claim.estimate is None:
        return "The primary comparison, text→image of te − sc, has no runs yet."
    control = "" if seen.estimate is None else (
        f" On combinations that training shows it is {seen.estimate:+.3f} "
        f"{claims.text(seen.interval)}: as far as the two agree, it is a difference in painting "
        "digits, not in carrying them to new places.")
    return ("The primary comparison, chosen before looking, is the first row: "
            f"{claim.estimate:+.3f} over {len(claim.values)} seeds. Student's interval over seeds "
            f"{claims.text(claim.interval)} decides; the hierarchical bootstrap over seeds and "
            f"scenes {claims.text(claims.bootstrap(grid))} resamples few seeds and is too narrow."
            f"{control}")


def why(grid: Grid) -> list[str]:
    """Is te more equivariant, or only coarser? sc with its codes merged to te's number answers."""
    equal = claims.at_equal_size(tables.vocabularies(grid))
    if equal.empty:
        return []
    heads = {"baseline": "sc", "merged": "sc, merged", "ours": "te"}
    means = equal.groupby("measure", sort=False)[list(heads)].mean().rename(columns=heads)
    means["of the gain, beyond size"] = (means["te"] - means["sc, merged"]) / (means.te - means.sc)
    means = means.map("{:.3f}".format).assign(**{means.columns[-1]: means.iloc[:, -1].map(
        "{:.0%}".format)})
    return ["**Better codes, or only fewer?** A coarser quantizer agrees with itself more often. "
            "Kappa on foreground cells of sc, of sc with neighbouring codes merged after training "
            "to as many as te has (read off between merges to 128, 64, 32, ... codes), and of te. "
            "A share of a gain near 0 means little:", markdown(means)]


def details(built: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every table by its title; those of which nothing has run are left out."""
    table1 = built["table1"]
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
        STRIDES: views.strides(built),
    }
    if not (tables.select(built["table2"], size="third").state == "done").any():
        found.pop(TABLE2)
    if not (built["stride"].state == "done").any():
        found.pop(STRIDES)
    return found


def markdown(view: pd.DataFrame) -> str:
    """A wide table as GitHub Markdown."""
    names = [name or "" for name in view.index.names]
    lines = [[*names, *map(str, view.columns)], ["---"] * (len(names) + view.shape[1])]
    for index, row in view.iterrows():
        keys = index if isinstance(index, tuple) else (index,)
        lines.append([*map(str, keys), *map(str, row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def promises() -> str:
    """Markdown of what the last `./run_all.sh --torture` found."""
    table = pd.read_csv(RELIABILITY, keep_default_na=False)
    lines = ["| Promise | Tests passed | Measured |", "| --- | --- | --- |"]
    for row in table.itertuples():
        total = row.passed + row.failed + row.skipped
        lines.append(f"| {row.promise} | {row.passed} of {total} | {row.measured or '–'} |")
    one = table.iloc[0]
    minutes = table["seconds"].sum() / 60
    return ("\n".join(lines) + f"\n\n*{minutes:.0f} minutes of tests on {one.cores} cores "
            f"({one.device}), torch {one.torch}, {one.date}, commit {one.commit[:7]}.*\n")


def scaling(grid: Grid) -> str:
    """Markdown of what trainings cost: counted, measured in committed runs, extrapolated."""
    lines = ["| Preset | Training | Samples | GFLOP a sample | PFLOP | Measured | "
             "H200 hours, extrapolated |", "| --- | --- | --- | --- | --- | --- | --- |"]
    table = pd.read_csv(cost.RESULT)
    for row in table.itertuples():
        lines.append(f"| {row.preset} | {row.stage} | {row.samples:,} | {row.gflop_per_sample:g} | "
                     f"{row.pflop:g} | {_measured(grid, row.preset, row.stage)} | "
                     f"{row.h200_hours:g} |")
    return "\n".join(lines) + (
        f"\n\n*Matrix products and convolutions, forward and backward, counted by torch; "
        f"extrapolated to {table.assumed_share[0]:.0%} of {cost.H200_BFLOAT16 / 1e12:.0f} TFLOP/s, "
        "which large networks may reach; those of `laptop` are too small for it. Five variants and "
        "three seeds are 15 times as much.*\n")


def speed() -> str:
    """Markdown of the last benchmark: ours against each peer, and the share of the limit."""
    folder = devices.ROOT / "results" / "benchmarks"
    table = pd.read_csv(folder / "summary.csv")
    on = json.loads((folder / "machine.json").read_text())
    lines = ["| Work | Against | Ours / theirs (range) | Bar | Of the limit: ours, theirs |",
             "| --- | --- | --- | --- | --- |"]
    for row in table[table.contender != bench.OURS].itertuples():
        ours = table[(table.work == row.work) & (table.contender == bench.OURS)].iloc[0]
        ratio = (f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})"
                 if row.ratio == row.ratio else f"not run: {row.missing}")
        shares = [f"{share:.0%}" if share == share else "–"
                  for share in (ours.share_of_limit, row.share_of_limit)]
        bar = f"{row.bar:g}" if row.bar == row.bar and row.bar > 0 else "–"
        lines.append(f"| {row.work} | {row.contender} | {ratio} | {bar} | {', '.join(shares)} |")
    peers = ", ".join(f"{name} {version}" for name, version in on["peers"].items())
    return "\n".join(lines) + (
        f"\n\n*{on['cores']} cores ({on['device_name']}), {on['precision']}, torch "
        f"{on['versions']['torch']}, commit {on['commit'][:7]}; medians of {on['repeats']} turns; "
        f"{peers}.*\n")


def _measured(grid: Grid, preset: str, kind: str) -> str:
    """Mean minutes of the committed trainings of a preset, one text per kind of machine."""
    if preset != grid.preset:
        return "–"
    minutes: dict[tuple, list[float]] = {}
    for cell in grid.cells:
        run = open_run(cell, kind, grid.results)
        if (summary := run.summary()) and (on := run.made_on):
            key = on["device_name"], on["precision"], on["threads"]
            minutes.setdefault(key, []).append(summary["seconds"] / 60)
    return "; ".join(
        f"{sum(found) / len(found):.0f} min ({len(found)} run{'s' * (len(found) > 1)}, {name}, "
        f"{precision}, {threads} thread{'s' * (threads > 1)})"
        for (name, precision, threads), found in minutes.items()) or "–"


def updated(text: str, grid: Grid) -> str:
    """README text with its generated parts replaced. Raises SettingsError without marks."""
    contents = {"results": block(grid), "promises": promises(), "scaling": scaling(grid),
                "speed": speed()}
    for part, content in contents.items():
        begin, end = MARKS[part]
        start, stop = text.find(begin), text.find(end)
        if start < 0 or stop < start:
            raise SettingsError(f"{README} lacks the lines {begin.strip()} and {end}")
        text = f"{text[: start + len(begin)]}\n{content}\n{text[stop:]}"
    return text


if __name__ == "__main__":
    write_atomically(README, updated(README.read_text(), published_grid()).encode())
