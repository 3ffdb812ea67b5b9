"""The grid on Dask workers: same files, a killed worker, a stop, and wrong input."""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fakes import write_all, write_notebook
from small import TINY

from tevq import cluster, execute
from tevq.__main__ import main
from tevq.config import SettingsError

distributed = pytest.importorskip("distributed")

# Trains Stage 1 with a checkpoint after every step; in the first execution of te it stands still
# after the third one and writes down who its worker is.
TRAINING = """\
import os, pathlib, time
import psutil
from tevq import loop, stage1
stage1.KMEANS_VECTORS = 400
begin, save = loop.Loop.__init__, loop.Loop.save

def always_save(self, run, parts, total, save_seconds=60):
    begin(self, run, parts, total, save_seconds=-1)

def save_and_wait(self, step):
    save(self, step)
    beacon = pathlib.Path({beacon!r})
    if self.run.name.startswith("stage1/digits-te") and step == 3 and not beacon.exists():
        worker = psutil.Process(os.getppid()).ppid()  # kernel, papermill, worker
        beacon.with_suffix(".new").write_text(str(worker))
        beacon.with_suffix(".new").rename(beacon)
        time.sleep(1000)

loop.Loop.__init__, loop.Loop.save = always_save, save_and_wait
run = stage1.train(study.settings, study.results)
"""


@pytest.fixture(scope="module")
def dask():
    """A running cluster of two worker processes; its address."""
    with cluster._local(2) as running:
        yield running.scheduler_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


def wait_for(path: Path) -> None:
    until = time.monotonic() + 240
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert path.exists()


def files(results: Path) -> list[str]:
    """Everything a study leaves behind, but logs of what happened on the way."""
    return sorted(str(path.relative_to(results)) for path in results.rglob("*")
                  if path.is_file() and "logs" not in path.parts)


def test_a_killed_worker_loses_nothing(tmp_path, folder, dask, capsys):
    """Planted faults: the notebook is not tried again; it starts from step 0."""
    beacon = tmp_path / "beacon"
    write_notebook(folder, "03_stage1", TRAINING.format(beacon=str(beacon)))
    sets = [f"--set={name}={value}" for name, value in TINY.items()]
    words = ["--notebooks", "01,03", "--variants", "sc,te", *sets, "--results"]
    there, here = tmp_path / "there", tmp_path / "here"

    def kill() -> None:
        wait_for(beacon)
        os.kill(int(beacon.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*words, str(there), "--scheduler", dask], folder) == 0
    killer.join()
    said = capsys.readouterr().out
    assert "2 Dask workers, none with a GPU" in said and "3 done, 0 unchanged" in said
    assert "going on at step 3 of 6" in (there / "smoke/logs/03_stage1-te-s0.log").read_text()
    assert not list(there.rglob(".cluster-*"))  # the marker is gone
    assert main([*words, str(here), "--jobs", "1"], folder) == 0
    # weights carry the digest of their content in their names, so these are compared too
    assert files(there) == files(here)
    capsys.readouterr()
    assert main([*words, str(there), "--scheduler", dask], folder) == 0
    assert "0 notebooks to run, 3 unchanged" in capsys.readouterr().out


def test_a_stop_ends_the_notebook_on_its_worker(tmp_path, folder, dask):
    """Planted fault: the marker is left, and the notebook runs on."""
    beacon, log = tmp_path / "kernel", tmp_path / "logs/01.log"
    write_notebook(folder, "01_dataset", "import os, pathlib, time",
                   f"pathlib.Path({str(beacon)!r}).write_text(str(os.getpid()))",
                   "time.sleep(1000)")
    request = execute.Request(
        str(folder / "01_dataset.ipynb"), str(tmp_path / "done.ipynb"),
        str(tmp_path / "failed.ipynb"), "", {"preset": "smoke", "overrides": "", "results": ""})
    stop = threading.Event()
    threading.Thread(target=lambda: (wait_for(beacon), stop.set()), daemon=True).start()
    with cluster.connect(tmp_path, folder, dask, say=lambda text: None) as pool:
        assert pool.launch(request, log, 1, stop).status == "stopped"
        kernel, until = int(beacon.read_text()), time.monotonic() + 20
        while time.monotonic() < until and psutil.pid_exists(kernel):
            time.sleep(0.1)
        assert not psutil.pid_exists(kernel)


def test_every_notebook_gets_a_gpu_of_its_own(tmp_path, folder, monkeypatch, capsys):
    """Planted fault: workers that all see every GPU."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    write_notebook(folder, "03_stage1", f"""\
import os, pathlib, time
place = pathlib.Path({str(tmp_path)!r})
(place / f"{{variant}}.device").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
until = time.monotonic() + 100
while len(list(place.glob("*.device"))) < 2 and time.monotonic() < until:
    time.sleep(0.1)""")
    words = ["--notebooks", "03", "--variants", "sc,te", "--workers", "2"]
    assert main([*words, "--results", str(tmp_path / "results")], folder) == 0
    assert "2 Dask workers, 2 with a GPU" in capsys.readouterr().out
    assert sorted(path.read_text() for path in tmp_path.glob("*.device")) == ["0", "1"]


def refused(connect) -> str:
    """The one line with which something is refused."""
    with pytest.raises(SettingsError) as caught, connect:
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_worker_that_could_not_work_is_named(tmp_path, folder, dask, monkeypatch):
    """Planted faults: each of the three not looked at."""
    def connect():
        return cluster.connect(tmp_path / "results/smoke", folder, dask)

    def hide():
        sys.hidden = {name: sys.modules.pop(name) for name in list(sys.modules)
                      if name.split(".")[0] == "tevq"}
        sys.modules["tevq"] = None

    def show():
        sys.modules.pop("tevq")
        sys.modules.update(sys.hidden)

    with distributed.Client(dask) as client:
        client.run(hide)
        assert "cannot import tevq" in refused(connect())
        client.run(show)
    monkeypatch.setattr(cluster, "SHARE_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "_marker",
                        lambda home: contextlib.nullcontext(tmp_path / "elsewhere/logs/marker"))
    assert f"does not see {tmp_path / 'elsewhere/logs'}" in refused(connect())
    monkeypatch.undo()
    monkeypatch.setattr(cluster, "code", lambda: "other")
    assert "has another version of tevq" in refused(connect())


def test_a_worker_with_many_threads_is_refused(tmp_path):
    """Planted fault: taken, so that a machine runs as many notebooks at once as it has cores."""
    class Client:
        def run_on_scheduler(self, function):
            return {"tcp://a:1": (16, {})}

    with pytest.raises(SettingsError, match="tcp://a:1 has 16 threads .* --nthreads 1"):
        cluster._check(Client(), tmp_path, tmp_path)


def test_a_late_worker_without_the_folder_fails_its_notebook_only(tmp_path):
    """Planted fault: not looked at."""
    request = execute.Request("a.ipynb", "b.ipynb", "c.ipynb", "", {})
    found = cluster.work(request, tmp_path / "a.log", 1, tmp_path / "gone/marker")
    assert found.status == "failed" and f"does not see {tmp_path / 'gone'}" in found.error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "says"), [
    ("--scheduler tcp://127.0.0.1:1", "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
    ("--scheduler nonsense://a", "no Dask scheduler answers at 'nonsense://a'"),
    ("--workers -1", "--workers -1 is not allowed"),
    ("--workers 2 --slurm a.yaml", "exclude each other"),
    ("--slurm missing.yaml", "--slurm missing.yaml: No such file"),
    ("--slurm bad.yaml", "is not YAML"),
    ("--slurm empty.yaml", "must hold the number of jobs"),
    ("--slurm slurm.yaml", "needs sbatch"),
])
def test_wrong_input_is_one_line_and_code_2(words, says, tmp_path, folder, monkeypatch, capsys):
    """Planted fault: the error of Dask or of the YAML reader passed on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    Path("bad.yaml").write_text("jobs: [1\n")
    Path("empty.yaml").write_text("cores: 1\n")
    Path("slurm.yaml").write_text("{jobs: 1, cores: 1, memory: 1GB}\n")
    assert main([*words.split(), "--results", str(tmp_path / "results")], folder) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize(("flag", "package"), [
    ("--workers=2", "distributed"), ("--slurm=a.yaml", "dask_jobqueue")])
def test_without_dask_one_line_says_what_to_install(tmp_path, folder, monkeypatch, capsys, flag,
                                                    package):
    """Planted fault: a traceback of an ImportError."""
    monkeypatch.setitem(sys.modules, package, None)
    assert main([flag, "--results", str(tmp_path / "results")], folder) == 2
    err = capsys.readouterr().err
    assert f"needs the package {package}" in err and "pip install -e .[cluster]" in err
    assert err.count("\n") == 1


SBATCH = """#!/bin/sh
if [ "$1" = --test-only ]; then
  ! grep -q nowhere || { echo "sbatch: error: no such partition" >&2; exit 1; }
  exit 0
fi
cp "$1" "$RECORD" 2>/dev/null || cat >"$RECORD"
nohup sh "$RECORD" >"$RECORD.log" 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in for sbatch that runs the job script itself, and knows no partition `nowhere`."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill "$1"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "job"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(not shutil.which("nohup"), reason="the stand-in for Slurm needs nohup")
def test_slurm_jobs_are_workers(tmp_path, folder, slurm, capsys):
    """Planted fault: no job is ever asked for."""
    Path("slurm.yaml").write_text(json.dumps({
        "jobs": 1, "cores": 1, "memory": "1GB", "job_extra_directives": ["--gres=gpu:1"],
        "worker_extra_args": ["--resources", "GPU=1"],
        "scheduler_options": {"host": "127.0.0.1", "dashboard": False}}))
    words = ["--notebooks", "01", "--slurm", "slurm.yaml", "--results", str(tmp_path / "results")]
    assert main(words, folder) == 0, (tmp_path / "job.log").read_text()
    said = capsys.readouterr().out
    assert "asked Slurm for 1 jobs" in said and "1 Dask workers, 1 with a GPU" in said
    assert "#SBATCH --gres=gpu:1" in (tmp_path / "job").read_text()


def test_a_refused_job_is_one_line(tmp_path, folder, slurm, capsys):
    """Planted fault: the answer of sbatch unread, so the command waits for ever."""
    Path("slurm.yaml").write_text(json.dumps({
        "jobs": 1, "cores": 1, "memory": "1GB", "queue": "nowhere",
        "scheduler_options": {"host": "127.0.0.1", "dashboard": False}}))
    assert main(["--slurm", "slurm.yaml", "--results", str(tmp_path / "results")], folder) == 2
    err = capsys.readouterr().err
    assert "Slurm refuses such a job: sbatch: error: no such partition" in err
    assert err.count("\n") == 1 and not (tmp_path / "job").exists()
