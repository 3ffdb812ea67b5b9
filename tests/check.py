"""`./run_all.sh --test`: ruff, pytest, all notebooks at a tiny size, nbval over the notebooks.

nbval cannot pass parameters. So it gets copies of the notebooks with tiny settings in their
parameters cell. The command line runs all notebooks with these settings first; nbval then runs
every notebook again over the finished trainings, as a reader does who opens it and runs all cells.
pytest mostly waits for processes that start. So it runs beside all this, in three processes, and
is shown last.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
# Large enough for every code path, far too small to learn anything
TINY: dict[str, Any] = {
    "data.train": 400, "data.val": 40, "data.test": 40,
    "classifier.steps": 60,
    "stage1.stride": 8,  # 64 codes an image instead of 256
    "stage1.steps": 30, "stage1.warmup_steps": 10, "stage1.disc_start": 20, "stage1.batch": 8,
    "stage2.steps": 16, "stage2.batch": 8, "stage2.probe_every": 8, "stage2.probe_scenes": 8,
    "evaluation.scenes": 10, "measures.val": 2, "measures.test": 3,
}
VARIANTS, SEED = "sc,te", 0


def main() -> int:
    """Runs all steps, also after a failure. Exit code: 0 all passed, 1 not, 130 interrupted."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _interrupt)
    began, failed = time.monotonic(), []
    with (tempfile.TemporaryDirectory(prefix="tevq-test-", ignore_cleanup_errors=True) as place,
          beside(Path(place) / "pytest.txt", "-m", "pytest", "-q", "--durations=5", "-n", "3",
                 "--dist", "loadfile") as pytest):
        steps = {
            "ruff": lambda: python("-m", "ruff", "check", "."),
            "tiny study": lambda: study(Path(place)),
            "nbval": lambda: nbval(Path(place)),
            "pytest": pytest,
        }
        for name, step in steps.items():
            since = time.monotonic()
            print(f"== {name}", flush=True)
            passed = step()
            print(f"== {name}: {'passed' if passed else 'FAILED'} after "
                  f"{time.monotonic() - since:.0f} s", flush=True)
            failed += [] if passed else [name]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all passed"
    print(f"== {verdict} in {time.monotonic() - began:.0f} s")
    return int(bool(failed))


def command(results: Path, *words: str, variants: str = VARIANTS) -> list[str]:
    """The command that runs all notebooks with the tiny settings."""
    sets = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    return ["-m", "tevq", "--preset", "smoke", "--variants", variants, "--seeds", str(SEED), *sets,
            "--results", str(results), *words]


def study(work: Path) -> bool:
    """Runs all notebooks, then the same command again, which must not run any."""
    if not python(*command(work / "results")):
        return False
    before = written(work / "results")
    passed = python(*command(work / "results"))
    after = written(work / "results")
    if again := [name for name in after if after[name] != before.get(name)]:
        print(f"the same command ran notebooks again: {', '.join(again)}")
    return passed and bool(before) and not again


def written(results: Path) -> dict[str, int]:
    """Executed notebook -> time of its last change."""
    return {path.name: path.stat().st_mtime_ns for path in results.glob("*/notebooks/*.ipynb")}


def nbval(work: Path) -> bool:
    """Runs copies of the stored notebooks and compares what checked cells print."""
    copies = write_copies(NOTEBOOKS, work / "notebooks", work / "results")
    return python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={work}",
                  "--nbval-lax", "--nbval-cell-timeout=300", *map(str, copies))


def write_copies(folder: Path, target: Path, results: Path) -> list[Path]:
    """Copies of the notebooks with tiny parameters, in `target`."""
    target.mkdir(parents=True)
    copies = []
    for path in sorted(folder.glob("*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            if cell.get("outputs"):
                cell["execution_count"] = 1  # stripped; nbval wants one where there is an output
            if "parameters" in cell["metadata"].get("tags", []):
                values = {"overrides": TINY, "results": str(results)}
                if "variants = " in "".join(cell["source"]):
                    values |= {"variants": VARIANTS, "seeds": str(SEED)}
                cell["source"] = [*cell["source"], *(f"\n{k} = {v!r}" for k, v in values.items())]
        copies.append(target / path.name)
        copies[-1].write_text(json.dumps(book), encoding="utf-8")
    return copies


def environment(**more: str) -> dict[str, str]:
    """The caller's variables, with tevq importable, this Python's own kernel, and one thread.

    Operations are tiny here: a second thread gains nothing, and beside a busy core it only waits.
    """
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1",
           "JUPYTER_PREFER_ENV_PATH": "1"}
    return {"OMP_NUM_THREADS": "1"} | os.environ | own | more


def python(*words: str) -> bool:
    """Runs this Python in the repository; True when it exits with 0."""
    return subprocess.call([sys.executable, *words], cwd=ROOT, env=environment()) == 0


@contextlib.contextmanager
def beside(log: Path, *words: str) -> Iterator[Callable[[], bool]]:
    """Runs this Python as `python` does, but while the body runs.

    Yields what waits for its end, prints what it said, and returns True when it exited with 0.
    """
    with log.open("wb") as said:
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=said,
                                 stderr=subprocess.STDOUT, env=environment())

    def finish() -> bool:
        code = child.wait()
        print(log.read_text(encoding="utf-8", errors="replace"), end="", flush=True)
        return code == 0

    try:
        yield finish
    finally:
        child.terminate()  # after a failure of the body; otherwise it has ended
        child.wait()


def _interrupt(*_: object) -> NoReturn:
    sys.exit(130)


if __name__ == "__main__":
    sys.exit(main())
