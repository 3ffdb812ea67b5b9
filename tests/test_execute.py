"""Executing notebooks for real: rendered pages, failures, a stop, a kernel that does not start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import write_all, write_notebook

from tevq import execute, graph
from tevq.__main__ import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


def test_a_kernel_that_does_not_start_is_tried_again(monkeypatch, tmp_path, capsys):
    import papermill

    calls = []

    def flaky(*words, **more):
        calls.append(more["config"].KernelManager.ip)
        if len(calls) < 3:
            raise RuntimeError("Kernel didn't respond in 120 seconds")
        return "executed"

    monkeypatch.setattr(papermill, "execute_notebook", flaky)
    request = execute.Request("a.ipynb", "b.ipynb", str(tmp_path / "c.ipynb"), "title", {})
    assert execute._execute(request) == "executed"
    assert len(set(calls)) == 3 and capsys.readouterr().out.count("trying again") == 2
    # not once a cell has run: training would start over
    calls.clear()
    cells = [{"metadata": {"papermill": {"status": "completed"}}}]
    (tmp_path / "c.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(RuntimeError):
        execute._execute(request)


@pytest.mark.promise("grid")
def test_real_notebooks_good_and_bad(tmp_path, folder, capsys):
    """01 is rendered; 02 sets a name that is no parameter; the kernel of 05 dies."""
    write_notebook(folder, "01_dataset", "print(settings := study.settings.preset, 'is in')")
    path = folder / "02_aliasing.ipynb"
    path.write_text(path.read_text().replace("preset = 'smoke'", "preset = 'smoke'\\nprset = 1"))
    write_notebook(folder, "05_evaluation", "import os\nos.kill(os.getpid(), 9)")
    words = ["--notebooks", "01,02,05", "--variants", "te", "--results", str(tmp_path / "results")]
    assert main(words, folder) == 1
    said = capsys.readouterr().out
    assert "1 done, 0 unchanged, 2 failed" in said and "05_evaluation: the kernel died" in said
    assert "failed: 02_aliasing: In [3]: SettingsError: unknown parameter of 02_aliasing" in said
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
    child = subprocess.Popen([sys.executable, "-c", program, *words], cwd=graph.ROOT,
                             env=execute.environment(0), stderr=subprocess.PIPE, text=True)
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


@pytest.mark.promise("grid")
def test_a_notebook_that_stands_still_is_ended(tmp_path, folder, monkeypatch):
    """Planted fault: no watch; a lost message of the kernel then hangs the whole study."""
    import threading

    monkeypatch.setattr(execute, "STALL_SECONDS", 8)
    write_notebook(folder, "01_dataset", "import threading\nthreading.Event().wait(300)")
    paths = [tmp_path / name for name in ("done.ipynb", "failed.ipynb", "log.txt")]
    request = execute.Request(str(folder / "01_dataset.ipynb"), str(paths[0]), str(paths[1]), "",
                              {"preset": "smoke", "overrides": "", "results": ""})
    outcome = execute.launch(request, paths[2], 1, threading.Event())
    assert outcome.status == "failed" and "stood still" in outcome.error
    assert outcome.seconds < 120 and not paths[0].exists()
