"""Workers on other machines: same files, a killed worker, a stop, and wrong input."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from fakes import write_all, write_notebook
from small import FEATURES, TINY

from tevq import cluster, execute, pipeline
from tevq.__main__ import main
from tevq.config import SettingsError
from tevq.grid import choose
from tevq.train import stage1

distributed = pytest.importorskip("distributed")

# Trains Stage 1 with a checkpoint after each step. Its first execution stands still after the third
# one and writes down who its worker is.
TRAINING = """\
import os, pathlib, time
import psutil
from tevq.train import loop, stage1
stage1.KMEANS_VECTORS = {features}
begin, save = loop.Loop.__init__, loop.Loop.save

def always_save(self, *words, **more):
    begin(self, *words, **more | {{"save_seconds": -1}})

def save_and_wait(self, step):
    save(self, step)
    beacon = pathlib.Path({beacon!r})
    if self.run.name.startswith("stage1/") and step == 3 and not beacon.exists():
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
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0,
                                  dashboard_address="127.0.0.1:0") as running:
        yield running.scheduler_address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "notebooks")


def wait_for(path: Path) -> None:
    until = time.monotonic() + 240
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert path.exists()


def files(runs: Path) -> list[str]:
    """Everything that trainings leave behind."""
    return sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file())


def test_a_killed_worker_loses_nothing(tmp_path, folder, dask, capsys, monkeypatch):
    """Planted faults: the notebook is not tried again; it starts from step 0."""
    beacon = tmp_path / "beacon"
    write_notebook(folder, "03_stage1", TRAINING.format(
        beacon=str(beacon), features=FEATURES))
    sets = [f"--set={name}={value}" for name, value in TINY.items()]
    words = ["--notebooks", "03", "--variants", "te", *sets, "--results"]
    there, here = tmp_path / "there", tmp_path / "here"
    made = choose("smoke", "te", "0", "1", TINY, str(here))

    def kill() -> None:
        wait_for(beacon)
        os.kill(int(beacon.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main([*words, str(there), "--scheduler", dask], folder) == 0
    killer.join()
    said = capsys.readouterr().out
    assert "2 Dask workers, without GPUs" in said and "1 done, 0 unchanged" in said
    assert "goes on from step 3 of 6" in (there / "smoke/logs/03_stage1-te-s0.log").read_text()
    assert not list(there.rglob(".signal-*"))
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", FEATURES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    try:
        stage1.train(made.settings, made.results)
    finally:
        torch.set_num_threads(threads)
    # weights carry the digest of their content in their names, so these are compared too
    assert files(there / "smoke/runs") == files(here / "smoke/runs")
    capsys.readouterr()
    assert main([*words, str(there), "--scheduler", dask], folder) == 0
    assert "0 notebooks to run, 1 unchanged" in capsys.readouterr().out


def test_a_stop_ends_the_notebook_on_its_worker(tmp_path, folder, dask):
    """Planted fault: the signal is left, and the notebook runs on."""
    beacon = tmp_path / "kernel"
    write_notebook(folder, "01_dataset", "import os, pathlib, time",
                   f"pathlib.Path({str(beacon)!r}).write_text(str(os.getpid()))",
                   "time.sleep(1000)")
    made = pipeline.plan(choose(results=str(tmp_path)), "01", folder=folder)

    def interrupt() -> None:
        wait_for(beacon)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(made, scheduler=dask)
    kernel, until = int(beacon.read_text()), time.monotonic() + 20
    while time.monotonic() < until and psutil.pid_exists(kernel):
        time.sleep(0.1)
    assert not psutil.pid_exists(kernel) and not list(tmp_path.rglob(".signal-*"))


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
    words = ["--notebooks", "03", "--variants", "sc,te"]
    assert main([*words, "--results", str(tmp_path / "results")], folder) == 0
    assert "2 at a time" in capsys.readouterr().out
    assert sorted(path.read_text() for path in tmp_path.glob("*.device")) == ["0", "1"]


def refused(tmp_path: Path, folder: Path, address: str) -> str:
    """The one line with which a cluster is refused."""
    made = pipeline.plan(choose(results=str(tmp_path / "results")), folder=folder)
    with pytest.raises(SettingsError) as caught:
        pipeline.run(made, scheduler=address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_worker_that_could_not_work_is_named(tmp_path, folder, dask, monkeypatch):
    """Planted faults: each of these not looked at."""
    def hide():
        sys.hidden = {name: sys.modules.pop(name) for name in list(sys.modules)
                      if name.split(".")[0] == "tevq"}
        sys.modules["tevq"] = None

    def show():
        sys.modules.pop("tevq")
        sys.modules.update(sys.hidden)

    with distributed.Client(dask) as client:
        client.run(hide)
        said = refused(tmp_path, folder, dask)
        assert said.startswith("worker tcp://127.0.0.1:") and "tevq" in said
        client.run(show)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "code_digest", lambda: "other")
        assert "has another version of tevq" in refused(tmp_path, folder, dask)


def test_a_worker_without_the_folder_is_refused(tmp_path, folder, monkeypatch):
    """Planted fault: not looked at; every notebook then fails."""
    monkeypatch.setattr(cluster, "SHARE_SECONDS", 0.2)
    code, lost = cluster.code_digest(), tmp_path / "lost/.signal"
    assert f"does not see {lost.parent}" in cluster._complaint(lost, folder, code)
    assert "at the same path" in cluster._complaint(lost, tmp_path / "lost", code)
    client = SimpleNamespace(nthreads=lambda: {"tcp://here": 16})
    with pytest.raises(SettingsError, match="tcp://here has 16 threads; .* --nthreads 1"):
        cluster.check(client, lost, folder)


def test_a_late_worker_without_the_folder_fails_its_notebook_only(tmp_path, monkeypatch):
    """Planted fault: not looked at."""
    monkeypatch.setattr(distributed, "get_worker", lambda: None)
    found = cluster.work(execute.Job("01", "a.ipynb", str(tmp_path / "gone"), {}))
    assert found.status == "failed" and f"does not see {tmp_path / 'gone'}" in found.text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "says"), [
    ("--scheduler tcp://127.0.0.1:1", "no Dask scheduler with a worker answers at 'tcp://127.0.0.1:1'"),
    ("--scheduler nonsense://a", "no Dask scheduler with a worker answers at 'nonsense://a'"),
    ("--jobs 2 --slurm a.yaml", "--slurm: not allowed with argument --jobs"),
    ("--slurm missing.yaml", "No such file or directory: 'missing.yaml'"),
    ("--slurm bad.yaml", "while parsing a flow sequence"),
    ("--slurm empty.yaml", "jobs: None is not a whole number from 1"),
    ("--slurm slurm.yaml", "needs sbatch"),
    ("--slurm time.yaml", "walltime needs quotes, e.g. '08:00:00'"),
    ("--slurm words.yaml", "jobs: 'two' is not a whole number from 1"),
])
def test_wrong_input_is_one_line_and_code_2(words, says, tmp_path, folder, monkeypatch, capsys):
    """Planted fault: the error of Dask or of the YAML reader passed on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    Path("bad.yaml").write_text("jobs: [1\n")
    Path("empty.yaml").write_text("cores: 1\n")
    for name, text in {"time": "walltime: 12:00:00", "words": "jobs: two"}.items():
        Path(f"{name}.yaml").write_text(f"jobs: 1\ncores: 1\nmemory: 1GB\n{text}\n")
    Path("slurm.yaml").write_text("{jobs: 1, cores: 1, memory: 1GB}\n")
    try:
        code = main([*words.split(), "--results", str(tmp_path / "results")], folder)
    except SystemExit as error:  # argparse leaves this way
        code = error.code
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count("\n") == 1


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
        "jobs": 1, "cores": 1, "memory": "1GB", "walltime": "00:10:00",
        "job_extra_directives": ["--gres=gpu:1"],
        "worker_extra_args": ["--resources", "GPU=1"],
        "scheduler_options": {"host": "127.0.0.1", "dashboard": False}}))
    words = ["--notebooks", "01", "--slurm", "slurm.yaml", "--results", str(tmp_path / "results")]
    assert main(words, folder) == 0, (tmp_path / "job.log").read_text()
    said = capsys.readouterr().out
    assert "asked Slurm for 1 jobs" in said and "1 Dask workers, with GPUs" in said
    assert "#SBATCH --gres=gpu:1" in (tmp_path / "job").read_text()


def test_a_budget_ends_while_slurm_begins_nothing(tmp_path, folder, slurm, capsys):
    """Planted fault: a wait without an end."""
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho Submitted batch job 1\n")
    (tmp_path / "bin/scancel").write_text("#!/bin/sh\n")
    Path("slurm.yaml").write_text(json.dumps({
        "jobs": 1, "cores": 1, "memory": "1GB",
        "scheduler_options": {"host": "127.0.0.1", "dashboard": False}}))
    made = pipeline.plan(choose("smoke", "sc", "0", "1", results=str(tmp_path)), "01", True, folder)
    assert pipeline.run(made, until=time.monotonic() + 2, slurm="slurm.yaml") == 75
    said = capsys.readouterr().out
    assert "no Slurm job began in time" in said and "1 stopped" in said
    assert "the same command goes on" in said


def test_a_refused_job_is_one_line(tmp_path, folder, slurm, capsys):
    """Planted fault: the answer of sbatch unread, so the command waits for ever."""
    Path("slurm.yaml").write_text(json.dumps({
        "jobs": 1, "cores": 1, "memory": "1GB", "queue": "nowhere",
        "scheduler_options": {"host": "127.0.0.1", "dashboard": False}}))
    assert main(["--slurm", "slurm.yaml", "--results", str(tmp_path / "results")], folder) == 2
    err = capsys.readouterr().err
    assert "sbatch: error: no such partition" in err
    assert err.count("\n") == 1 and not (tmp_path / "job").exists()


def test_a_container_that_may_use_one_core_runs_one_notebook_at_a_time(monkeypatch):
    """joblib knows affinity and a container's quota. Planted fault: `os.cpu_count`."""
    import joblib

    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    with cluster.workers() as pool:
        assert (pool.jobs, pool.cores) == (1, 1)
