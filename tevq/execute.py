"""One notebook in a process of its own: papermill, the executed copy, its web page, its log.

`launch` starts `python -m tevq.execute` and waits for it. The copies are put in place only after
the last cell has run, so what lies in the notebooks folder is always complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tevq.graph import ROOT
from tevq.runs import budget

if TYPE_CHECKING:
    import nbformat

START_TRIES = 3  # a kernel that does not come up is started again
START_SECONDS = 120
GRACE_SECONDS = 10  # between asking a child to stop and killing it
STALL_SECONDS = 600  # without output and without processor time: nothing will come any more
STALL_SHARE = 0.05  # of one core, which a waiting kernel and its client stay far below


@dataclass(frozen=True)
class Request:
    """What a child is told, as JSON."""

    source: str  # stored notebook
    target: str  # executed copy; the web page lies beside it
    failed: str  # where the copy of a failing notebook goes
    title: str
    parameters: dict[str, Any]
    deadline: float = 0.0  # of its trainings, in seconds since 1970; 0 = none


@dataclass(frozen=True)
class Outcome:
    """How one execution ended: `done`, `failed`, or `stopped` (by the budget or Ctrl-C).

    Never started: `left out` because it needs a failed one, `not started` because time was up.
    """

    status: str
    seconds: float = 0.0
    error: str = ""


def launch(request: Request, log: Path, threads: int, stop: threading.Event) -> Outcome:
    """Executes one notebook in a child process; never raises for what happens in there.

    threads: processor threads for torch and NumPy (0 = leave alone); stop: set to end it early.
    """
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tevq.execute", json.dumps(asdict(request))]
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                 stderr=subprocess.STDOUT, env=environment(threads),
                                 start_new_session=True)
        watch = StallWatch(child.pid, log)
        while child.poll() is None:
            if stop.wait(0.1):
                _end(child)
                return Outcome("stopped", time.monotonic() - began)
            if watch.stalled():
                _end(child)
                return Outcome("failed", time.monotonic() - began, "stood still for "
                               f"{STALL_SECONDS / 60:.0f} min, ended; run the same command again")
    seconds = time.monotonic() - began
    if child.returncode == 0:
        return Outcome("done", seconds)
    if child.returncode == budget.EXIT_CODE:
        return Outcome("stopped", seconds, last_line(log))
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Outcome("failed", seconds, f"killed by {name}; most often out of memory")
    return Outcome("failed", seconds, last_line(log) or f"exit code {child.returncode}")


class StallWatch:
    """Tells when a process and its children neither print nor compute any more."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        self.since, self.before = time.monotonic(), self._state()

    def _state(self) -> tuple[float, int]:
        """Processor seconds of the living processes, bytes printed."""
        seconds = 0.0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    seconds += times.user + times.system
        return seconds, self.log.stat().st_size

    def stalled(self) -> bool:
        """True once, after STALL_SECONDS of standing still; cheap to ask often."""
        passed = time.monotonic() - self.since
        if passed < STALL_SECONDS:
            return False
        seconds, printed = self._state()
        still = abs(seconds - self.before[0]) < STALL_SHARE * passed and printed == self.before[1]
        self.since, self.before = time.monotonic(), (seconds, printed)
        return still


def last_line(log: Path) -> str:
    """Newest line of a log, without colour codes and progress-bar overwriting."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.path.getsize(log) - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def environment(threads: int) -> dict[str, str]:
    """The caller's, with tevq importable, threads limited, and this Python's own kernel first."""
    found = dict(os.environ)
    paths = [str(ROOT), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    found["JUPYTER_PREFER_ENV_PATH"] = "1"
    found["PYTHONUNBUFFERED"] = "1"
    if threads and "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(threads)
    return found


def _end(child: subprocess.Popen) -> None:
    """Asks, then makes; the kernel notices the end of its parent by itself."""
    for kind in (signal.SIGINT, signal.SIGKILL):
        if child.poll() is None:
            os.killpg(child.pid, kind)
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def main() -> int:
    """The child. Last line of its output: what went wrong."""
    # jsonschema would spend 3 s on its grammar to check a kind of address no notebook contains
    sys.modules["rfc3987_syntax"] = None
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    request = Request(**json.loads(sys.argv[1]))
    if request.deadline:
        os.environ[budget.VARIABLE] = str(request.deadline)  # for the kernel
    target, failed = Path(request.target), Path(request.failed)
    for folder in (target.parent, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        notebook = _execute(request)
    except KeyboardInterrupt:
        print("stopped")
        return 130
    except Exception as error:
        print(_describe(error))
        late = getattr(error, "ename", "") == budget.OutOfTimeError.__name__
        return budget.EXIT_CODE if late else 1
    import nbformat

    from tevq import webpage

    _tidy(notebook, request)
    page = target.with_suffix(".html")
    webpage.write(notebook, page.with_suffix(".partial"), request.title)
    nbformat.write(notebook, target.with_suffix(".partial.ipynb"))
    os.replace(page.with_suffix(".partial"), page)
    os.replace(target.with_suffix(".partial.ipynb"), target)
    failed.unlink(missing_ok=True)
    return 0


def _execute(request: Request) -> nbformat.NotebookNode:
    """The executed notebook; a kernel that does not start is tried again."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    for attempt in range(1, START_TRIES + 1):
        # Unix sockets instead of ports: two kernels starting at once cannot pick the same
        with tempfile.TemporaryDirectory(prefix="tevq-") as sockets:
            transport = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
            try:
                return papermill.execute_notebook(
                    request.source, request.failed, request.parameters,
                    cwd=str(Path(request.source).parent), start_timeout=START_SECONDS,
                    progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stdout,
                    config=transport)
            except PapermillExecutionError:
                raise
            except Exception as error:
                if attempt == START_TRIES or _has_begun(Path(request.failed)):
                    raise
                print(f"kernel did not start ({error}); trying again", flush=True)
    raise AssertionError("unreachable")


def _has_begun(path: Path) -> bool:
    """True when a cell of the partial copy has been run to its end."""
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError):  # no copy, or half a copy
        return False
    return any(c["metadata"].get("papermill", {}).get("status") == "completed" for c in cells)


def _describe(error: Exception) -> str:
    """One line for the summary."""
    if hasattr(error, "ename"):  # papermill's error about a failing cell
        text = str(error.evalue).strip() or "(no message)"
        return f"In [{error.exec_count}]: {error.ename}: {' '.join(text.split())}"
    if type(error).__name__ == "DeadKernelError":
        return "the kernel died; most often the machine ran out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _tidy(notebook: nbformat.NotebookNode, request: Request) -> None:
    """Keeps parameters and duration, drops paths of this machine and the time of every cell."""
    record = notebook.metadata.pop("papermill", {})
    notebook.metadata["tevq"] = {"parameters": request.parameters,
                                 "seconds": round(record.get("duration") or 0)}
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)


def _joined(outputs: list) -> list:
    """Text that was printed bit by bit as one output."""
    found = []
    for output in outputs:
        last = found[-1] if found else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            found.append(output)
    return found


def _follow_parent(parent: int) -> None:
    """Ends this process when the one that started it is gone (killed), on Linux and macOS."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
