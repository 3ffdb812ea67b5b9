"""A GPU that is lent for minutes: what to carry there, and taking in what came back.

`./run_all.sh --preset gpu --variants sc,te --seeds 0,1 --lease FOLDER` does three things. It takes
in what lies in FOLDER/back, packs what is still to do into FOLDER/there, and says the command for
the other machine: `bash FOLDER/there/run.sh 540`. That machine needs torch, torchvision,
scikit-learn, safetensors and filelock, but no notebooks, git or network. It trains and evaluates
all cells side by side, stops in time, and leaves an archive in FOLDER/back (or $OUT). While it is
warm, the same command goes on; after that, the first one does.
"""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tevq import config
from tevq.config import ROOT, Settings, SettingsError, UserError
from tevq.grid import Grid
from tevq.models.classifier import second_judge
from tevq.runs import devices
from tevq.runs.run import NETWORKS, Run, open_run, origin, upstream
from tevq.runs.storage import read_json, write_atomically, write_json

MIB = 2**20
MOST_THERE = 64 * MIB  # what may be carried there
PIECE, PIECES = 15 * MIB, 7  # of the archive that comes back
SETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": ""}  # folders of torchvision's files
SCRIPT = """#!/usr/bin/env bash
# Trains what is packed beside it: bash run.sh [SECONDS] [AT ONCE]. The archive goes to $OUT.
set -euo pipefail
here="$(cd -- "$(dirname -- "$0")" && pwd)"
export OUT="${OUT:-$here/../back}" TEVQ_COMMIT=@commit@
work="${TEVQ_LEASE_WORK:-${TMPDIR:-/tmp}/tevq-lease-@name@}"  # stays between calls
export TEVQ_DATA="$work/data" TEVQ_CACHE="$work/cache" TEVQ_RESULTS="$work/results"
mkdir -p "$work" "$OUT"
tar -xzf "$here/pack.tar.gz" -C "$work" --skip-old-files
export PYTHONPATH="$work"
(nvidia-cuda-mps-control -d || true) >/dev/null 2>&1  # lets many trainings share a card
exec "${TEVQ_PYTHON:-python3}" -m tevq.leased "$work/cells.json" "${1:-540}" "${2:-0}"
"""


class LeaseError(UserError):
    """Nothing was taken in or packed; what was there is intact."""


def cells(grid: Grid) -> list[Settings]:
    """Settings of all generators of a grid, then of the quantizers that have none (Table 3)."""
    from tevq import pipeline  # which the bare machine cannot import

    nodes = pipeline.build(grid)
    painted = [node.settings[0] for node in nodes if node.notebook == "04_stage2"]
    return painted + [node.settings[0] for node in nodes if node.parameters.get("source")]


def kinds(settings: Settings, grid: Grid) -> tuple[str, ...]:
    """The kinds of runs of a cell; on another source than the grid's there is no generator."""
    alone = settings.data.source != grid.settings.data.source
    return ("stage1", "quantizer", *(() if alone else ("stage2", "evaluation", "measures")))


def prepare(grid: Grid, folder: Path) -> str:
    """Takes in FOLDER/back, packs FOLDER/there; returns what to say.

    Raises LeaseError for an archive that is damaged or from another device, and for a pack that is
    too large; SettingsError for a source that cannot be carried.
    """
    folder = config.expand(folder)
    said = [take_in(grid, folder)] if (folder / "back" / "archive.json").exists() else []
    todo = [(s, kinds(s, grid)) for s in cells(grid)]
    todo = [(s, k) for s, k in todo if not all(open_run(s, one, grid.results).done for one in k)]
    if not todo:
        return "\n".join([*said, "all runs are there; ./run_all.sh without --lease makes the "
                          "tables and pages from them"])
    try:
        (folder / "there").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeaseError(f"--lease {folder}: {error.strerror}; use another folder") from None
    size = pack(grid, folder / "there", todo)
    return "\n".join([*said, f"{len(todo)} cells to do, {size / MIB:.1f} MiB to carry; on the GPU "
                      f"machine: bash {folder / 'there' / 'run.sh'} 540; then this command again"])


def pack(grid: Grid, there: Path, todo: list[tuple[Settings, tuple[str, ...]]]) -> int:
    """Writes pack.tar.gz and run.sh; returns the bytes."""
    lines = [{"settings": s.as_dict(neutral=True), "kinds": k} for s, k in todo]
    listed, entry, content = json.dumps(lines).encode(), tarfile.TarInfo("cells.json"), io.BytesIO()
    entry.size = len(listed)
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=6) as tar:
        tar.addfile(entry, io.BytesIO(listed))
        for path in sorted((ROOT / "tevq").rglob("*.py")):
            tar.add(path, path.relative_to(ROOT))
        for source in {s.data.source for s, _ in todo}:
            _add_source(tar, source)
        for run in runs_of(todo, grid.results, carried=True):
            place = Path("results", *run.folder.parts[-4:])
            files = [*records_of(run.folder), *state_of(run.folder)]
            for path in files:
                tar.add(path, place / path.relative_to(run.folder))
            if run.has_weights and run.weights_file not in files:  # those that git keeps
                tar.add(run.weights_file, place / f"state/weights.{run.checksum}.safetensors")
    size = content.getbuffer().nbytes
    if size > MOST_THERE:
        raise LeaseError(f"{size / MIB:.0f} MiB to carry are more than {MOST_THERE // MIB}; choose "
                         "fewer seeds or variants")
    name = hashlib.sha256(content.getvalue()).hexdigest()[:12]
    write_atomically(there / "pack.tar.gz", content.getvalue())
    write_atomically(there / "run.sh", SCRIPT.replace("@commit@", devices.commit())
                     .replace("@name@", name).encode())
    return size


def _add_source(tar: tarfile.TarFile, name: str) -> None:
    from tevq.data.source import data_root, load_source

    if name not in SETS:
        raise SettingsError(f"--lease carries {', '.join(SETS)}, not data.source = {name}")
    if SETS[name]:
        load_source(name, "train")  # downloads, or says what is missing
        for path in sorted((data_root() / SETS[name] / "raw").glob("*ubyte")):
            tar.add(path, Path("data", SETS[name], "raw", path.name))


def runs_of(todo: Iterable[tuple[Settings, tuple[str, ...]]], results: str | Path | None,
            carried: bool = False) -> list[Run]:
    """All runs of the cells and what they start from, each once: judges, the `sc` of a merged one.

    carried: without those that rest on weights that are not at hand, and are trained there.
    """
    found = {}
    for settings, wanted in todo:
        parent = origin(settings)
        for one, kind in [(settings, "classifier"), *[(parent, "stage1")] * bool(parent),
                          *((settings, kind) for kind in wanted),
                          *[(second_judge(settings), "classifier")] * ("measures" in wanted)]:
            run = open_run(one, kind, results)
            lost = any(x.done and not x.has_weights for x in (run, *upstream(one, kind, results))
                       if x.folder.parent.name in NETWORKS)
            if not (carried and lost):
                found[run.name] = run
    return list(found.values())


def records_of(folder: Path) -> list[Path]:
    """All files of a run but its state and its lock."""
    return [path for path in sorted(folder.glob("[!.]*")) if path.is_file()]


def state_of(folder: Path) -> list[Path]:
    """The weights and the newest checkpoint of a run."""
    return [*folder.glob("state/weights.*"), *sorted(folder.glob("state/step-*"))[-1:]]


def take_in(grid: Grid, folder: Path) -> str:
    """Puts the runs of FOLDER/back into the results; returns one line. Finished runs stay.

    Raises LeaseError when pieces are missing or damaged, and when device or torch are others than
    those that this folder's runs were begun with: they would not compare.
    """
    back, note = folder / "back", read_json(folder / "back" / "archive.json")
    blocks = [path.read_bytes() if (path := back / f"archive.{number}").exists() else b""
              for number in range(len(note.get("pieces", ())))]
    damaged = [f"archive.{number}" for number, (block, wanted) in enumerate(
        zip(blocks, note.get("pieces", ()), strict=True))
        if hashlib.sha256(block).hexdigest() != wanted]
    if damaged or not blocks:
        raise LeaseError(f"{back}: {', '.join(damaged) or 'archive.json'} is missing or damaged; "
                         "copy it again, or delete the folder and run on the machine again")
    here = {"device": note["device_name"], "torch": note["versions"]["torch"]}
    known = read_json(folder / "lease.json")
    if (on := known.get("on", here)) != here:
        raise LeaseError(f"{back} was made on {here['device']} with torch {here['torch']}, the "
                         f"runs before on {on['device']} with torch {on['torch']}; "
                         "results of both do not compare: use another folder and --results")
    taken = _extract(b"".join(blocks), config.results_root(grid.results))
    pieces = {str(piece["started"]): piece for piece in known.get("pieces", ())}
    pieces[str(note["started"])] = {name: note[name] for name in (
        "started", "seconds", "kwh", "tflops", "done", "runs")}
    every = list(pieces.values())
    write_json(folder / "lease.json", {"on": here, "pieces": every} | spent(grid, every))
    taken_in = folder / f"taken-{int(note['started'])}"
    shutil.rmtree(taken_in, ignore_errors=True)  # the same archive, copied again
    back.rename(taken_in)
    lost = len(note["without_state"])
    return (f"taken in: {taken} runs, {note['done']} of {note['runs']} done"
            + f"; {lost} had no room for their state and start their stage again" * bool(lost))


def spent(grid: Grid, pieces: list[dict[str, Any]]) -> dict[str, float | None]:
    """Device seconds, kWh, PFLOP of the finished trainings, and their share of the measured rate.

    Operations a sample are those of `results/cost.csv`; presets that it lacks have no PFLOP.
    """
    costs = ROOT / "results" / "cost.csv"
    rows = csv.DictReader(costs.open(encoding="utf-8")) if costs.exists() else ()
    per_sample = {row["stage"]: float(row["gflop_per_sample"]) / 1e6 for row in rows
                  if row["preset"] == grid.preset}
    finished = [(run, unit) for s in cells(grid)
                for kind, unit in (("stage1", "images"), ("stage2", "sequences"))
                if (run := open_run(s, kind, grid.results)).done]
    samples = {run.name: (run.folder.parent.name, run.summary()[unit]) for run, unit in finished}
    pflop = sum(per_sample.get(kind, 0.0) * count for kind, count in samples.values())
    could = sum(piece["seconds"] * piece["tflops"] / 1e3 for piece in pieces)
    return {"seconds": sum(piece["seconds"] for piece in pieces), "pflop": pflop or None,
            "kwh": sum(piece["kwh"] or 0 for piece in pieces) or None,
            "share_of_rate": pflop / could if pflop and could else None}


def _extract(content: bytes, root: Path) -> int:
    """Runs newly taken in; not those of which more is here. A run's summary is written last."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
            files = {Path(m.name): tar.extractfile(m).read() for m in tar if m.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LeaseError(f"the archive cannot be read: {error}; run on the machine again") from None
    runs: dict[Path, dict[Path, bytes]] = {}
    for path, data in files.items():
        if path.is_absolute() or ".." in path.parts or path.parts[1:2] != ("runs",):
            raise LeaseError(f"the archive holds {path}, no file of a run; nothing was taken")
        runs.setdefault(Path(*path.parts[:4]), {})[Path(*path.parts[4:])] = data
    taken = 0
    for place, own in runs.items():
        run, summary = Run(root / place, {}), own.get(Path("summary.json"))
        published = config.PUBLISHED / place / "summary.json"
        if root == config.LOCAL and published.is_file() and published.read_bytes() == summary:
            continue  # it is read from there
        saved = max((path.stem for path in own if path.match("state/step-*")), default="")
        with run.lock():
            ours = max((f"step-{step:09d}" for step in run.steps_saved()), default="")
            if run.done or not summary and ours > saved.partition(".")[0]:
                continue
            shutil.rmtree(root / place / "state", ignore_errors=True)
            for path in sorted(own, key=lambda path: path.name == "summary.json"):
                write_atomically(root / place / path, own[path])
        taken += 1
    return taken
