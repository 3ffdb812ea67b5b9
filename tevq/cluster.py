"""Workers of Dask that execute notebooks: on this machine, on a running cluster, on Slurm jobs.

On other machines the repository must lie at the same path, and the results on a shared one. A
worker executes one notebook at a time. When a worker dies, Dask hands its notebook to another one,
and trainings go on from their checkpoints.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tevq import execute
from tevq.config import ROOT, SettingsError, digest
from tevq.execute import Outcome, Request
from tevq.runs import lock
from tevq.runs.storage import write_json

CONNECT_SECONDS = 10  # for the scheduler to answer
JOIN_SECONDS = 60  # for the first worker
SLURM_SECONDS = 60  # for sbatch to look at a job
SHARE_SECONDS = 10  # for a new file to be seen on every machine
UNSEEN = "does not see {}; give a folder that all machines share with --results"
SLURM_EXAMPLE = "jobs: 4, cores: 1, processes: 1, memory: 16GB, job_cpu: 8, walltime: '08:00:00'"
SIGNALS = {"stop": b"", "close": b"-", "go": b"--"}  # close: start nothing
TIME = r"(\d+-)?\d{1,2}(:\d\d){1,2}|\d+-\d{1,2}"  # of Slurm, e.g. 08:00:00 or 1-12


@dataclass(frozen=True)
class Pool:
    """A connected cluster."""

    client: Any
    resources: dict[str, int] = field(default_factory=dict)  # that a notebook takes
    gpus: list[str] = field(default_factory=list)  # for the workers of this machine, in turn
    jobs: int = 0  # workers of this machine; 0 = on other machines
    cores: int = 0

    def threads(self, width: int) -> int:
        """Processor threads of a notebook beside which `width` - 1 can run; 0 = leave alone."""
        return max(1, self.cores // min(self.jobs, width)) if self.jobs else 0


@dataclass(frozen=True)
class Job:
    """What a worker is told about one notebook."""

    label: str
    request: Request
    log: Path
    signal: Path  # a file, see SIGNALS
    made_from: dict[str, Any]  # goes into the record
    planned: float  # when, in seconds since 1970
    threads: int
    gpus: list[str]


@contextlib.contextmanager
def workers(jobs: int = 0, scheduler: str = "", slurm: str = "",
            say: Callable[[str], None] = print) -> Iterator[Pool]:
    """A pool, on this machine unless `scheduler` (address) or `slurm` (file) is given.

    jobs: notebooks side by side on this machine; 0 = one for each GPU, or two on a processor with
    two or more cores. Raises SettingsError for a cluster that does not answer.
    """
    from distributed import Client, TimeoutError

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the pipeline reports
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address")  # without a network
    with contextlib.ExitStack() as stack:
        if not scheduler and not slurm:
            yield stack.enter_context(_local(jobs, say))
            return
        cluster = stack.enter_context(_slurm(slurm, say)) if slurm else scheduler
        try:
            client = stack.enter_context(Client(cluster, timeout=CONNECT_SECONDS))
        except (OSError, ValueError):
            raise SettingsError(
                f"no Dask scheduler answers at {scheduler!r} within {CONNECT_SECONDS} s; start one "
                "with `dask scheduler` and pass the address it prints, e.g. tcp://host:8786"
            ) from None
        try:
            client.wait_for_workers(1, timeout=JOIN_SECONDS if scheduler else None)
        except TimeoutError:
            raise SettingsError(
                f"no worker has joined within {JOIN_SECONDS} s; start some with `dask worker "
                f"{scheduler} --nthreads 1`, on a GPU with --resources GPU=1") from None
        found = client.scheduler_info()["workers"].values()
        gpu = {"GPU": 1} if any("GPU" in worker["resources"] for worker in found) else {}
        say(f"{len(client.nthreads())} Dask workers, {'with' if gpu else 'without'} GPUs; "
            f"dashboard {client.dashboard_link}")
        yield Pool(client, gpu)


@contextlib.contextmanager
def _local(jobs: int, say: Callable[[str], None]) -> Iterator[Pool]:
    """Workers in threads of this process: every notebook has a process of its own anyway."""
    import joblib
    import torch
    from distributed import Client, LocalCluster

    count, cores = torch.cuda.device_count(), joblib.cpu_count()
    jobs = jobs or count or min(2, cores)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    # its pages for this machine only; without a limit of memory, which would not count notebooks
    with (LocalCluster(n_workers=jobs, threads_per_worker=1, processes=False, memory_limit=0,
                       dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0",
                       silence_logs=logging.CRITICAL) as cluster, Client(cluster) as client):
        watch = re.sub("//[^:]*", "//127.0.0.1", cluster.dashboard_link)
        say(f"{jobs} at a time" + f"; watch it at {watch}" * bool(
            importlib.util.find_spec("bokeh")))
        yield Pool(client, gpus=visible.split(",") if count else [], jobs=jobs, cores=cores)


def _slurm(file: str, say: Callable[[str], None]):
    """The cluster that a YAML file describes."""
    if not importlib.util.find_spec("dask_jobqueue"):
        raise SettingsError("--slurm needs the package dask_jobqueue, which is not installed; run "
                            "pip install -e .[cluster]")
    tree = _slurm_options(file)
    if not shutil.which("sbatch"):
        raise SettingsError("--slurm needs sbatch, which is not found; run on a login node")
    from dask_jobqueue import SLURMCluster

    jobs = tree.pop("jobs")
    try:
        cluster = SLURMCluster(**tree)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--slurm {file}: {' '.join(str(error).split())}") from None
    try:  # Dask submits in the background, where nobody would hear of a refusal
        asked = subprocess.run(["sbatch", "--test-only"], input=cluster.job_script(), text=True,
                               capture_output=True, timeout=SLURM_SECONDS)
        if asked.returncode:
            raise SettingsError(f"--slurm {file}: Slurm refuses such a job: "
                                f"{' '.join((asked.stderr or asked.stdout).split())}")
        cluster.scale(jobs=jobs)
    except BaseException as error:
        cluster.close()
        if isinstance(error, subprocess.TimeoutExpired):
            raise SettingsError(f"--slurm {file}: sbatch did not answer within {SLURM_SECONDS} s; "
                                "is Slurm running? (sinfo shows it)") from None
        raise
    say(f"asked Slurm for {jobs} jobs; waiting for the first (squeue --me shows them)")
    return cluster


def _slurm_options(file: str) -> dict[str, Any]:
    """The number of jobs and the arguments of SLURMCluster. Raises SettingsError."""
    import yaml

    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--slurm {file}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8
        raise SettingsError(f"--slurm {file} is not YAML: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"--slurm {file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not {"jobs", "cores", "memory"} <= tree.keys():
        raise SettingsError(f"--slurm {file} must hold the number of jobs and the arguments of "
                            f"dask_jobqueue.SLURMCluster, e.g. {SLURM_EXAMPLE}")
    for name in ("jobs", "cores", "processes", "job_cpu"):
        value = tree.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingsError(f"--slurm {file}: {name}: {value!r} is not a whole number from 1")
    if tree["cores"] != tree.setdefault("processes", tree["cores"]):
        raise SettingsError(f"--slurm {file}: cores and processes must be equal, one for each "
                            "notebook; `job_cpu` sets the processor cores of a job")
    # YAML reads 12:00:00 without quotes as 43200, which Slurm takes for minutes
    for name, form, example in (("walltime", TIME, "'08:00:00'"), ("queue", ".+", "'gpu'"),
                                ("memory", r"[\d.]+ ?[kMGT]i?B?", "16GB"),
                                ("account", ".+", "'me'")):
        value = tree.get(name, example.strip("'"))
        if not isinstance(value, str) or not re.fullmatch(form, value):
            raise SettingsError(f"--slurm {file}: {name}: {value!r} is no text such as {example}")
    return tree


def check(client: Any, signal: Path, notebooks: Path) -> None:
    """Raises SettingsError for the first worker that could not work."""
    found = client.run(_complaint, signal, notebooks, code_digest(), on_error="return")
    for address, complaint in found.items():
        if complaint:  # a text, or the error of a worker that cannot import tevq
            raise SettingsError(f"worker {address}: {' '.join(str(complaint).split())}")


def _complaint(signal: Path, notebooks: Path, code: str, dask_worker: Any) -> str:
    """What the worker that runs this lacks; Dask hands in the worker itself."""
    if code_digest() != code:
        return "has another version of tevq than this one; bring both to the same commit"
    if (threads := dask_worker.state.nthreads) != 1:
        return (f"has {threads} threads and would run as many notebooks at once; start it with "
                "--nthreads 1, one worker for each notebook or GPU")
    if not notebooks.is_dir():
        return f"does not see {notebooks}; the repository must have the same path everywhere"
    until = time.monotonic() + SHARE_SECONDS
    while not (word := read(signal)) and time.monotonic() < until:
        time.sleep(0.1)
    return "" if word else UNSEEN.format(signal.parent)


def code_digest() -> str:
    """Digest of the package's sources. A change in any of them makes all notebooks run again."""
    package = ROOT / "tevq"
    return digest({str(file.relative_to(package)): file.read_text(encoding="utf-8")
                   for file in sorted(package.rglob("*.py"))})


def work(job: Job, *needed: Outcome) -> Outcome:
    """Executes one notebook on a worker, unless another command has just done it.

    needed: how the notebooks ended that it needs.
    """
    from distributed import get_worker

    states, word, worker = {outcome.status for outcome in needed}, read(job.signal), get_worker()
    if states & {"failed", "left out"}:
        return Outcome("left out")
    if states & set(execute.UNFINISHED) or word in ("close", "stop"):
        return Outcome("not started")
    if not word:
        return Outcome("failed", text=f"{platform.node()} {UNSEEN.format(job.signal.parent)}")
    request = job.request
    if job.gpus:
        own = {"CUDA_VISIBLE_DEVICES": job.gpus[int(worker.name) % len(job.gpus)]}
        request = replace(request, variables=request.variables | own)

    def stopped() -> bool:
        return read(job.signal) in ("stop", "")

    try:
        with lock.hold(job.log.with_suffix(".lock"), job.label, stopped) as held:
            if not held:
                return Outcome("stopped")
            found = record(job.log)
            if found.get("finished", 0) > job.planned and found["made_from"] == job.made_from:
                return Outcome("done", text="by another command")
            worker.log_event(job.signal.name, job.label)
            job.log.with_suffix(".json").unlink(missing_ok=True)
            began = time.time()
            outcome = execute.launch(request, job.log, stopped, job.threads)
            if outcome.status == "done":
                write_json(job.log.with_suffix(".json"), {
                    "made_from": job.made_from, "finished": time.time(),
                    "seconds": round(outcome.seconds, 1),
                    "files": _written(job.log.parents[1], began)})
            return outcome
    except Exception as error:  # Dask would fail what needs this notebook with the same words
        return Outcome("failed", text=execute.describe(error))


def _written(home: Path, began: float) -> list[str]:
    """Tables and figures that appeared while a notebook ran.

    With notebooks side by side this may name a neighbour's file: then one more notebook runs again
    when that file is deleted.
    """
    # file systems round times; a second is enough for all of them
    return sorted(str(file.relative_to(home)) for folder in ("tables", "figures")
                  for file in (home / folder).glob("*") if file.stat().st_mtime >= began - 1)


def record(log: Path) -> dict[str, Any]:
    """What a finished notebook was made from; empty when it never finished."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(log.with_suffix(".json").read_text(encoding="utf-8"))
    return {}


def tell(signal: Path, word: str) -> None:
    """Changes what a signal file says. A file can be made shorter on a full disk, too."""
    os.truncate(signal, len(SIGNALS[word]))


def read(signal: Path) -> str:
    """What a signal file says, by its length; empty when there is none."""
    try:
        return list(SIGNALS)[signal.stat().st_size]
    except FileNotFoundError:
        return ""
    except OSError:  # a network folder that does not answer at the moment
        return "go"
