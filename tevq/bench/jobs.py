"""All races of notebook 07, at the sizes of the presets `paper` and `laptop`, or tiny ones."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tevq import presets
from tevq.bench import limits as bench_limits
from tevq.bench import timing as bench
from tevq.bench.data import building, encoding, growth, rendering
from tevq.bench.precision import compare
from tevq.bench.stage1 import full_step, quantizer, reconstruction_step
from tevq.bench.stage2 import DALLE, GPT2, Twin, sampling, seconds_per_token, training_step
from tevq.bench.timing import Work
from tevq.grid import Grid
from tevq.runs import devices
from tevq.runs.devices import Device
from tevq.runs.storage import write_json

WORDS = 50  # of a caption: 50 + 256 = 306 tokens, the paper's
SECTIONS = ("limits", "turns", "summary", "profile", "growth", "tokens", "precision")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large and how often."""

    tiny: bool = False

    @property
    def repeats(self) -> int:
        """Turns of every contender."""
        return 2 if self.tiny else 5

    def limits(self, where: Device) -> list[dict[str, Any]]:
        """Rates that the machine reaches."""
        return bench_limits.measure(where, *((2, 256, 16, 2) if self.tiny else (5,)))

    def works(self, where: Device) -> Iterator[Work]:
        """The races, each made when its turn comes, so that only one lies in memory."""
        for make in self._tiny(where) if self.tiny else self._full(where):
            yield make()

    def _full(self, where: Device) -> list[Callable[[], Work]]:
        paper, laptop = presets.load("paper", "sc"), presets.load("laptop", "sc")
        twin = Twin(dim=320, depth=7, heads=5)
        bars = {GPT2: 2.0, DALLE: 3.0}
        return [
            lambda: dataclasses.replace(reconstruction_step(
                "Stage-1 step, paper", paper.stage1, where, 8, (2.2, 1.25)), share=0.75),
            lambda: full_step("Stage-1 step, laptop", laptop, where, 32, (3.0, 0.0)),
            lambda: quantizer("quantizer", where),
            lambda: dataclasses.replace(training_step(
                "Stage-2 step, paper", paper.stage2, WORDS, where, 8, twin, bars), share=0.35),
            lambda: dataclasses.replace(training_step(
                "Stage-2 step, laptop", laptop.stage2, WORDS, where, 64, Twin(136, 4, 2),
                {GPT2: 2.5}), share=0.5),
            lambda: sampling("sampling, paper", paper.stage2, WORDS, where, 64, twin,
                             {GPT2: 4.0, DALLE: 100.0}),
            lambda: dataclasses.replace(building("building scenes", 300_000), rate=15_000),
            lambda: dataclasses.replace(rendering("rendering", where), rate=20_000),
            lambda: encoding("encoding, laptop", laptop, where, 1_000),
        ]

    def _tiny(self, where: Device) -> list[Callable[[], Work]]:
        smoke, twin = presets.load("smoke", "sc"), Twin(64, 2, 2)
        return [
            lambda: reconstruction_step("Stage-1 step, no critic", smoke.stage1, where, 2, (0, 0)),
            lambda: full_step("Stage-1 step", smoke, where, 2, (0.0, 0.0)),
            lambda: quantizer("quantizer", where, 2, 32, 32, 0.0),
            lambda: training_step("Stage-2 step", smoke.stage2, WORDS, where, 2, twin,
                                  {GPT2: 0.0, DALLE: 0.0}),
            lambda: sampling("sampling", smoke.stage2, WORDS, where, 2, twin, {}, 2),
            lambda: building("building scenes", 1_000),
            lambda: rendering("rendering", where, 100),
            lambda: encoding("encoding", smoke, where, 10, 0.0),
        ]

    def growth(self, where: Device) -> list[dict[str, Any]]:
        """Steps of the laptop's size (tiny: of smoke's) at growing batches."""
        settings = presets.load("smoke" if self.tiny else "laptop", "sc")
        sizes = (2, 4) if self.tiny else (16, 32, 64, 128, 256)
        return growth(settings, WORDS, where, sizes, 1 if self.tiny else 3)

    def tokens(self, where: Device) -> list[dict[str, Any]]:
        """Seconds of every sampling step, median of three samplings."""
        s = presets.load("smoke" if self.tiny else "paper", "sc").stage2
        runs = [seconds_per_token(s, WORDS, where, 2 if self.tiny else 64) for _ in range(3)]
        return [{"token": number + 1, "seconds": sorted(times)[1]}
                for number, times in enumerate(zip(*runs, strict=True))]

    def precision(self) -> list[dict[str, Any]]:
        """Short trainings in float32 and bfloat16."""
        return compare(*((4, (0,)) if self.tiny else (20, (0, 1, 2))))


def folder_of(grid: Grid) -> Path:
    """`results/benchmarks`; numbers of tiny sizes stay with the study that they rehearse."""
    return (grid.folder if tiny(grid) else grid.folder.parent) / "benchmarks"


def tiny(grid: Grid) -> bool:
    """Preset smoke is a rehearsal: seconds, and ratios that mean nothing."""
    return grid.preset == "smoke"


def run(folder: Path, plan: Plan, where: Device, say: Callable[[str], None] = print) -> None:
    """Measures everything and writes one CSV per section, and `machine.json`, into `folder`.

    Files of an earlier run are replaced one by one, after every race; nothing measured is lost.
    """
    began = time.monotonic()
    found = {"limits": plan.limits(where)}
    rates = {row["limit"]: row["rate"] for row in found["limits"]}
    found |= {"turns": [], "summary": [], "profile": []}
    for work in plan.works(where):
        rows = bench.race(work, plan.repeats)
        facts = {one.name: bench.examine(one) for one in work.contenders}
        found["turns"] += rows
        found["summary"] += bench.summary(work, rows, rates, facts)
        found["profile"] += bench.shares(work.name, work.contenders[0])
        _write(folder, found)
        say(f"{work.name}: {len(work.contenders)} contenders, {time.monotonic() - began:.0f} s")
    for section, measure in (("growth", lambda: plan.growth(where)),
                             ("tokens", lambda: plan.tokens(where)),
                             ("precision", plan.precision)):
        found[section] = measure()
        _write(folder, found)
        say(f"{section}: {time.monotonic() - began:.0f} s")
    write_json(folder / "machine.json", devices.record(where) | {
        "tiny": plan.tiny, "repeats": plan.repeats, "peers": bench.versions(),
        "seconds": round(time.monotonic() - began), "finished": time.strftime("%F %T")})


def _write(folder: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    for section, rows in found.items():
        bench.write_csv(folder / f"{section}.csv", rows)
