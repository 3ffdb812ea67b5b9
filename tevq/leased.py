"""What runs on the machine that `lease.py` packs for: trains, stops in time, packs what goes back.

`python -m tevq.leased CELLS SECONDS AT_ONCE`; its `run.sh` calls it.
"""

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from tevq import presets
from tevq.config import Settings
from tevq.evaluate.evaluate import evaluate, evaluate_quantizer
from tevq.evaluate.measures import measure
from tevq.lease import MIB, PIECE, PIECES, records_of, runs_of, state_of
from tevq.models.classifier import second_judge
from tevq.runs import budget, devices
from tevq.runs.storage import write_atomically, write_json
from tevq.train import classifier, stage1, stage2

CLOSING = 30  # seconds of a budget that packing the archive may take


def work(path: Path, seconds: float, at_once: int = 0) -> int:
    """Trains the cells side by side until the time is up; then packs. Returns the exit code.
    at_once: how many; 0 is one for each core on a GPU, else 2."""
    began, out = time.time(), Path(os.environ["OUT"])
    lines = json.loads(path.read_text(encoding="utf-8"))
    where = devices.detect()
    cuda, cores = where.device.type == "cuda", os.cpu_count() or 1
    at_once = min(at_once or (cores if cuda else 2), len(lines))
    os.environ |= {budget.VARIABLE: str(began + seconds - CLOSING),
                   "OMP_NUM_THREADS": str(max(1, cores // at_once))}
    meter = Meter(cuda)
    codes = _side_by_side(path, len(lines), at_once, began + seconds - CLOSING)
    todo = [(_settings(line["settings"]), line["kinds"]) for line in lines]
    runs = runs_of(todo, None)
    note = devices.record(where) | {
        "seconds": time.time() - began, "kwh": meter.kwh(), "tflops": matrix_rate(where) / 1e12,
        "done": sum(run.done for run in runs), "runs": len(runs), "started": began}
    archive(runs, out, note)
    failed = [code for code in codes if code not in (0, budget.EXIT_CODE, -15)]
    print(f"{note['done']} of {len(runs)} runs are done; the archive is in {out}", flush=True)
    return 1 if failed else 0 if note["done"] == len(runs) else budget.EXIT_CODE


def _side_by_side(path: Path, count: int, at_once: int, until: float) -> list[int]:
    """Exit codes of one process a cell; those that run past `until` are ended."""
    def run(number: int) -> int:
        if time.time() >= until:
            return budget.EXIT_CODE
        process = subprocess.Popen([sys.executable, "-m", "tevq.leased", str(path), str(number)])
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(until - time.time())
        process.terminate()  # what it had saved is intact
        return process.wait()

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(run, range(count)))


def one_cell(path: Path, number: int) -> int:
    """Trains and evaluates one cell as far as the deadline allows."""
    line = json.loads(path.read_text(encoding="utf-8"))[number]
    settings, steps = _settings(line["settings"]), {
        "stage1": stage1.train, "quantizer": evaluate_quantizer, "stage2": stage2.train,
        "evaluation": evaluate, "measures": _measure}
    try:
        for kind in line["kinds"]:
            steps[kind](settings)
    except budget.OutOfTimeError as error:
        print(error, flush=True)
        return budget.EXIT_CODE
    return 0


def _measure(settings: Settings) -> None:
    classifier.train(second_judge(settings))  # once for all cells
    measure(settings)


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
        def add(files: list[Path], folder: Path) -> None:
            for path in files:
                tar.add(path, Path(*folder.parts[-4:], path.relative_to(folder)))

        for run in runs:
            add(records_of(run.folder), run.folder)
        for run in runs:
            state = state_of(run.folder)
            if content.tell() + sum(path.stat().st_size for path in state) > room - MIB:
                left_out.append(run.name)
            else:
                add(state, run.folder)
    blocks = [content.getvalue()[at : at + PIECE] for at in range(0, content.tell(), PIECE)]
    for old in out.glob("archive*"):
        old.unlink()
    for number, block in enumerate(blocks):
        write_atomically(out / f"archive.{number}", block)
    write_json(out / "archive.json", note | {
        "pieces": [hashlib.sha256(block).hexdigest() for block in blocks],
        "without_state": left_out})


if __name__ == "__main__":
    file, number, *more = sys.argv[1:]
    sys.exit(work(Path(file), float(number), *map(int, more)) if more
             else one_cell(Path(file), int(number)))
