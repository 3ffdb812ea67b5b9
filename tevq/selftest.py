"""`./run_all.sh --test`: ruff, pytest, the whole study at a tiny size, nbval over the notebooks.

nbval cannot pass parameters, so it gets copies of the notebooks whose parameters cell holds the
tiny settings. The tiny study runs first, through the same pipeline as a real one; nbval then runs
every notebook again over its finished runs, as a reader does who opens it and runs all cells.
pytest, which mostly waits for processes that start, runs beside these two and is shown last.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tevq import execute, graph, pipeline
from tevq.grid import choose

# Large enough for every code path, far too small to learn anything
TINY: dict[str, Any] = {
    "data.train": 400, "data.val": 40, "data.test": 40,
    "classifier.steps": 60,
    "stage1.stride": 8,  # 64 codes an image instead of 256
    "stage1.steps": 30, "stage1.warmup_steps": 10, "stage1.disc_start": 20, "stage1.batch": 8,
    "stage2.steps": 16, "stage2.batch": 8, "stage2.probe_every": 8, "stage2.probe_scenes": 8,
    "evaluation.scenes": 10,
}
VARIANTS, SEED = "sc,te", 0


def main(folder: Path = graph.FOLDER) -> int:
    """Runs all steps, also after a failure. Returns 0 when all passed, else 1."""
    began = time.monotonic()
    # operations are tiny here: a second thread gains nothing, and beside a busy core it only waits
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with (tempfile.TemporaryDirectory(prefix="tevq-test-") as place,
          _beside(Path(place) / "pytest.txt", "-m", "pytest", "-q", "--durations=5") as pytest):
        work = Path(place)
        steps = {
            "ruff": lambda: _python("-m", "ruff", "check", "."),
            "tiny study": lambda: _grid(work, folder),
            "nbval": lambda: _nbval(work, folder),
            "pytest": pytest,
        }
        failed = []
        for name, step in steps.items():
            since = time.monotonic()
            print(f"== {name}", flush=True)
            passed = step()
            print(f"== {name}: {'passed' if passed else 'FAILED'} after "
                  f"{pipeline.duration(time.monotonic() - since)}", flush=True)
            failed += [] if passed else [name]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"== {verdict} in {pipeline.duration(time.monotonic() - began)}")
    return int(bool(failed))


def parameters(name: str, results: Path) -> dict[str, Any]:
    """Tiny values for the parameters of one notebook."""
    values = graph.NOTEBOOKS[name] | {"overrides": TINY, "results": str(results)}
    if "variants" in values:
        values |= {"variants": VARIANTS, "seeds": str(SEED)}
    return values


def write_copies(folder: Path, target: Path, results: Path) -> list[Path]:
    """Copies of the notebooks with tiny parameters, in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    copies = []
    for name in graph.NOTEBOOKS:
        notebook = graph.read(folder, name)
        values = parameters(name, results)
        cell = graph.parameters_cell(notebook)
        cell["source"] = "\n".join(f"{key} = {value!r}" for key, value in values.items())
        copies.append(target / f"{name}.ipynb")
        copies[-1].write_text(json.dumps(notebook))
    return copies


def _grid(work: Path, folder: Path) -> bool:
    """The tiny study through the pipeline; running it again must find everything unchanged."""
    grid = choose("smoke", VARIANTS, str(SEED), "", TINY, str(work / "results"))
    passed = pipeline.run(pipeline.plan(grid, folder=folder)) == 0
    again = pipeline.plan(grid, folder=folder)
    if passed and again.to_run:
        print(f"a second run would not be empty:\n{pipeline.describe(again)}")
    return passed and not again.to_run


def _nbval(work: Path, folder: Path) -> bool:
    copies = write_copies(folder, work / "notebooks", work / "results")
    return _python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={work}",
                   "--nbval-lax", "--nbval-cell-timeout=300", *map(str, copies))


def _python(*words: str) -> bool:
    """Runs this Python in the repository; True when it exits with 0."""
    return subprocess.run([sys.executable, *words], cwd=graph.ROOT,
                          env=execute.environment(0)).returncode == 0


@contextlib.contextmanager
def _beside(log: Path, *words: str) -> Iterator[Callable[[], bool]]:
    """Runs this Python as `_python` does, but while the body runs.

    Yields what waits for its end, prints what it said, and returns True when it exited with 0.
    """
    with log.open("w") as said:
        child = subprocess.Popen([sys.executable, *words], cwd=graph.ROOT, stdout=said,
                                 stderr=subprocess.STDOUT, env=execute.environment(0))

    def finish() -> bool:
        code = child.wait()
        print(log.read_text(), end="", flush=True)
        return code == 0

    try:
        yield finish
    finally:
        child.terminate()  # after a failure of the body; otherwise it has ended
        child.wait()
