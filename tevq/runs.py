"""Run folders: one per training or evaluation, named by its settings.

`results/<preset>/runs/<kind>/<name>-<digest>/` holds `config.json`, `metrics.jsonl` (one JSON
object a line), `summary.json` (when finished) and `state/` (checkpoints, weights; not committed).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tevq import machine
from tevq.budget import Deadline, OutOfTimeError
from tevq.checkpoint import DamagedFileError, load_tree, save_tree, write_atomically, write_json
from tevq.settings import Settings, SettingsError, digest

PARTS = {  # the groups of settings that decide each kind of run
    "classifier": ("data", "classifier"),
    "stage1": ("data", "classifier", "stage1"),
    "stage2": ("data", "classifier", "stage1", "stage2"),
    "evaluation": ("data", "classifier", "stage1", "stage2", "evaluation"),
    "quantizer": ("data", "classifier", "stage1"),
}
LOCK_NOTICE = 60  # seconds between two lines of a process that waits for another one
KEEP = 2  # checkpoints of an unfinished run


def results_root(folder: str | Path | None = None) -> Path:
    """`folder`, else $TEVQ_RESULTS, else `results/` of the repository."""
    return Path(folder or os.environ.get("TEVQ_RESULTS") or machine.ROOT / "results").resolve()


def run_config(settings: Settings, kind: str) -> dict[str, Any]:
    """The settings that decide a run of this kind, nested."""
    tree = settings.as_dict()
    config = {part: tree[part] for part in PARTS[kind]} | {"precision": settings.precision}
    if kind == "classifier":
        # one classifier judges all scenes of a source, whatever their number or seed
        config["data"] = {"source": settings.data.source}
        return config
    if kind == "stage1":
        config["data"] = {key: tree["data"][key] for key in ("source", "train", "seed")}
    return config | {"variant": settings.variant, "seed": settings.seed}


def open_run(settings: Settings, kind: str, results: str | Path | None = None) -> Run:
    """The run of these settings; its folder is made when something is first written."""
    config = run_config(settings, kind)
    words = [settings.data.source]
    if kind != "classifier":
        words += [settings.variant, f"s{settings.seed}"]
    if kind in ("stage2", "evaluation") and settings.stage2.fraction != 1:
        words.append(f"{settings.stage2.fraction:.2f}".replace("0.", "p"))
    name = "-".join([*words, digest(config)])
    return Run(results_root(results) / settings.preset / "runs" / kind / name, config)


@dataclass
class Run:
    """One run folder."""

    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Kind and folder name, e.g. `stage1/mnist-te-s0-1a2b3c4d`."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def done(self) -> bool:
        """True when the run has finished and its summary can be read."""
        return self.summary() is not None

    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary, or None."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "summary.json").read_text())
        return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run; a second one waits. Released by the system on a kill."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=LOCK_NOTICE)
            except Timeout:
                print(f"{self.name}: another process works on it; waiting")
        try:
            yield
        finally:
            lock.release()

    def start(self, device: machine.Machine) -> None:
        """Writes `config.json`: settings and the machine they run on.

        Raises SettingsError if the folder holds other settings (it has been tampered with).
        """
        path = self.folder / "config.json"
        if path.exists():
            found = json.loads(path.read_text())["settings"]
            if found != self.config:
                raise SettingsError(f"{path} holds other settings than this run: "
                                    f"{_difference(found, self.config)}; delete the folder")
        write_json(path, {"settings": self.config, "machine": machine.record(device)})

    def log(self, step: int, **numbers: float) -> None:
        """Appends one line to `metrics.jsonl`."""
        line = {"step": step} | {key: _rounded(value) for key, value in numbers.items()}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines, oldest first; an unfinished last line is left out."""
        rows = []
        with contextlib.suppress(OSError):
            for line in (self.folder / "metrics.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    rows.append(json.loads(line))
        return rows

    def save(self, step: int, state: Any) -> None:
        """Saves a checkpoint and forgets all but the newest two."""
        save_tree(self.folder / "state", f"step-{step:09d}", {"step": step, "state": state})
        for old in self._checkpoints()[KEEP:]:
            old.unlink(missing_ok=True)

    def latest(self) -> tuple[int, Any] | None:
        """Newest intact checkpoint (step, state); log lines past it are dropped.

        Says so when a damaged checkpoint is passed over.
        """
        for path in self._checkpoints():
            try:
                tree = load_tree(path)
            except (DamagedFileError, OSError) as error:
                print(f"{error}; going back to the one before")
                continue
            rows = [row for row in self.metrics() if row["step"] <= tree["step"]]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self.folder / "metrics.jsonl", text.encode())
            return tree["step"], tree["state"]
        with contextlib.suppress(OSError):
            (self.folder / "metrics.jsonl").unlink()
        return None

    def finish(self, summary: dict[str, Any], weights: Any = None) -> None:
        """Saves weights, then the summary that makes the run `done`; drops checkpoints."""
        if weights is not None:
            for old in (self.folder / "state").glob("weights.*"):
                old.unlink()
            save_tree(self.folder / "state", "weights", weights)
        write_json(self.folder / "summary.json", summary | {"finished": time.strftime("%F %T")})
        for path in self._checkpoints():
            path.unlink(missing_ok=True)

    def weights(self) -> Any:
        """Weights of a finished run. Raises SettingsError when they are absent or damaged."""
        found = sorted((self.folder / "state").glob("weights.*.safetensors"))
        if not found:
            raise SettingsError(f"no weights in {self.folder / 'state'}; delete the folder's "
                                "summary.json to train it again")
        try:
            return load_tree(found[0])
        except DamagedFileError as error:
            raise SettingsError(f"{error}; delete it and summary.json to train again") from None

    @property
    def usable(self) -> bool:
        """Done, with weights at hand (a fresh clone has summaries without weights)."""
        return self.done and any((self.folder / "state").glob("weights.*.safetensors"))

    def agree(self, answer: bool) -> bool:
        """The answer that all processes of this run act on; here there is one process."""
        return answer

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "state").glob("step-*.safetensors"), reverse=True)


class Loop:
    """Resumable training: restores its parts, hands out step numbers, saves, tells the time left.

    `parts` maps names to objects with `state_dict` and `load_state_dict`. The state of a run at a
    step does not depend on when it was saved, so checkpoints go by the clock. Near a deadline (see
    budget.py) it saves and raises OutOfTimeError.
    """

    def __init__(self, run: Run, parts: dict[str, Any], total: int, save_seconds: float = 60):
        self.run, self.parts, self.total, self.save_seconds = run, parts, total, save_seconds
        self.start, self.seconds = 0, 0.0
        self.deadline = Deadline()
        self.fresh = not self.restore()

    def restore(self) -> bool:
        """Puts all parts in the state of the newest checkpoint; False when there is none."""
        found = self.run.latest()
        if found:
            self.start, state = found
            self.seconds = state.pop("seconds")
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        return found is not None

    def __iter__(self) -> Iterator[int]:
        began = saved = said = time.monotonic()
        before = self.seconds
        if self.start:
            print(f"{self.run.name}: going on at step {self.start:,} of {self.total:,}")
        if self.start < self.total and self._late():
            raise self._out_of_time(self.start)
        for step in range(self.start, self.total):
            yield step
            now = time.monotonic()
            self.seconds = before + now - began
            late = step + 1 < self.total and self._late()
            due = now - saved > self.save_seconds or self.deadline.needs_a_save
            if late or (due and step + 1 < self.total):
                self.save(step + 1)
                saved = now
            if late:
                raise self._out_of_time(step + 1)
            if now - said > 30 or step + 1 == self.total:
                self._say(step + 1, (now - began) / (step + 1 - self.start))
                said = now

    def save(self, step: int) -> None:
        """A checkpoint after `step` finished steps."""
        began = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.run.save(step, state | {"seconds": self.seconds})
        self.deadline.saved(time.monotonic() - began)

    def _late(self) -> bool:
        return self.deadline.at < math.inf and self.run.agree(self.deadline.near())

    def _out_of_time(self, step: int) -> OutOfTimeError:
        return OutOfTimeError(f"{self.run.name}: stopped at step {step:,} of {self.total:,}, "
                              "time is nearly up; the same command goes on from there")

    def _say(self, step: int, rate: float) -> None:
        left = (self.total - step) * rate
        print(f"{self.run.name}: step {step:,} of {self.total:,}, {left / 60:.1f} min left",
              flush=True)


class Batches:
    """Data order: a pure function of (seed, step), so a resumed run sees what it would have seen.

    `batches[step]` -> indices (batch,); every epoch is a new permutation of range(n), its
    incomplete last batch left out.
    """

    def __init__(self, n: int, batch: int, seed: int):
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> torch.Tensor:
        epoch, position = divmod(step, self.n // self.batch)
        if epoch != self.epoch:
            random = machine.generator(self.seed, epoch)
            self.epoch, self.order = epoch, torch.randperm(self.n, generator=random)
        return self.order[position * self.batch : (position + 1) * self.batch]


def _rounded(value: Any) -> Any:
    """Seven significant digits: what float32 carries."""
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """First names at which two nested settings differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = [_difference(found.get(key), wanted.get(key), f"{path}.{key}".strip("."))
                 for key in sorted({*found, *wanted})]
        return ", ".join(filter(None, parts))
    return "" if found == wanted else f"{path} is {found!r} instead of {wanted!r}"
