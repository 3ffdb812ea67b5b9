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

from tevq.config import Settings, SettingsError, digest
from tevq.runs import devices, lock
from tevq.runs.checkpoint import DamagedFileError, load_tree, save_tree
from tevq.runs.storage import write_atomically, write_json, writing

PARTS = {  # the groups of settings that decide each kind of run
    "classifier": ("data", "classifier"),
    "stage1": ("data", "classifier", "stage1"),
    "stage2": ("data", "classifier", "stage1", "stage2"),
    "evaluation": ("data", "classifier", "stage1", "stage2", "evaluation"),
    "quantizer": ("data", "classifier", "stage1"),
}
KEEP = 2  # checkpoints of an unfinished run


def results_root(folder: str | Path | None = None) -> Path:
    """`folder`, else $TEVQ_RESULTS, else `results/` of the repository."""
    return Path(folder or os.environ.get("TEVQ_RESULTS") or devices.ROOT / "results").resolve()


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
    name = f"{label(settings, kind)}-{digest(config)}"
    return Run(results_root(results) / settings.preset / "runs" / kind / name, config)


def label(settings: Settings, kind: str) -> str:
    """What a run's folder and figures are called: items, variant, seed, and what is unusual."""
    words = [settings.data.source]
    if kind != "classifier":
        words += [settings.variant, f"s{settings.seed}"]
        words += [settings.suffix.replace(" ", "")] if settings.suffix else []
    if kind in ("stage2", "evaluation") and settings.stage2.fraction != 1:
        words.append(f"{settings.stage2.fraction:.2f}".replace("0.", "p"))
    return "-".join(words)


def parents(settings: Settings, *kinds: str, results: str | Path | None = None) -> dict[str, str]:
    """Checksums of the weights that a run of these settings starts from, for `Run.start`."""
    return {kind: open_run(settings, kind, results).checksum for kind in kinds}


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

    @property
    def made_on(self) -> dict[str, Any]:
        """What it ran on, as `config.json` says (see `machine.record`); empty when it says nothing.
        """
        with contextlib.suppress(OSError, ValueError, KeyError):
            return json.loads((self.folder / "config.json").read_text())["machine"]
        return {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run; a second one waits. Falls with a killed process."""
        with lock.hold(self.folder / ".lock", self.name):
            yield

    def start(self, device: devices.Device, parents: dict[str, str] | None = None) -> None:
        """Writes `config.json`: settings, the weights it starts from, and the machine.

        Raises SettingsError if the folder holds other settings (it has been tampered with), or the
        checkpoints of a training that started from other weights.
        """
        path, own = self.folder / "config.json", parents or {}
        if path.exists():
            tree = json.loads(path.read_text())
            if (found := tree["settings"]) != self.config:
                raise SettingsError(f"{path} holds other settings than this run: "
                                    f"{_difference(found, self.config)}; delete the folder")
            before = tree.get("built_on", own)
            if before != own and self._checkpoints():
                raise SettingsError(f"{self.folder} was begun on other weights: "
                                    f"{_difference(before, own)}; delete its folder state")
        write_json(path, {"settings": self.config, "built_on": own,
                          "machine": devices.record(device)})

    def log(self, step: int, **numbers: float) -> None:
        """Appends one line to `metrics.jsonl`."""
        line = {"step": step} | {key: _rounded(value) for key, value in numbers.items()}
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a") as file:
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
        """Saves weights, then the summary that makes the run `done`; drops checkpoints.

        The summary gets the checksum of the weights.

        A summary of an earlier training goes first: it must never stand beside other weights.
        """
        (self.folder / "summary.json").unlink(missing_ok=True)
        if weights is not None:
            state = self.folder / "state"
            for old in [*state.glob("weights.*"), *state.glob("codes-*")]:  # codes are theirs
                old.unlink()
            save_tree(self.folder / "state", "weights", weights)
            summary = summary | {"weights": self.checksum}
        write_json(self.folder / "summary.json", summary | {"finished": time.strftime("%F %T")})
        for path in self._checkpoints():
            path.unlink(missing_ok=True)

    def weights(self) -> Any:
        """Weights of a finished run. Raises SettingsError when they are absent or damaged."""
        if not (found := self._weights()):
            raise SettingsError(f"no weights in {self.folder / 'state'}; delete the folder's "
                                "summary.json to train it again")
        try:
            return load_tree(found[0])
        except DamagedFileError as error:
            raise SettingsError(f"{error}; delete it and summary.json to train again") from None

    @property
    def has_weights(self) -> bool:
        """Done, with weights at hand (a fresh clone has summaries without weights)."""
        return self.done and bool(self._weights())

    @property
    def checksum(self) -> str:
        """Start of the SHA-256 of the weights file; empty when there is none."""
        return next((path.name.split(".")[1] for path in self._weights()), "")

    def steps_saved(self) -> list[int]:
        """Steps of the checkpoints that are kept, newest first."""
        return [int(path.name[5:14]) for path in self._checkpoints()]

    def _weights(self) -> list[Path]:
        return sorted((self.folder / "state").glob("weights.*.safetensors"))

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "state").glob("step-*.safetensors"), reverse=True)


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
