"""Run folders, one per training or evaluation, named by its settings; and their checkpoints.

`results/<preset>/runs/<kind>/<name>-<digest>/` holds `config.json`, `metrics.jsonl` (one JSON
object a line), `summary.json` (when finished) and `state/` (checkpoints, weights; not committed).
One process at a time works on a run, see storage.py.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tevq.config import LOCAL, PUBLISHED, Settings, SettingsError, UserError, digest, results_root
from tevq.runs import devices
from tevq.runs.storage import (
    DamagedFileError,
    StorageError,
    hold,
    load_tree,
    read_json,
    save_tree,
    write_atomically,
    write_json,
    writing,
)

PARTS = {  # the groups of settings that decide each kind of run
    "classifier": ("data", "classifier"),
    "stage1": ("data", "classifier", "stage1"),
    "stage2": ("data", "classifier", "stage1", "stage2"),
    "evaluation": ("data", "classifier", "stage1", "stage2", "evaluation"),
    "quantizer": ("data", "classifier", "stage1"),
    "measures": ("data", "classifier", "stage1", "stage2", "evaluation", "measures"),
}
UNUSED = {  # of the settings of the data, what changes nothing in a run
    # one classifier judges all scenes of a source
    "classifier": ("train", "val", "test", "seed", "words"),
    "stage1": ("val", "test", "words"),
    "quantizer": ("words",),
}
NETWORKS = {"classifier": ("classifier", "03"), "stage1": ("quantizer", "03"),
            "stage2": ("generator", "04")}  # what is trained, and in which notebook
KEEP = 2  # checkpoints of an unfinished run
TIME = "%Y-%m-%d %H:%M:%S"


class LostLockError(UserError):
    """This process stood still for so long that another one took over; it must not write."""


def run_config(settings: Settings, kind: str) -> dict[str, Any]:
    """The settings that decide a run of this kind, nested; without those at neutral values."""
    tree = settings.as_dict()
    of_the_folder = ("preset", "variant", "seed") if kind == "classifier" else ("preset",)
    for name in UNUSED.get(kind, ()):
        tree["data"].pop(name, None)
    return {name: value for name, value in tree.items()
            if (name in PARTS[kind] if isinstance(value, dict) else name not in of_the_folder)}


def open_run(settings: Settings, kind: str, results: str | Path | None = None) -> Run:
    """The run of these settings; its folder is made when something is first written.

    In `results/local` a finished run that only the published study has is read from there, unless
    a network that it starts from was trained anew: its numbers would belong to other weights.
    """
    config, root = run_config(settings, kind), results_root(results)
    place = Path(settings.preset, "runs", kind, f"{label(settings, kind)}-{digest(config)}")
    run, published = Run(root / place, config), Run(PUBLISHED / place, config, root / place)
    if root != LOCAL or run.done or not published.done:
        return run
    anew = any(one.done and one.folder == one.own for one in upstream(settings, kind, results))
    return run if anew else published


def upstream(settings: Settings, kind: str, results: str | Path | None = None) -> list[Run]:
    """The runs that a run of this kind starts from."""
    found = [open_run(settings, part, results) for part in PARTS[kind]
             if part in PARTS and part != kind]
    if (parent := origin(settings)) and kind != "classifier":
        found.append(open_run(parent, "stage1", results))
    return found


def origin(settings: Settings) -> Settings | None:
    """The cell of `sc` whose trained codes this one joins, see `rivals.Merged`; else None."""
    if not settings.stage1.merged_to:
        return None
    own = {"stage1.merged_to": 0, "stage1.quantizer": "vq"}
    return replace(settings, variant="sc").override(own)


def label(settings: Settings, kind: str) -> str:
    """What a run's folder and figures are called: items, variant, seed, another stride."""
    words = [settings.data.word]
    if kind != "classifier":
        words += [settings.variant, f"s{settings.seed}"]
        words += [settings.suffix.replace(" ", "")] if settings.suffix else []
    if kind in ("stage2", "evaluation", "measures") and settings.stage2.fraction != 1:
        words.append(f"{settings.stage2.fraction:.2f}".replace("0.", "p"))
    return "-".join(words)


def parents(settings: Settings, *kinds: str, results: str | Path | None = None) -> dict[str, str]:
    """Checksums of the weights that a run of these settings starts from, for `Run.start`."""
    found = {kind: open_run(settings, kind, results).checksum for kind in kinds}
    if parent := origin(settings):
        found["sc"] = open_run(parent, "stage1", results).checksum
    return found


@dataclass
class Run:
    """One run folder."""

    folder: Path  # where it is read
    config: dict[str, Any]
    own: Path | None = None  # where it is written, when that is another folder
    ours: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)  # the lock

    def __post_init__(self):
        self.own = self.own or self.folder

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
        return read_json(self.folder / "summary.json") or None

    @property
    def record(self) -> dict[str, Any]:
        """`config.json`, see `start`; empty when it is absent or damaged."""
        return read_json(self.folder / "config.json")

    @property
    def made_on(self) -> dict[str, Any]:
        """What it ran on (see `devices.record`); empty when the record says nothing."""
        return self.record.get("machine", {})

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works on a run; others wait. The system frees it for a killed one.

        A finished run in a folder that cannot be written is read without a lock.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "ours", self.ours)
            try:
                self.ours = stack.enter_context(hold(self.own / ".lock", self.name))
            except StorageError:
                if not self.done:
                    raise
            if (self.own / "summary.json").exists():  # finished by another process meanwhile
                self.folder = self.own
            yield

    def _check_lock(self) -> None:
        if not self.ours():
            raise LostLockError(f"{self.name}: another process works on it now, because this one "
                                "showed no sign of life; nothing is lost, run it again")

    def start(self, device: devices.Device, parents: dict[str, str] | None = None,
              source: str = "") -> None:
        """Writes `config.json`: settings, the weights it starts from, its data, and the machine.

        source: SHA-256 of the source images. Raises SettingsError if the folder holds other
        settings (it has been tampered with) or was made from other images, or has checkpoints of a
        training that started from other weights.
        """
        self._check_lock()
        self.folder = self.own
        tree, own = self.record, parents or {}
        if (found := tree.get("settings", self.config)) != self.config:
            raise SettingsError(f"{self.folder / 'config.json'} holds other settings than this "
                                f"run: {_difference(found, self.config)}; delete the folder")
        if (before := tree.get("built_on", own)) != own and self._checkpoints():
            raise SettingsError(f"{self.folder} was begun on other weights: "
                                f"{_difference(before, own)}; delete its folder state")
        self.check_source(source)
        new = {"settings": self.config, "built_on": own}
        if source := source or tree.get("source_sha256", ""):
            new["source_sha256"] = source
        write_json(self.folder / "config.json", new | {"machine": devices.record(device)})

    def check_source(self, sha256: str) -> None:
        """Raises SettingsError when the record names other source images than these.

        Records without a hash, of before it was kept, are accepted.
        """
        found = self.record.get("source_sha256", "")
        if found and sha256 and found != sha256:
            raise SettingsError(f"{self.folder} was made from other source images (SHA-256 "
                                f"{found[:8]}..., now {sha256[:8]}...); put those back in TEVQ_DATA"
                                " or delete the folder")

    def log(self, step: int, **numbers: float) -> None:
        """Appends one line to `metrics.jsonl`."""
        self._check_lock()
        line = {"step": step} | {  # seven digits: what float32 carries
            key: float(f"{x:.7g}") if isinstance(x, float) else x for key, x in numbers.items()}
        path = self.folder / "metrics.jsonl"
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All logged lines, oldest first; an unfinished last line is left out."""
        path, rows = self.folder / "metrics.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def save(self, step: int, state: Any) -> None:
        """Saves a checkpoint and forgets all but the newest two."""
        self._check_lock()
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
            text = "".join(json.dumps(row) + "\n" for row in self.metrics()
                           if row["step"] <= tree["step"])
            write_atomically(self.folder / "metrics.jsonl", text.encode())
            return tree["step"], tree["state"]
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        return None

    def finish(self, summary: dict[str, Any], weights: Any = None) -> None:
        """Saves weights, then the summary that makes the run `done`; drops checkpoints.

        A summary of an earlier training goes first: it must never stand beside other weights.
        """
        self._check_lock()
        (self.folder / "summary.json").unlink(missing_ok=True)
        if weights is not None:
            state = self.folder / "state"
            for old in [*state.glob("weights.*"), *state.glob("codes-*")]:  # codes are theirs
                old.unlink()
            save_tree(state, "weights", weights)
            summary = summary | {"weights": self.checksum}
        write_json(self.folder / "summary.json", summary | {"finished": time.strftime(TIME)})
        for path in self._checkpoints():
            path.unlink(missing_ok=True)

    def weights(self) -> Any:
        """Weights of a finished run. Raises SettingsError when they are absent or damaged."""
        if not self.weights_file:
            raise SettingsError(f"no weights in {self.folder / 'state'}; delete the folder's "
                                "summary.json to train it again")
        try:
            return load_tree(self.weights_file)
        except DamagedFileError as error:
            raise SettingsError(f"{error}; delete it and summary.json to train again, and the runs "
                                "that start from it") from None

    def restore(self, network: Any, device: Any = "cpu", **layout: Any) -> Any:
        """The network with this run's weights, frozen, in evaluation mode.

        Raises SettingsError where there are none.
        """
        if not self.has_weights:
            what, notebook = NETWORKS[self.folder.parent.name]
            raise SettingsError(f"no trained {what} in {self.folder}; run notebook {notebook} "
                                "first, with this variant and seed")
        network.load_state_dict(self.weights())
        return network.to(device, **layout).eval().requires_grad_(False)

    @property
    def has_weights(self) -> bool:
        """Done, with weights at hand (a fresh clone has summaries without weights)."""
        return self.done and self.weights_file is not None

    @property
    def checksum(self) -> str:
        """Start of the SHA-256 of the weights file; empty when there is none."""
        return self.weights_file.name.split(".")[1] if self.weights_file else ""

    def steps_saved(self) -> list[int]:
        """Steps of the checkpoints that are kept, newest first."""
        return [int(path.name[5:14]) for path in self._checkpoints()]

    @property
    def weights_file(self) -> Path | None:
        """Its weights file; for a published run without one, that which git keeps."""
        found = list((self.folder / "state").glob("weights.*.safetensors"))
        if not found and self.folder != self.own:
            name = f"{self.name.replace('/', '-')}.*.safetensors"
            found = list((self.folder.parents[2] / "models").glob(name))
        return min(found, default=None)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "state").glob("step-*.safetensors"), reverse=True)


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """First names at which two nested settings differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = [_difference(found.get(key), wanted.get(key), f"{path}.{key}".strip("."))
                 for key in sorted({*found, *wanted})]
        return ", ".join(filter(None, parts))
    return "" if found == wanted else f"{path} is {found!r} instead of {wanted!r}"
