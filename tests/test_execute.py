"""Executing notebooks for real: rendered pages, failures, a stop, the user's own settings."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fakes import write_all, write_notebook

from tevq import execute
from tevq.__main__ import main
from tevq.config import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


@pytest.mark.promise("grid")
def test_real_notebooks_good_and_bad(tmp_path, folder, capsys):
    """01 is rendered; a cell of 02 fails; the kernel of 05 dies."""
    write_notebook(folder, "01_dataset", "print(settings := study.settings.preset, 'is in')")
    write_notebook(folder, "02_aliasing", "from tevq import presets",
                   "presets.load('smoke', 'tt')")
    write_notebook(folder, "05_evaluation", "import os\nos.kill(os.getpid(), 9)")
    words = ["--notebooks", "01,02,05", "--variants", "te", "--results", str(tmp_path / "results")]
    assert main(words, folder) == 1
    said = capsys.readouterr().out
    assert "1 done, 0 unchanged, 2 failed" in said and "05_evaluation: the kernel died" in said
    assert "failed: 02_aliasing: In [5]: SettingsError: unknown variant 'tt'" in said
    home = tmp_path / "results/smoke"
    assert not list(home.glob("notebooks/02*")) and (home / "logs/02_aliasing.ipynb").exists()
    copy = json.loads((home / "notebooks/01_dataset.ipynb").read_text())
    assert copy["cells"][-1]["outputs"][0]["text"] == ["smoke is in\n"]
    assert copy["metadata"]["tevq"]["parameters"]["preset"] == "smoke"
    page = (home / "notebooks/01_dataset.html").read_text()
    assert "<math" in page and "smoke is in" in page
    assert "<script" not in page  # nothing is fetched when it is opened
    assert "smoke is in" in (home / "logs/01_dataset.log").read_text()


def test_ctrl_c_ends_the_children_and_says_how_to_go_on(tmp_path, folder):
    beacon = tmp_path / "began"
    write_notebook(folder, "01_dataset",
                   f"import os, pathlib, time\nbeacon = pathlib.Path({str(beacon)!r})\n"
                   "beacon.write_text(str(os.getpid()))\ntime.sleep(100)")
    program = ("import sys; from pathlib import Path; from tevq.__main__ import main;"
               f"sys.exit(main(sys.argv[1:], Path({str(folder)!r})))")
    words = ["--notebooks", "01", "--results", str(tmp_path / "results")]
    child = subprocess.Popen([sys.executable, "-c", program, *words], cwd=ROOT,
                             env=execute.environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (beacon.exists() and beacon.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    assert "the same command goes on" in child.communicate(timeout=60)[1]
    assert child.returncode == 130
    kernel = int(beacon.read_text())
    while time.monotonic() < deadline and _alive(kernel):
        time.sleep(0.1)
    assert not _alive(kernel)
    assert not list((tmp_path / "results/smoke/notebooks").iterdir())


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def job(folder: Path, home: Path) -> execute.Job:
    """Notebook 01."""
    values = {"preset": "smoke", "overrides": "", "results": ""}
    return execute.Job("01", str(folder / "01_dataset.ipynb"), str(home), values)


@pytest.mark.promise("grid")
def test_a_kernel_that_is_killed_in_a_cell_fails_its_notebook(tmp_path, folder):
    """Planted fault: nobody looks whether the kernel lives; the command then waits for ever."""
    beacon = tmp_path / "kernel"
    write_notebook(folder, "01_dataset", "import os, pathlib, time",
                   f"pathlib.Path({str(beacon)!r}).write_text(str(os.getpid()))\ntime.sleep(300)")
    killed = []

    def kill() -> bool:
        if not killed and beacon.exists() and beacon.read_text():
            os.kill(int(beacon.read_text()), signal.SIGKILL)
            killed.append(time.monotonic())
        return False

    outcome = execute.launch(job(folder, tmp_path), kill)
    assert killed and time.monotonic() < killed[0] + 60
    assert outcome.status == "failed" and "the kernel died" in outcome.text
    assert not (tmp_path / "notebooks/01.ipynb").exists()


@pytest.mark.promise("grid")
def test_nothing_of_the_user_reaches_a_kernel(tmp_path, folder, monkeypatch):
    """Planted faults: any one of the variables passed on; sockets in a long TMPDIR; text in the
    encoding of the locale; the current folder searched for modules; another Python's kernel."""
    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    user, long = tmp_path / "user", tmp_path / ("long" * 20)
    long.mkdir()
    startup = "variant = 'leaked'\nleaked = 1\n"
    write(user / "ipython/profile_default/startup/00.py", startup)
    write(user / "config/jupyter_config.json", "no json")
    wrong = json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"})
    write(user / "data/kernels/python3/kernel.json", wrong)
    write(user / "data/nbconvert/templates/lab/index.html.j2", "leaked")
    write(user / "here/random.py", "raise ValueError('leaked')")
    write(user / "matplotlib/matplotlibrc", "lines.linewidth: 77\n")
    for name, value in {
            "IPYTHONDIR": user / "ipython", "JUPYTER_PATH": user / "data",
            "JUPYTER_DATA_DIR": user / "data", "JUPYTER_CONFIG_DIR": user / "config",
            "PYTHONSTARTUP": write(user / "startup.py", startup), "MPLBACKEND": "no_such",
            "MPLCONFIGDIR": user / "matplotlib", "PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error",
            "TMPDIR": long, "LANG": "C", "LC_ALL": "POSIX", "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "PIP_USER": "1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("tempfile.tempdir", None)  # looked up again
    monkeypatch.chdir(user / "here")
    write_notebook(
        folder, "01_dataset", "import random, sys, pathlib",
        "print('→', 'leaked' in globals(), 'variant' in globals(), sys.executable)",
        "pathlib.Path('text').write_text('→')\nassert pathlib.Path('text').read_bytes() != b'?'",
        "from matplotlib import pyplot\npyplot.figure()\nprint(random.__file__)",
        "print('width', pyplot.rcParams['lines.linewidth'], 'debug', __debug__)")
    outcome = execute.launch(job(folder, tmp_path), lambda: False)
    said = (tmp_path / "logs/01.log").read_text(encoding="utf-8")
    assert outcome.status == "done" and not outcome.text, said
    assert f"→ False False {sys.executable}" in said and "here/random.py" not in said
    assert "width 1.5 debug True" in said
    page = (tmp_path / "notebooks/01.html").read_text(encoding="utf-8")
    assert "→" in page and "<math" in page


def test_a_random_py_in_the_current_folder_is_not_taken_for_the_module(tmp_path, folder):
    """Planted fault: the current folder first in the search path of children."""
    (tmp_path / "random.py").write_text("raise ValueError('leaked')")
    words = [sys.executable, "-m", "tevq", "--dry-run"]
    if sys.version_info < (3, 11):
        pytest.skip("older Pythons search the current folder first")
    subprocess.run(words, cwd=tmp_path, env=execute.environment(), check=True)


def test_work_is_kept_when_its_page_cannot_be_made(tmp_path, folder, monkeypatch, capsys):
    """Planted faults: the last line of a traceback for a reason; a failure; executed again."""
    def fail(*words):
        raise ValueError("told\n  so")

    page = execute._page
    monkeypatch.setattr(execute, "_page", fail)
    monkeypatch.setattr(execute, "_follow_parent", lambda: None)
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR",
                 "IPYTHONDIR", "MATPLOTLIBRC"):
        monkeypatch.setenv(name, "")  # so that they are put back
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(sys, "argv", ["", json.dumps(asdict(job(folder, tmp_path))),
                                      tempfile.mkdtemp(prefix="tevq-")])
    assert execute.main() == 0
    said = capsys.readouterr().out.strip().split("\n")[-1]
    assert said == "no web page: ValueError: told so"
    assert json.loads((tmp_path / "notebooks/01.ipynb").read_text())["cells"]
    monkeypatch.setattr(execute, "_page", page)
    monkeypatch.setattr(execute, "_execute", fail)
    again = replace(job(folder, tmp_path), page_only=True)
    monkeypatch.setattr(sys, "argv", ["", json.dumps(asdict(again)), ""])
    assert execute.main() == 0 and (tmp_path / "notebooks/01.html").exists()


def test_formulas_become_mathml_and_code_does_not():
    text = execute.mathml(r"a $x_i^*$ b `$y$` \$5 $$\frac{1}{K^2}$$" "\n```\n$z$\n```")
    assert text.count("<math") == 2 and "`$y$`" in text and r"\$5" in text and "\n$z$\n" in text
    assert "_" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert "*" not in text  # either would start emphasis in Markdown
    for unknown in (r"$\begin{nosuch}$", r"$\nosuch x$"):
        assert execute.mathml(unknown) == unknown
    assert "\\" not in execute.mathml(r"$\arg\min_j$")
