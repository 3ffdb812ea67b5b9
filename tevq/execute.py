"""One notebook in a process of its own: papermill, the executed copy, its web page, its log.

`launch` starts `python -m tevq.execute` and waits for it. The executed copy is put in place only
after the last cell has run, so every file in the folder of notebooks is complete.
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
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tevq.config import ROOT
from tevq.runs import budget

START_SECONDS = 300  # for a kernel on a busy machine
GRACE_SECONDS = 10  # between asking a child to stop and killing it
STALL_SECONDS = 600  # without output and without processor time: nothing will come any more
STALL_SHARE = 0.05  # of one core; a kernel and its client that wait stay far below
LONGEST = 60  # bytes of a folder for sockets: the path of a socket has 103 at most
UNFINISHED = ("stopped", "not started")  # outcomes after which the same command goes on
NO_PAGE = "no web page: "
# Variables of the user that would change what a kernel runs, checks or draws; prefixes
LEAKING = ("JUPYTER", "IPYTHON", "PYTHONSTARTUP", "PYTHONIOENCODING", "PYTHONOPTIMIZE",
           "PYTHONWARNINGS", "PYTHONINSPECT", "MPLBACKEND", "MATPLOTLIBRC")


@dataclass(frozen=True)
class Request:
    """What a child is told, as JSON."""

    source: str  # stored notebook
    target: str  # executed copy; the web page lies beside it
    failed: str  # where the copy of a failing notebook goes
    title: str
    parameters: dict[str, Any]
    variables: dict[str, str]  # of the environment, for the kernel


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: `done`, `failed`, or `stopped` (by the budget or Ctrl-C).

    Never started: `left out` because it needs a failed one, `not started` because time was up.
    """

    status: str
    seconds: float = 0.0
    text: str = ""  # what went wrong, in one line


def launch(request: Request, log: Path, stopped: Callable[[], bool], threads: int = 0) -> Outcome:
    """Executes one notebook in a child process; never raises for what happens in there.

    stopped: asked several times a second; True ends the child. threads: of torch and NumPy.
    """
    began = time.monotonic()
    for path in (log, Path(request.target)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with (log.open("wb") as output,
          tempfile.TemporaryDirectory(prefix="tevq-", dir=_short_folder()) as scratch):
        child = subprocess.Popen(
            [sys.executable, "-m", "tevq.execute", json.dumps(asdict(request)), scratch],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            env=environment(threads) | request.variables, start_new_session=True)
        status, text = _watch(child, log, stopped)
    seconds, last = time.monotonic() - began, last_line(log)
    if status:
        return Outcome(status, seconds, text)
    if child.returncode == budget.EXIT_CODE:
        return Outcome("stopped", seconds, last)
    if child.returncode < 0:
        last = f"killed by {signal.Signals(-child.returncode).name}; most often out of memory"
    if child.returncode:
        return Outcome("failed", seconds, last or f"exit code {child.returncode}")
    return Outcome("done", seconds, last if last.startswith(NO_PAGE) else "")


def _watch(child: subprocess.Popen, log: Path, stopped: Callable[[], bool]) -> tuple[str, str]:
    """Waits for the end of a child; status and reason when it was ended early, else nothing."""
    since, before = time.monotonic(), _activity(child.pid, log)
    while child.poll() is None:
        if stopped():
            _end(child)
            return "stopped", ""
        if (passed := time.monotonic() - since) > STALL_SECONDS:
            now = _activity(child.pid, log)
            if now[1] == before[1] and abs(now[0] - before[0]) < STALL_SHARE * passed:
                _end(child)
                return "failed", (f"stood still for {passed / 60:.0f} min, ended; run the same "
                                  "command again")
            since, before = time.monotonic(), now
        time.sleep(0.1)
    return "", ""


def _activity(pid: int, log: Path) -> tuple[float, int]:
    """Processor seconds of a process and its children, bytes printed."""
    seconds = 0.0
    with contextlib.suppress(psutil.Error):
        for one in (process := psutil.Process(pid), *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                seconds += sum(one.cpu_times()[:2])
    return seconds, log.stat().st_size


def _end(child: subprocess.Popen) -> None:
    """Asks, then makes; the kernel notices the end of its parent by itself."""
    for kind in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
            return


def last_line(log: Path) -> str:
    """Newest line of a log, without colour codes and progress-bar overwriting."""
    with log.open("rb") as file:
        file.seek(max(0, os.path.getsize(log) - 4000))
        text = re.sub(r"\x1b\[[\d;]*m", "", file.read().decode("utf-8", errors="replace"))
    lines = text.replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def environment(threads: int = 0) -> dict[str, str]:
    """The caller's variables without those that leak into kernels, for a child of this Python.

    tevq can be imported there, text is UTF-8 in every locale, and a file `random.py` in the current
    folder is not taken for the module. threads: of torch and NumPy (0: leave alone).
    """
    found = {k: v for k, v in os.environ.items() if not k.startswith(LEAKING)}
    paths = filter(None, (str(ROOT), found.get("PYTHONPATH")))
    found |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1",
              "PYTHONSAFEPATH": "1"}
    if threads:
        found.setdefault("OMP_NUM_THREADS", str(threads))
    return found


def _short_folder() -> str | None:
    """A temporary folder in which the paths of sockets are short enough."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= LONGEST or not os.access("/tmp", os.W_OK) else "/tmp"


def main() -> int:
    """The child. Last line of its output: what went wrong."""
    # jsonschema would spend 3 s on its grammar to check a kind of address no notebook contains
    sys.modules["rfc3987_syntax"] = None
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    request, page = Request(**json.loads(sys.argv[1])), None
    try:
        notebook = _execute(request, Path(sys.argv[2]))
        page = Path(request.target).with_suffix(".html")
        page.unlink(missing_ok=True)  # of an earlier copy
        _write(notebook, request)
    except KeyboardInterrupt:
        print("stopped")
        return 130
    except Exception as error:
        if not hasattr(error, "ename"):  # papermill has printed the traceback of a cell
            traceback.print_exc()
        print(describe(error))
        late = getattr(error, "ename", "") == budget.OutOfTimeError.__name__
        return budget.EXIT_CODE if late else 1
    try:
        write_page(notebook, page, request.title)
    except Exception as error:  # the notebook is done; its page is tried again by the next command
        traceback.print_exc()
        print(f"{NO_PAGE}{describe(error)}")
    return 0


def _execute(request: Request, scratch: Path):
    """The executed notebook. Jupyter and IPython find nothing of the user, only this Python."""
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
              "display_name": "Python 3", "language": "python"}
    place = scratch / "kernels" / "python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    (scratch / "matplotlibrc").touch()
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR",
                 "IPYTHONDIR", "MATPLOTLIBRC"):
        os.environ[name] = str(scratch)
    import papermill
    from traitlets.config import Config

    # Unix sockets instead of ports: two kernels starting at once cannot pick the same, and a
    # machine without any network will do
    transport = Config(KernelManager={"transport": "ipc", "ip": str(scratch / "k")})
    return papermill.execute_notebook(
        request.source, request.failed, request.parameters, kernel_name="python3",
        cwd=str(Path(request.source).parent), start_timeout=START_SECONDS, progress_bar=False,
        stdout_file=sys.stdout, stderr_file=sys.stdout, config=transport)


def describe(error: Exception) -> str:
    """One line for the summary."""
    if hasattr(error, "ename"):  # papermill's error about a failing cell
        text = str(error.evalue).strip() or "(no message)"
        return f"In [{error.exec_count}]: {error.ename}: {' '.join(text.split())}"
    if type(error).__name__ == "DeadKernelError":
        return "the kernel died; most often the machine ran out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write(notebook, request: Request) -> None:
    """Puts the executed copy in place, without paths of this machine and times of cells."""
    import nbformat

    record = notebook.metadata.pop("papermill", {})
    notebook.metadata["tevq"] = {"parameters": request.parameters,
                                 "seconds": round(record.get("duration") or 0)}
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        joined = []  # text that was printed bit by bit as one output
        for output in cell.get("outputs", ()):
            last = joined[-1] if joined else {}
            if output.output_type == "stream" and output.name == last.get("name"):
                last.text += output.text
            else:
                joined.append(output)
        if "outputs" in cell:
            cell.outputs = joined
    partial = Path(request.target).with_suffix(".partial.ipynb")
    nbformat.write(notebook, partial)
    os.replace(partial, request.target)
    Path(request.failed).unlink(missing_ok=True)


# nbconvert's page fetches MathJax, mermaid and require.js. Read without a network it would show
# formulas as TeX. So formulas become MathML, which browsers draw themselves, and no script is left.
# (Widgets need a running kernel: beside every widget of the notebooks there is a picture.)
_PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {name} %}}{{% endblock %}}" for name in (
        "html_head_js", "html_head_js_mathjax", "html_head_js_mermaidjs", "jupyter_widgets"))
# code first, so that a dollar sign in code does not begin a formula
_FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`|\\\$)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$]*?[^\s$])?)\$",
    re.DOTALL)


def write_page(notebook, path: Path, title: str) -> None:
    """Writes an executed notebook as one HTML file that needs no network."""
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
    exporter = HTMLExporter(template_file="page.j2", extra_loaders=[DictLoader({"page.j2": _PAGE})])
    partial = path.with_suffix(".partial")
    partial.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    os.replace(partial, path)


def mathml(markdown: str) -> str:
    """Markdown with its formulas as MathML; what cannot be converted stays as it is."""
    return _FORMULA.sub(_convert, markdown)


def _convert(match: re.Match) -> str:
    from latex2mathml.converter import convert

    if match["code"]:
        return match[0]
    formula = (match["block"] or match["inline"]).strip().replace(r"\arg", r"\mathrm{arg}")
    try:
        text = convert(formula, display="block" if match["block"] else "inline")
    except Exception:  # the converter raises many kinds; the source text is still readable
        return match[0]
    if "\\" in text:  # a command that it does not know
        return match[0]
    return text.replace("*", "&#42;").replace("_", "&#95;")  # would be emphasis in Markdown


def _follow_parent(parent: int) -> None:
    """Ends this process when the one that started it is gone (killed), on Linux and macOS."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
