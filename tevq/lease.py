"""A GPU that is lent for minutes: what to carry there, and taking in what came back.

`./run_all.sh --preset gpu --variants sc,te --seeds 0,1 --lease FOLDER` does three things. It takes
in what lies in FOLDER/back, packs what is still to do into FOLDER/there, and says the command for
the other machine: `bash FOLDER/there/run.sh 540`. That machine needs torch, torchvision,
scikit-learn, safetensors and filelock, but no notebooks, git or network. It trains and evaluates
all cells side by side, stops in time, and leaves an archive in FOLDER/back (or $OUT). While it is
warm, the same command goes on; after that, the first one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tevq import config, presets
from tevq.config import ROOT, Settings, SettingsError, UserError
from tevq.grid import Grid
from tevq.runs import budget, devices
from tevq.runs.run import open_run, run_config
from tevq.runs.storage import read_json, write_atomically, write_json

MIB = 2**20
MOST_THERE = 64 * MIB  # what may be carried there
PIECE, PIECES = 15 * MIB, 7  # of the archive that comes back
CLOSING = 30  # seconds of a budget that packing the archive may take
RECORDS, STATES = "records", "states"
SETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": ""}  # folders of torchvision's files
SCRIPT = """#!/usr/bin/env bash
# Trains what is packed beside it: bash run.sh [SECONDS] [AT ONCE]. The archive goes to $OUT.
set -euo pipefail
here="$(cd -- "$(dirname -- "$0")" && pwd)"
export OUT="${OUT:-$here/../back}" TEVQ_COMMIT=@commit@
work="${TEVQ_LEASE_WORK:-/tmp/tevq-lease-@name@}"
export TEVQ_DATA="$work/data" TEVQ_CACHE="$work/cache" TEVQ_RESULTS="$work/results"
mkdir -p "$work" "$OUT"
tar -xzf "$here/pack.tar.gz" -C "$work" --skip-old-files
export PYTHONPATH="$work"
(nvidia-cuda-mps-control -d || true) >/dev/null 2>&1  # lets many trainings share a card
exec "${TEVQ_PYTHON:-python3}" -m tevq.lease "$work/cells.json" "${1:-540}" "${2:-0}"
"""


class LeaseError(UserError):
    """Nothing was taken in or packed; what was there is intact."""


def cells(grid: Grid) -> list[Settings]:
    """Settings of all generators of a grid, then of the quantizers that have none (Table 3)."""
    from tevq import pipeline  # which the bare machine cannot import

    nodes = pipeline.build(grid)
    painted = [node.settings[0] for node in nodes if node.notebook.startswith("04")]
    first = [node.settings[0] for node in nodes if node.notebook.startswith("03")]
    known = {json.dumps(run_config(s, "stage1")) for s in painted}
    return painted + [s for s in first if json.dumps(run_config(s, "stage1")) not in known]


def kinds(settings: Settings, grid: Grid | None) -> tuple[str, ...]:
    """The kinds of runs of a cell; on another source than the grid's there is no generator."""
    alone = grid is not None and settings.data.source != grid.settings.data.source
    return ("stage1", "quantizer") if alone else ("stage1", "quantizer", "stage2", "evaluation")


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
    size = pack(grid, folder / "there", todo)
    return "\n".join([*said, f"{len(todo)} cells to do, {size / MIB:.1f} MiB to carry; on the GPU "
                      f"machine: bash {folder / 'there' / 'run.sh'} 540; then this command again"])


def pack(grid: Grid, there: Path, todo: list[tuple[Settings, tuple[str, ...]]]) -> int:
    """Writes pack.tar.gz and run.sh; returns the bytes."""
    lines = [{"settings": s.as_dict(), "kinds": k} for s, k in todo]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=6) as tar:
        _add(tar, "cells.json", json.dumps(lines).encode())
        for path in sorted((ROOT / "tevq").rglob("*.py")):
            tar.add(path, path.relative_to(ROOT))
        for source in {s.data.source for s, _ in todo}:
            _add_source(tar, source)
        for run in _runs(todo, grid.results):
            for path in _files(run.folder, STATES):
                tar.add(path, Path("results", run.folder.relative_to(run.folder.parents[3]),
                                   path.relative_to(run.folder)))
    size = content.getbuffer().nbytes
    if size > MOST_THERE:
        raise LeaseError(f"{size / MIB:.0f} MiB to carry are more than {MOST_THERE // MIB}; choose "
                         "fewer seeds or variants")
    name = hashlib.sha256(content.getvalue()).hexdigest()[:12]
    write_atomically(there / "pack.tar.gz", content.getvalue())
    write_atomically(there / "run.sh", SCRIPT.replace("@commit@", devices.commit())
                     .replace("@name@", name).encode())
    return size


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _add_source(tar: tarfile.TarFile, name: str) -> None:
    from tevq.data.source import data_root, load_source

    if name not in SETS:
        raise SettingsError(f"--lease carries {', '.join(SETS)}, not data.source = {name}")
    if SETS[name]:
        load_source(name, "train")  # downloads, or says what is missing
        for path in sorted((data_root() / SETS[name] / "raw").glob("*ubyte")):
            tar.add(path, Path("data", SETS[name], "raw", path.name))


def _runs(todo: Iterable[tuple[Settings, tuple[str, ...]]], results: str | Path | None) -> list:
    """All runs of the cells, the classifier's too, each once."""
    found = {}
    for settings, wanted in todo:
        for kind in ("classifier", *wanted):
            run = open_run(settings, kind, results)
            found[run.name] = run
    return list(found.values())


def _files(folder: Path, what: str) -> list[Path]:
    """RECORDS: all files of a run but its state; STATES: its weights and newest checkpoint, too."""
    found = [path for path in sorted(folder.glob("*")) if path.is_file() and path.name[0] != "."
             and path.suffix != ".owner"]
    if what == STATES:
        found += [*folder.glob("state/weights.*"), *sorted(folder.glob("state/step-*"))[-1:]]
    return found


# on the GPU machine ------------------------------------------------------------------------------

def work(path: Path, seconds: float, at_once: int = 0) -> int:
    """Trains the cells side by side until the time is up; then packs. Returns the exit code.

    at_once: how many; 0 is one for each core on a GPU, else 2.
    """
    began, lines, out = time.time(), json.loads(path.read_text()), Path(os.environ["OUT"])
    where = devices.detect()
    cuda, cores = where.device.type == "cuda", os.cpu_count() or 1
    at_once = min(at_once or (cores if cuda else 2), len(lines))
    os.environ |= {budget.VARIABLE: str(began + seconds - CLOSING),
                   "OMP_NUM_THREADS": str(max(1, cores // at_once))}
    meter = Meter(cuda)
    codes = _side_by_side(path, len(lines), at_once, began + seconds - CLOSING)
    todo = [(_settings(line["settings"]), line["kinds"]) for line in lines]
    runs = _runs(todo, None)
    note = devices.record(where) | {
        "seconds": time.time() - began, "kwh": meter.kwh(), "tflops": matrix_rate(where) / 1e12,
        "done": sum(run.done for run in runs), "runs": len(runs), "started": began}
    archive(runs, out, note)
    failed = [code for code in codes if code not in (0, budget.EXIT_CODE, -15)]
    print(f"{note['done']} of {len(runs)} runs are done; the archive is in {out}", flush=True)
    return 1 if failed else 0 if note["done"] == len(runs) else budget.EXIT_CODE


def _side_by_side(path: Path, count: int, at_once: int, until: float) -> list[int]:
    """Exit codes of one process a cell; those that run past `until` are ended."""
    waiting, running, codes = list(range(count)), [], []
    while waiting or running:
        while waiting and len(running) < at_once and time.time() < until:
            running.append(subprocess.Popen(
                [sys.executable, "-m", "tevq.lease", str(path), str(waiting.pop(0))]))
        if time.time() >= until:
            waiting = []
            for process in running:
                process.terminate()  # what it had saved is intact
        codes += [process.wait() for process in running if process.poll() is not None]
        running = [process for process in running if process.returncode is None]
        time.sleep(0.2)
    return codes


def one_cell(path: Path, number: int) -> int:
    """Trains and evaluates one cell as far as the deadline allows."""
    from tevq.evaluate.evaluate import evaluate, evaluate_quantizer
    from tevq.train import stage1, stage2

    line = json.loads(path.read_text())[number]
    settings, steps = _settings(line["settings"]), {
        "stage1": stage1.train, "quantizer": evaluate_quantizer, "stage2": stage2.train,
        "evaluation": evaluate}
    try:
        for kind in line["kinds"]:
            if open_run(settings, kind).done and kind in ("quantizer", "evaluation"):
                continue
            steps[kind](settings)
    except budget.OutOfTimeError as error:
        print(error, flush=True)
        return budget.EXIT_CODE
    return 0


def _settings(tree: dict[str, Any]) -> Settings:
    """Settings from `as_dict`."""
    flat = {f"{group}.{name}": value for group, part in tree.items() if isinstance(part, dict)
            for name, value in part.items()}
    named = {name: tree[name] for name in ("variant", "seed", "precision")}
    return replace(presets.PRESETS[tree["preset"]](), **named).override(flat)


class Meter:
    """Energy of the card while cells run: its power, asked of nvidia-smi every two seconds."""

    def __init__(self, cuda: bool):
        self.joules, self.over = None, threading.Event()
        if cuda and shutil.which("nvidia-smi"):
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self.over.wait(2):
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                text = subprocess.run(
                    ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"],
                    capture_output=True, text=True, timeout=10, check=True).stdout
                now = time.monotonic()
                self.joules = (self.joules or 0) + float(text.split()[0]) * (now - before)
                before = now

    def kwh(self) -> float | None:
        """Kilowatt-hours so far; None where the card tells nothing."""
        self.over.set()
        return None if self.joules is None else self.joules / 3.6e6


def matrix_rate(where: devices.Device, seconds: float = 0.5) -> float:
    """Operations per second of large matrix products in the precision of trainings."""
    import torch
    from torch.utils.benchmark import Timer

    n = 8192 if where.device.type == "cuda" else 1024
    a = torch.randn(n, n, device=where.device, dtype=where.dtype)
    measured = Timer("a @ a", globals={"a": a}, num_threads=torch.get_num_threads())
    return 2 * n**3 / measured.blocked_autorange(min_run_time=seconds).median


def archive(runs: list, out: Path, note: dict[str, Any]) -> None:
    """Writes what goes back in pieces; archive.json, written last, makes it whole.

    Records of all runs come first. Weights and checkpoints that unfinished cells still need follow
    while there is room, and what is left out is named: it would be trained again.
    """
    content, left_out, room = io.BytesIO(), [], PIECE * PIECES
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        for what in (RECORDS, STATES):
            for run in runs:
                records = _files(run.folder, RECORDS)
                files = records if what == RECORDS else _files(run.folder, STATES)[len(records):]
                size = sum(path.stat().st_size for path in files)
                if what == STATES and content.tell() + size > room - MIB:
                    left_out.append(run.name)
                    continue
                for path in files:
                    tar.add(path, Path(*run.folder.parts[-4:], path.relative_to(run.folder)))
    blocks = [content.getvalue()[at : at + PIECE] for at in range(0, content.tell(), PIECE)]
    for old in out.glob("archive*"):
        old.unlink()
    for number, block in enumerate(blocks):
        write_atomically(out / f"archive.{number}", block)
    write_json(out / "archive.json", note | {
        "pieces": [hashlib.sha256(block).hexdigest() for block in blocks],
        "without_state": left_out})


# back here ---------------------------------------------------------------------------------------

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
    write_json(folder / "lease.json", {"on": here, "pieces": list(pieces.values())}
               | spent(grid, pieces.values()))
    back.rename(folder / f"taken-{int(note['started'])}")
    lost = len(note["without_state"])
    return (f"taken in: {taken} runs, {note['done']} of {note['runs']} done"
            + f"; {lost} had no room for their state and start their stage again" * bool(lost))


def spent(grid: Grid, pieces: Iterable[dict[str, Any]]) -> dict[str, float]:
    """What the finished trainings cost: device seconds, kWh, PFLOP, share of the measured rate."""
    from tevq.bench import cost

    per_image, per_sequence, samples = {}, {}, {}
    for settings in cells(grid):
        for kind, unit, count, known in (("stage1", "images", cost.stage1, per_image),
                                         ("stage2", "sequences", cost.stage2, per_sequence)):
            run = open_run(settings, kind, grid.results)
            if run.done:
                key = json.dumps(run.config[kind], sort_keys=True)
                known[key] = known.get(key) or count(settings)
                samples[run.name] = run.summary()[unit] * known[key]
    seconds = sum(piece["seconds"] for piece in pieces)
    flop, could = sum(samples.values()), sum(p["seconds"] * p["tflops"] * 1e12 for p in pieces)
    return {"seconds": seconds, "kwh": sum(piece["kwh"] or 0 for piece in pieces) or None,
            "pflop": flop / 1e15, "share_of_rate": flop / could if could else 0.0}


def _extract(content: bytes, root: Path) -> int:
    """Runs newly taken in. A run's summary is written last: it makes the run finished."""
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
        if (root / place / "summary.json").exists():
            continue
        shutil.rmtree(root / place / "state", ignore_errors=True)
        for path in sorted(own, key=lambda path: path.name == "summary.json"):
            write_atomically(root / place / path, own[path])
        taken += 1
    return taken


if __name__ == "__main__":
    file, number, *more = sys.argv[1:]
    sys.exit(work(Path(file), float(number), *map(int, more)) if more
             else one_cell(Path(file), int(number)))
