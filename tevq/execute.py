"""One notebook in a process of its own: papermill, the executed copy, its web page, its log.

`launch` starts `python -m tevq.execute` and waits for it. The executed copy is put in place only
after the last cell has run, so every file in the folder of notebooks is complete.
"""

import base64
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tevq.config import ROOT
from tevq.runs import budget
from tevq.runs.storage import write_atomically

GRACE_SECONDS = 10  # for a child to end its kernel
UNFINISHED = ("stopped", "not started")  # outcomes after which the same command goes on
# Variables of the user that would change what a kernel runs, checks or draws; prefixes
LEAKING = ("JUPYTER", "IPYTHON", "PYTHONSTARTUP", "PYTHONIOENCODING", "PYTHONOPTIMIZE",
           "PYTHONWARNINGS", "PYTHONINSPECT", "MPLBACKEND", "MATPLOTLIBRC")
NO_PAGE = "no web page: "  # begins the line about a page that could not be made


@dataclass(frozen=True)
class Job:
    """One execution of one notebook; the child gets it as JSON."""

    label: str  # names the executed copy, e.g. 03_stage1-te-s0
    source: str  # stored notebook
    home: str  # what is written lies below
    parameters: dict[str, Any]
    made_from: dict[str, Any] = field(default_factory=dict)  # goes into the record
    planned: float = 0.0  # when, in seconds since 1970
    variables: dict[str, str] = field(default_factory=dict)  # of the environment, for the kernel
    gpus: list[str] = field(default_factory=list)  # of the machine, for its workers in turn
    signal: str = ""  # a file that is there as long as the command wants work
    page_only: bool = False  # it has been executed; only its web page is missing
    copies: dict[str, str] = field(default_factory=dict)  # notebook -> label to which links lead

    @property
    def copy(self) -> Path:
        """The executed notebook; its web page lies beside it."""
        return Path(self.home, "notebooks", f"{self.label}.ipynb")

    @property
    def log(self) -> Path:
        """What was printed; the copy of a failure lies beside it."""
        return Path(self.home, "logs", f"{self.label}.log")

    @property
    def record(self) -> Path:
        """What it was made from and when, once it has finished."""
        return self.log.with_suffix(".json")


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended: `done`, `failed`, or `stopped` (by the budget or Ctrl-C).

    Never started: `left out` because it needs a failed one, `not started` because time was up.
    """

    status: str
    seconds: float = 0.0
    text: str = ""  # what went wrong, in one line


def launch(job: Job, stopped: Callable[[], bool]) -> Outcome:
    """Executes one notebook in a child process; never raises for what happens in there.

    stopped: asked several times a second; True ends the child.
    """
    began, ended = time.monotonic(), False
    for path in (job.log, job.copy):
        path.parent.mkdir(parents=True, exist_ok=True)
    # the path of a socket may have 103 bytes
    short = len(os.fsencode(tempfile.gettempdir())) <= 60 or not os.access("/tmp", os.W_OK)
    with (job.log.open("wb") as output,
          tempfile.TemporaryDirectory(prefix="tevq-", dir=None if short else "/tmp") as scratch,
          subprocess.Popen(
              [sys.executable, "-m", "tevq.execute", json.dumps(asdict(job)), scratch],
              stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
              env=environment() | job.variables, start_new_session=True) as child):
        while child.poll() is None and not (ended := stopped()):
            time.sleep(0.1)  # the end of the block closes stdin, see _follow_parent
    seconds, code = time.monotonic() - began, child.returncode
    said = job.log.read_text(encoding="utf-8", errors="replace").strip()
    last = said.splitlines()[-1] if said else ""
    if ended or code == budget.EXIT_CODE:
        return Outcome("stopped", seconds, "" if ended else last)
    if code < 0:
        last = f"killed by {signal.Signals(-code).name}; most often out of memory"
    if code:
        return Outcome("failed", seconds, last or f"exit code {code}")
    return Outcome("done", seconds, last if last.startswith(NO_PAGE) else "")


def environment() -> dict[str, str]:
    """The caller's variables without those that leak into kernels, for a child of this Python.

    tevq can be imported there, text is UTF-8 in every locale, and a file `random.py` in the current
    folder is not taken for the module.
    """
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return {k: v for k, v in os.environ.items() if not k.startswith(LEAKING)} | {
        "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1",
        "PYTHONSAFEPATH": "1"}


def main() -> int:
    """The child. Last line of its output: what went wrong."""
    # jsonschema would spend 3 s on its grammar to check a kind of address no notebook contains
    sys.modules["rfc3987_syntax"] = None
    threading.Thread(target=_follow_parent, daemon=True).start()
    job = Job(**json.loads(sys.argv[1]))
    try:
        import nbformat

        notebook = (nbformat.read(job.copy, as_version=4) if job.page_only
                    else _write(_execute(job, Path(sys.argv[2])), job))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not hasattr(error, "ename"):  # papermill has printed the traceback of a cell
            traceback.print_exc()
        print(describe(error))
        late = getattr(error, "ename", "") == budget.OutOfTimeError.__name__
        return budget.EXIT_CODE if late else 1
    try:
        page = _page(notebook, f"{job.label} ({job.parameters['preset']})", job.copies.values())
        write_atomically(job.copy.with_suffix(".html"), page.encode())
    except Exception as error:  # the work is done; the next command makes the page alone
        traceback.print_exc()
        print(f"{NO_PAGE}{describe(error)}")
    return 0


def _follow_parent() -> None:
    """Ends this process when the one that started it closes its end of stdin, or is gone."""
    os.read(0, 1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _execute(job: Job, scratch: Path):
    """The executed notebook. Jupyter and IPython find nothing of the user, only this Python."""
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
        job.source, job.log.with_suffix(".ipynb"), job.parameters, kernel_name="python3",
        cwd=str(Path(job.source).parent), start_timeout=300, progress_bar=False,
        stdout_file=sys.stdout, stderr_file=sys.stdout, config=transport, coalesce_streams=True)


def describe(error: Exception) -> str:
    """One line for the summary."""
    if hasattr(error, "ename"):  # papermill's error about a failing cell
        text = str(error.evalue).strip() or "(no message)"
        return f"In [{error.exec_count}]: {error.ename}: {' '.join(text.split())}"
    if type(error).__name__ == "DeadKernelError":
        return "the kernel died; most often the machine ran out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write(notebook, job: Job):
    """Writes the executed copy, without paths of this machine and times of cells; returns it.

    Its links lead to other executed copies.
    """
    import nbformat

    record = notebook.metadata.pop("papermill", {})
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the kernel, which has ended
    notebook.metadata["tevq"] = {
        "parameters": job.parameters, "seconds": round(record.get("duration") or 0),
        "memory_mb": round(most / 1024 ** (2 if sys.platform == "darwin" else 1))}
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "markdown":
            cell.source = relinked(cell.source, job)
    write_atomically(job.copy, nbformat.writes(notebook).encode())
    job.copy.with_suffix(".html").unlink(missing_ok=True)  # of an earlier copy
    job.log.with_suffix(".ipynb").unlink(missing_ok=True)
    return notebook


def relinked(markdown: str, job: Job) -> str:
    """The links of a stored notebook as they must be in its executed copy."""
    def seen_from_the_copy(match: re.Match) -> str:
        link = Path(match[1])
        if link.suffix == ".ipynb" and link.stem in job.copies:
            return f"]({job.copies[link.stem]}.ipynb"
        place = os.path.relpath(Path(job.source).parent / link, job.copy.parent)
        return f"]({Path(place).as_posix()}"

    return re.sub(r"\]\((?!#|[a-z]+:)([^)#\s]+)", seen_from_the_copy, markdown)


# nbconvert's page fetches MathJax, mermaid and require.js. Read without a network it would show
# formulas as TeX. So formulas become MathML, which browsers draw themselves, and no script is left.
# (Widgets need a running kernel: beside every widget of the notebooks there is a picture.)
_TEMPLATE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {name} %}}{text}{{% endblock %}}" for name, text in {
        "html_head_js": "", "html_head_js_mathjax": "", "html_head_js_mermaidjs": "",
        "jupyter_widgets": "", "html_head_css": "{{ super() }}<style>{{ resources.own }}</style>",
        "input": "{% if cell.metadata.folded %}<details><summary>Code, {{ cell.metadata.folded }}"
                 " lines</summary>{% endif %}{{ super() }}"
                 "{% if cell.metadata.folded %}</details>{% endif %}"}.items())
_STYLE = Path(__file__).parent / "site/static/notebook.css"
_FOLDED = 8  # longer code that draws a figure or a table is folded on the page, twice as long any
_READABLE = 0.7  # of their size, at which figures are shown at least: their words have 14 pixels
# code first, so that a dollar sign in code does not begin a formula
_FORMULA = re.compile(
    r"```.*?```|`[^`\n]*`|\\\$|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$]*?[^\s$])?)\$",
    re.DOTALL)


def _page(notebook, title: str, copies: Iterable[str] = ()) -> str:
    """An executed notebook as HTML that needs no network.

    copies: labels of executed notebooks; links lead to their pages.
    """
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        lines = cell.source.count("\n") + 1
        if cell.cell_type == "markdown":
            cell.source = mathml(cell.source)
            for label in copies:
                cell.source = cell.source.replace(f"]({label}.ipynb", f"]({label}.html")
        elif lines > _FOLDED * (1 if _draws(cell) else 2) and not cell.metadata.get("tags"):
            cell.metadata["folded"] = lines  # cells with tags check what the text says
    exporter = HTMLExporter(template_file="page", extra_loaders=[DictLoader({"page": _TEMPLATE})])
    page = exporter.from_notebook_node(notebook, {"own": _STYLE.read_text(encoding="utf-8")})[0]
    page = re.sub(r"<caption>(.*?)</caption>", r"<caption><span>\1</span></caption>", page)
    return re.sub(r'<img (?=[^>]*src="data:image/png;base64,([^"]{32}))', _with_width, page)


def _draws(cell) -> bool:
    return any({"image/png", "text/html"} & set(x.get("data", ())) for x in cell.outputs)


def _with_width(match: re.Match) -> str:
    """Begin of an <img> with the least width at which the words of the figure can be read."""
    width = int.from_bytes(base64.b64decode(match[1])[16:20], "big")  # as PNG files begin
    return f'<img style="min-width: {_READABLE * width:.0f}px" '


def mathml(markdown: str) -> str:
    """Markdown with its formulas as MathML; what cannot be converted stays as it is."""
    from latex2mathml.converter import convert

    def replaced(match: re.Match) -> str:
        if not (formula := match["block"] or match["inline"]):  # code
            return match[0]
        with contextlib.suppress(Exception):  # the converter raises many kinds
            text = convert(formula.strip().replace(r"\arg", r"\mathrm{arg}"),
                           display="block" if match["block"] else "inline")
            if "\\" not in text:  # else a command that it does not know
                return text.replace("*", "&#42;").replace("_", "&#95;")  # no emphasis in Markdown
        return match[0]

    return _FORMULA.sub(replaced, markdown)


if __name__ == "__main__":
    sys.exit(main())
