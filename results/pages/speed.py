"""What notebook 07 and the finished runs say about speed."""

import json
from pathlib import Path

import pandas as pd

from pages.text import markdown
from tevq.bench import timing
from tevq.bench.timing import OURS
from tevq.grid import Grid
from tevq.runs.devices import ROOT
from tevq.runs.run import Run

CELL = 25  # minutes that a cell of `laptop` should take alone on two cores with AMX
ALONE, BESIDE, SHARED = "two threads", "one thread, cells side by side", "several on a card"
PACE = {  # words -> a job and a peer of notebook 07
    "a Stage-1 step of `laptop`": ("Stage-1 step, laptop", "taming, bfloat16, channels_last"),
    "a Stage-2 step of `laptop`": ("Stage-2 step, laptop", "transformers GPT-2"),
    "sampling in `paper`": ("sampling, paper", "transformers GPT-2")}


def targets(grid: Grid) -> str:
    """The last benchmark of every processor: ours against each peer, and the share of the limit."""
    return "\n\n".join(_table(path.parent) for path in sorted(
        (ROOT / "results" / "benchmarks").glob("*/summary.csv")))


def pace(grid: Grid) -> str:
    """One sentence for the README: a step of each stage and sampling, on every processor."""
    told = []
    for path in sorted((ROOT / "results" / "benchmarks").glob("*/summary.csv")):
        table = pd.read_csv(path).dropna(subset="ratio").set_index("work")
        known = {words: table[table.contender.str.startswith(peer)].filter([work], axis=0)
                 for words, (work, peer) in PACE.items()}
        ratios = [f"{words} {part.ratio.iloc[0]:.2f}" for words, part in known.items()
                  if len(part)]
        on = json.loads((path.parent / "machine.json").read_text(encoding="utf-8"))
        told.append(f"{on['device_name']}, {on['cores']} cores, commit {on['commit'][:7]}: "
                    f"{', '.join(ratios)}; {_held(_view(path.parent))}")
    return (f"How many times as fast as the packages that people use. {'. '.join(told)}. "
            "[All of it](results/benchmarks/README.md).")


def _view(folder: Path) -> pd.DataFrame:
    """Table of a processor; what a job or a file of later notebooks would say is left out."""
    table = pd.read_csv(folder / "summary.csv")
    own = table[table.contender == OURS].set_index("work").share_of_limit
    rows = [_line(row, own[row.work]) for row in table.itertuples()
            if row.contender != OURS or row.target > 0]
    rows += [(row.work, row.against, _ranged(row.value, row.low, row.high),
              f"at most {row.target:g}", "yes" if row.met else "no", "–, –")
             for row in timing.bounds(folder).itertuples()]
    return pd.DataFrame(rows, columns=[
        "Work", "Against", "Measured: ours / theirs (range)", "Target", "Holds",
        "Of the limit: ours, theirs"])


def _held(view: pd.DataFrame) -> str:
    held, absent = (view.Holds.eq(word).sum() for word in ("yes", "not run"))
    return (f"{held} of {view.Holds.ne('–').sum() - absent} targets hold"
            + f"; not run: {absent}" * bool(absent))


def _table(folder: Path) -> str:
    """Table of a processor, what it says at a glance, and where it was made."""
    view = _view(folder)
    on = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    turns = pd.read_csv(folder / "turns.csv").groupby(["work", "contender"]).turn.nunique()
    times = "–".join(map(str, sorted({turns.min(), turns.max()})))
    peers = ", ".join(f"{name} {version}" for name, version in on["peers"].items())
    return (f"**{on['device_name']}**: {_held(view)}."
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
