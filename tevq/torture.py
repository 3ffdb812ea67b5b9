"""`./run_all.sh --torture`: every promise of the README, tested the hard way.

Runs the tests marked with a promise, those in `tests/torture/` included, and writes what came out
to `results/reliability.csv`.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tevq import execute, graph, pipeline
from tevq.runs.storage import write_atomically

# What `@pytest.mark.promise(...)` may name, in the order of the table
PROMISES = {
    "resume": "Resume is exact",
    "saves": "A save never destroys a save",
    "damage": "Damage is noticed",
    "records": "A run is what its record says",
    "no-code": "No code runs from data",
    "numbers": "Numbers cannot go bad quietly",
    "input": "Wrong input gets one clear line",
    "captions": "Parser and tokenizer never crash",
    "grid": "One bad cell does not sink the grid",
    "two-runs": "Two runs at once are safe",
    "memory": "It stays in memory",
    "offline": "It works offline",
}
TARGET = "TEVQ_RELIABILITY"  # environment variable: where the tests leave the outcome
RESULT = graph.ROOT / "results" / "reliability.csv"


@dataclass
class Outcome:
    """What came out for one promise."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    measured: list[str] = field(default_factory=list)

    def add(self, state: str, seconds: float, measured: list[str]) -> None:
        """One more test; state: passed, failed or skipped."""
        setattr(self, state, getattr(self, state) + 1)
        self.seconds += seconds
        self.measured += measured


def main() -> int:
    """Returns 0 when every test passed, else 1."""
    began = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "promise", "-p", "no:cacheprovider",
         "-o", "python_files=test_*.py torture_*.py", "tests"],
        cwd=graph.ROOT, env=execute.environment(0) | {TARGET: str(RESULT)}).returncode
    print(f"== torture {'passed' if code == 0 else 'FAILED'} in "
          f"{pipeline.duration(time.monotonic() - began)}; outcome in {pipeline.shorten(RESULT)}")
    return int(code != 0)


def write(outcomes: dict[str, Outcome], path: Path) -> None:
    """The table: one line per promise, with the commit and machine that it was measured on."""
    from tevq.runs import devices

    record = devices.record(devices.detect())
    where = {"commit": record["commit"], "device": record["device_name"],
             "cores": os.cpu_count(), "torch": record["versions"]["torch"],
             "date": time.strftime("%F")}
    lines = []
    for key, text in PROMISES.items():
        found = outcomes.get(key, Outcome())
        lines.append({"promise": text, "passed": found.passed, "failed": found.failed,
                      "skipped": found.skipped, "seconds": round(found.seconds),
                      "measured": "; ".join(found.measured)} | where)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(path, text.getvalue().encode())
