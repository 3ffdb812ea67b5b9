"""The run graph on a Dask cluster: several machines, one shared results folder.

The runner stays where it was started; it decides, waits and keeps the records. A worker executes
one notebook at a time, as the runner does at home, and resumes what a dead worker left: Dask hands
its notebook to another one, and trainings go on from their checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tevq import execute
from tevq.config import SettingsError

CONNECT_SECONDS = 10  # for the scheduler to answer
JOIN_SECONDS = 60  # for the first worker
SLURM_SECONDS = 60  # for sbatch to look at a job
SHARE_SECONDS = 10  # for a new file to be seen on every machine
WATCH_SECONDS = 1  # between a worker's looks at the marker
SLURM_EXAMPLE = "jobs: 4, cores: 1, processes: 1, memory: 16GB, job_cpu: 8, walltime: '08:00:00'"


@dataclass(frozen=True)
class Pool:
    """A connected cluster. The marker is a file that exists as long as this command wants work."""

    client: Any
    marker: Path
    slots: int  # notebooks at the same time
    resources: dict[str, int]  # that a notebook takes
    local: bool  # all workers on this machine

    def launch(self, request: execute.Request, log: Path, threads: int,
               stop: threading.Event) -> execute.Outcome:
        """`execute.launch` on a worker. Threads are limited on this machine only."""
        future = self.client.submit(
            work, request, log, threads if self.local else 0, self.marker, pure=False,
            key=f"{log.stem}-{uuid.uuid4().hex}", resources=self.resources)
        while not future.done():
            if stop.wait(0.2):
                return self._stop(future)
        try:
            return future.result()
        except (Exception, asyncio.CancelledError) as error:
            text = " ".join(str(error).split()) or "the connection to the scheduler was lost"
            return execute.Outcome("failed", error=f"{type(error).__name__}: {text}")

    def _stop(self, future: Any) -> execute.Outcome:
        """Ends the notebooks of this command, wherever they run."""
        self.marker.unlink(missing_ok=True)
        until = time.monotonic() + execute.GRACE_SECONDS
        while not future.done() and time.monotonic() < until:
            time.sleep(0.1)
        future.cancel()
        return execute.Outcome("stopped")


def work(request: execute.Request, log: Path, threads: int, marker: Path) -> execute.Outcome:
    """Executes one notebook on a worker; stops when the marker is gone."""
    if not marker.exists():  # also on workers that joined after the check
        return execute.Outcome("failed", error=f"{os.uname().nodename} does not see "
                               f"{marker.parent}; results must lie on a shared path")
    stop, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if not marker.exists():
                stop.set()

    threading.Thread(target=watch, daemon=True).start()
    # where the runner's results are; one notebook at a time, so nobody else is misled
    os.environ["TEVQ_RESULTS"] = str(marker.parents[2])
    try:
        return execute.launch(request, log, threads, stop)
    finally:
        over.set()


@contextlib.contextmanager
def connect(home: Path, notebooks: Path, scheduler: str = "", workers: int = 0, slurm: str = "",
            say: Callable[[str], None] = print) -> Iterator[Pool]:
    """A checked pool on a running cluster, on workers of this machine, or on Slurm jobs.

    home: `results/<preset>`; notebooks: folder of the stored ones. Raises SettingsError for
    whatever would make the notebooks fail.
    """
    _require("distributed", "--scheduler" if scheduler else "--slurm" if slurm else "--workers")
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the runner reports
    with contextlib.ExitStack() as stack:
        expected = 1
        if scheduler:
            client = stack.enter_context(_client(scheduler))
        else:
            made, expected = _slurm(slurm) if slurm else (_local(workers), workers)
            client = stack.enter_context(Client(stack.enter_context(made)))
        if slurm:
            say(f"asked Slurm for {expected} jobs; waiting for the first (squeue --me shows them)")
        _wait_for_a_worker(client, None if slurm else JOIN_SECONDS, scheduler)
        marker = stack.enter_context(_marker(home))
        found = _check(client, marker, notebooks)
        gpus = sum("GPU" in resources for resources in found.values())
        slots = max(gpus or len(found), expected)
        say(f"{len(found)} Dask workers, {gpus or 'none'} with a GPU")
        yield Pool(client, marker, slots, {"GPU": 1} if gpus else {}, bool(workers))


def code() -> str:
    """Digest of the package's source, by which a worker's copy is recognised."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _require(package: str, flag: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise SettingsError(f"{flag} needs the package {package}, which is not installed; run "
                            "pip install -e .[cluster]") from None


def _client(address: str):
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError):
        raise SettingsError(f"no Dask scheduler answers at {address!r} within {CONNECT_SECONDS} s; "
                            "start one with `dask scheduler` and pass the address it prints, e.g. "
                            "tcp://host:8786") from None


def _local(count: int):
    """Worker processes on this machine, one for each GPU if it has some."""
    import torch
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count()
    if gpus and count > gpus:
        raise SettingsError(f"--workers {count} on a machine with {gpus} GPUs; use {gpus} or fewer")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    own = [{"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": device}}
           for device in visible.split(",")] if gpus else [{}] * count
    # without a limit: Dask would count its own process only, not the notebook
    common = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "host": "127.0.0.1",
              "silence_logs": logging.CRITICAL}
    return SpecCluster(
        workers={i: {"cls": Nanny, "options": common | own[i]} for i in range(count)},
        scheduler={"cls": Scheduler,
                   "options": {"host": "127.0.0.1", "port": 0, "dashboard": False,
                               "dashboard_address": "127.0.0.1:0"}})


def _slurm(file: str):
    """The cluster that a YAML file describes, and its number of workers."""
    _require("dask_jobqueue", "--slurm")
    import yaml
    from dask_jobqueue import SLURMCluster

    try:
        tree = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise SettingsError(f"--slurm {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"--slurm {file} is not YAML: {' '.join(str(error).split())}") from None
    jobs = tree.pop("jobs", 0) if isinstance(tree, dict) else 0
    if not isinstance(jobs, int) or jobs < 1:
        raise SettingsError(f"--slurm {file} must hold the number of jobs and the arguments of "
                            f"dask_jobqueue.SLURMCluster, e.g. {SLURM_EXAMPLE}")
    if not shutil.which("sbatch"):
        raise SettingsError("--slurm needs sbatch, which is not found; run on a login node")
    try:
        cluster = SLURMCluster(**tree)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--slurm {file}: {' '.join(str(error).split())}") from None
    try:
        _ask_slurm(file, cluster.job_script())
        cluster.scale(jobs=jobs)
    except BaseException:
        cluster.close()
        raise
    return cluster, jobs * int(tree.get("processes", 1))


def _ask_slurm(file: str, script: str) -> None:
    """Raises SettingsError for a job that Slurm refuses.

    Later nobody would hear of it: Dask submits in the background.
    """
    try:
        asked = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True,
                               text=True, timeout=SLURM_SECONDS)
    except subprocess.TimeoutExpired:
        raise SettingsError(f"--slurm {file}: sbatch did not answer within {SLURM_SECONDS} s; is "
                            "Slurm running? (sinfo shows it)") from None
    if asked.returncode:
        raise SettingsError(f"--slurm {file}: Slurm refuses such a job: "
                            f"{' '.join((asked.stderr or asked.stdout).split())}")


def _wait_for_a_worker(client: Any, seconds: float | None, scheduler: str) -> None:
    from dask.distributed import TimeoutError as LateError

    try:
        client.wait_for_workers(1, timeout=seconds)
    except LateError:
        raise SettingsError(f"no worker has joined within {seconds} s; start some with `dask worker"
                            f" {scheduler} --nthreads 1`, on a GPU with --resources GPU=1"
                            ) from None


@contextlib.contextmanager
def _marker(home: Path) -> Iterator[Path]:
    path = home / "logs" / f".cluster-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise SettingsError(f"results folder {home}: {error.strerror}; give another with "
                            "--results") from None
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _check(client: Any, marker: Path, notebooks: Path) -> dict[str, dict]:
    """Resources of every worker. Raises SettingsError for the first that could not work."""
    def workers(dask_scheduler) -> dict[str, tuple[int, dict]]:
        return {address: (state.nthreads, dict(state.resources))
                for address, state in dask_scheduler.workers.items()}

    found = client.run_on_scheduler(workers)
    for address, (nthreads, _) in found.items():
        if nthreads != 1:
            raise SettingsError(f"worker {address} has {nthreads} threads and would run as many "
                                "notebooks at once; start it with --nthreads 1, one worker for "
                                "each notebook or GPU")
    look = _look(str(marker), str(notebooks), code(), SHARE_SECONDS)
    for address, complaint in client.run(look, on_error="return").items():
        if complaint:
            raise SettingsError(f"worker {address} {complaint}")
    return {address: resources for address, (_, resources) in found.items()}


def _look(marker: str, notebooks: str, wanted: str, seconds: float) -> Callable[[], str]:
    """What a worker runs to say what it lacks. An inner function travels without tevq."""
    def look() -> str:
        import os
        import time

        try:
            from tevq import cluster
        except ImportError as error:
            return f"cannot import tevq ({error}); there, run pip install -r requirements.txt"
        if cluster.code() != wanted:
            return "has another version of tevq than this one; bring both to the same commit"
        until = time.monotonic() + seconds
        while not os.path.exists(marker):
            if time.monotonic() > until:
                return (f"does not see {os.path.dirname(marker)}; give a folder that all machines "
                        "share with --results")
            time.sleep(0.1)
        if not os.path.isdir(notebooks):
            return f"does not see {notebooks}; the repository must have the same path everywhere"
        return ""

    return look
