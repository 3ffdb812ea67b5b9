"""`./run_all.sh --torture`: every promise about reliability, tested the hard way.

Runs the tests marked with a promise, those in `tests/torture/` included, and writes what came out
to `results/reliability.csv`.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "results" / "reliability.csv"
TARGET = "TEVQ_RELIABILITY"  # environment variable: where the tests write the outcome
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
    """Exit code: 0 when every test passed, else 1; 130 interrupted."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: sys.exit(130))
    began = time.monotonic()
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    more = {"PYTHONPATH": os.pathsep.join(paths), TARGET: str(RESULT)}
    code = subprocess.call(
        [sys.executable, "-m", "pytest", "-q", "-m", "promise", "-p", "no:cacheprovider",
         "-o", "python_files=test_*.py torture_*.py", "tests"], cwd=ROOT, env=os.environ | more)
    print(f"== torture {'passed' if code == 0 else 'FAILED'} in "
          f"{(time.monotonic() - began) / 60:.0f} min; outcome in results/{RESULT.name}")
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
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
