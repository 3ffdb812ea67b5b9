"""What the package's page says about itself: files, presets, what a command takes, reliability."""

import ast
import json
import os

import pandas as pd

from pages import study
from pages.text import markdown
from tevq import pipeline, presets
from tevq.data.captions import LENGTH, TEMPLATES, vocabulary
from tevq.data.source import class_names
from tevq.grid import Grid, choose
from tevq.models import transformer
from tevq.report import views, why
from tevq.runs.budget import in_words
from tevq.runs.devices import ROOT
from tevq.runs.run import open_run
from tevq.runs.storage import read_json

TIMES = ROOT / "results" / "times.csv"
LEAST = 1e-3  # hours; networks of a smaller training are too small to reach such a rate
SEEN = ["text→image", "codes used", "kappa, grid"]  # numbers of the overview, for `commands`


def commands(grid: Grid) -> str:
    """A line a command: time, memory, disk, and the numbers that one should see."""
    told, none = _times().set_index(["preset", "device"]), "not measured yet"
    both = f"--preset {grid.preset} --variants sc,te --seeds"
    built = study.read(grid)
    shipped = {name: table[table.seed == 0] for name, table in built.items()}
    usual, own = (study.overview(x).loc[["sc", "te"], SEEN] for x in (built, shipped))
    anew, rows = {device: _anew(grid, device) for device in ("cpu", "cuda")}, []
    for preset, words in (("smoke", ""), (grid.preset, f"{both} 0"), (grid.preset, f"{both} 7"),
                          ("gpu", "--preset gpu"), ("paper", "--preset paper")):
        here = {d: told.loc[preset, d] for d in ("cpu", "cuda") if (preset, d) in told.index}
        times = {d: f"{line.minutes:g} min" for d, line in here.items()}
        if words.startswith(both):
            times = {"cpu": _rendered(grid)} if words.endswith(" 0") else anew
        first, seen = next(iter(here.values()), None), own if words.endswith(" 0") else usual
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
    total, names, absent = 0.0, {}, []
    cells = [grid.cell(v, seed) for v in ("sc", "te") for seed in (*grid.seeds, *why.SEEDS)]
    for kind in ("stage1", "quantizer", "stage2", "evaluation", "measures"):
        runs = [open_run(cell, kind, grid.results) for cell in cells]
        told = [run for run in runs if run.done and run.made_on.get("device") == device]
        if not told:
            absent.append(kind)
            continue
        total += 2 * sum(run.summary()["seconds"] for run in told) / len(told)
        names |= dict.fromkeys(run.made_on["device_name"] for run in told)
    if set(absent) - {"measures"}:
        return "not measured yet"
    lacks = ", without what notebook 08 measures" * bool(absent)
    return f"{in_words(total)}{lacks} ({', '.join(names)})"


def record(preset: str) -> None:
    """A line of times.csv about the finished study of a preset in `results/local`."""
    grid = choose(preset)
    finished = [read_json(path) for path in (grid.folder / "logs").glob("*.json")]
    copies = [read_json(path)["metadata"]["tevq"] for path in grid.folder.glob("notebooks/*.ipynb")]
    runs = sorted(grid.folder.glob("runs/*/*/config.json"))
    on = json.loads(runs[-1].read_text(encoding="utf-8"))["machine"]
    rows = study.usual(study.read(grid), grid.settings.data.source)
    seen = study.means(rows, ["variant"]).astype(float).groupby(level="variant").mean()
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


def scaling(grid: Grid) -> str:
    """What trainings cost: counted, measured in committed runs, extrapolated."""
    table = pd.read_csv(ROOT / "results" / "cost.csv")
    measured = [_measured(grid, row.preset, row.stage) for row in table.itertuples()]
    view = pd.DataFrame({
        "Preset": table.preset, "Training": table.stage,
        "Samples": table.samples.map("{:,}".format),
        "GFLOP a sample": table.gflop_per_sample.map("{:g}".format),
        "PFLOP": table.pflop.map("{:g}".format), "Measured": measured,
        "H200 hours, extrapolated": table.h200_hours.map(
            lambda hours: f"{hours:g}" if hours > LEAST else "–")})
    return markdown(view.set_index(["Preset", "Training"])) + (
        "\n\n*Matrix products and convolutions, forward and backward, counted by torch. "
        f"Extrapolated to {table.assumed_share[0]:.0%} of an H200's bfloat16 rate, which large "
        "networks may reach; those of `laptop` are too small for it. Five variants and three "
        "seeds are 15 times as much.*")


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


def promises(grid: Grid) -> str:
    """What the last `./run_all.sh --torture` found."""
    table = pd.read_csv(ROOT / "results" / "reliability.csv", keep_default_na=False)
    total, one = table.passed + table.failed + table.skipped, table.iloc[0]
    view = pd.DataFrame({"Promise": table.promise, "Measured": table.measured.replace("", "–"),
                         "Tests passed": table.passed.astype(str) + " of " + total.astype(str)})
    return markdown(view.set_index(["Promise", "Tests passed"])) + (
        f"\n\n*{table.seconds.sum() / 60:.0f} minutes of tests on {one.cores} cores "
        f"({one.device}), torch {one.torch}, {one.date}, commit {one.commit[:7]}.*")
