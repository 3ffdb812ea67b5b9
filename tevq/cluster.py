"""Workers of Dask that execute notebooks: on this machine, on a running cluster, on Slurm jobs.

On other machines the repository must lie at the same path, and the results on a shared one. A
worker executes one notebook at a time. When a worker dies, Dask hands its notebook to another one,
and trainings go on from their checkpoints.
"""

import contextlib
import logging
import math
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tevq import execute
from tevq.config import ROOT, SettingsError, digest
from tevq.execute import Job, Outcome
from tevq.runs import budget
from tevq.runs.storage import hold, read_json, write_json

CONNECT_SECONDS = 10  # for the scheduler to answer
SHARE_SECONDS = 10  # for a new file to be seen on every machine
CLOSING_SECONDS = 20  # before the budget ends: trainings have saved, no notebook is started
LATE_SECONDS = 8  # after that: what still runs is told to stop
UNSEEN = "does not see {}; give a folder that all machines share with --results"


@dataclass(frozen=True)
class Pool:
    """A connected cluster."""

    client: Any
    resources: dict[str, int] = field(default_factory=dict)  # that a notebook takes
    gpus: list[str] = field(default_factory=list)  # for the workers of this machine, in turn
    jobs: int = 0  # workers of this machine; 0 = on other machines
    cores: int = 0

    def threads(self, width: int) -> dict[str, str]:
        """Variable with the threads of a notebook beside which `width` - 1 can run here."""
        if not self.jobs or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, self.cores // min(self.jobs, width)))}


@contextlib.contextmanager
def workers(jobs: int = 0, scheduler: str = "", slurm: str = "", until: float = math.inf
            ) -> Iterator[Pool]:
    """A pool, on this machine unless `scheduler` (address) or `slurm` (file) is given.

    jobs: notebooks side by side on this machine; 0 = one for each GPU, or two on a processor with
    two or more cores. until: by `time.monotonic`. Raises SettingsError for a cluster that does not
    answer, OutOfTimeError where Slurm begins no job in time.
    """
    from distributed import Client, TimeoutError

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the pipeline reports
    warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address")  # without a network
    with contextlib.ExitStack() as stack:
        if not scheduler and not slurm:
            yield stack.enter_context(_local(jobs))
            return
        cluster = _slurm(slurm, stack) if slurm else scheduler
        try:
            client = stack.enter_context(Client(cluster, timeout=CONNECT_SECONDS))
            left = min(max(1, until - time.monotonic()), 1e8)
            client.wait_for_workers(1, timeout=60 if scheduler else left)
        except (OSError, ValueError, TimeoutError):
            if slurm and time.monotonic() >= until - 1:
                raise budget.OutOfTimeError("no Slurm job began in time") from None
            raise SettingsError(
                f"no Dask scheduler with a worker answers at {scheduler!r}; start `dask scheduler` "
                f"and `dask worker {scheduler} --nthreads 1`, see tevq/README.md" if scheduler else
                f"--slurm {slurm}: its scheduler did not start or does not answer") from None
        found = client.scheduler_info()["workers"].values()
        gpu = {"GPU": 1} if any("GPU" in worker["resources"] for worker in found) else {}
        print(f"{len(client.nthreads())} Dask workers, {'with' if gpu else 'without'} GPUs; "
              f"dashboard {client.dashboard_link}")
        yield Pool(client, gpu)


@contextlib.contextmanager
def _local(jobs: int) -> Iterator[Pool]:
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
        print(f"{jobs} at a time; dashboard (if bokeh is installed) "
              f"http://127.0.0.1:{cluster.scheduler.http_server.port}/status")
        yield Pool(client, gpus=visible.split(",") if count else [], jobs=jobs, cores=cores)


def _slurm(file: str, stack: contextlib.ExitStack) -> Any:
    """The cluster that a YAML file describes: `jobs` and the arguments of SLURMCluster."""
    import yaml
    from dask_jobqueue import SLURMCluster

    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"--slurm: {' '.join(str(error).split())}") from None
    jobs = tree.pop("jobs", None) if isinstance(tree, dict) else None
    if type(jobs) is not int or jobs < 1:
        raise SettingsError(f"--slurm {file}: jobs: {jobs!r} is not a whole number from 1")
    if not isinstance(tree.get("walltime", ""), str):  # 12:00:00 is 43200, for Slurm minutes
        raise SettingsError(f"--slurm {file}: walltime needs quotes, e.g. '08:00:00'")
    if not shutil.which("sbatch"):
        raise SettingsError("--slurm needs sbatch, which is not found; run on a login node")
    try:
        cluster = stack.enter_context(SLURMCluster(**{"processes": tree.get("cores")} | tree))
    except (TypeError, ValueError) as error:
        raise SettingsError(f"--slurm {file}: {' '.join(str(error).split())}") from None
    # Dask submits in the background, where nobody would hear of a refusal
    asked = subprocess.run(["sbatch", "--test-only"], input=cluster.job_script(), text=True,
                           capture_output=True)
    if asked.returncode:
        raise SettingsError(f"--slurm {file}: {' '.join(asked.stderr.split())}")
    cluster.scale(jobs=jobs)
    print(f"asked Slurm for {jobs} jobs; waiting for the first (squeue --me shows them)")
    return cluster


def check(client: Any, signal: Path, notebooks: Path) -> None:
    """Raises SettingsError for the first worker that could not work."""
    for address, threads in client.nthreads().items():
        if threads != 1:
            raise SettingsError(f"worker {address} has {threads} threads; use --nthreads 1")
    found = client.run(_complaint, signal, notebooks, code_digest(), on_error="return")
    for address, complaint in found.items():
        if complaint:  # a text, or the error of a worker that cannot import tevq
            raise SettingsError(f"worker {address}: {' '.join(str(complaint).split())}")


def _complaint(signal: Path, notebooks: Path, code: str) -> str:
    """What the worker that runs this lacks."""
    if code_digest() != code or not notebooks.is_dir():
        return "has another version of tevq; bring it to the same commit at the same path"
    until = time.monotonic() + SHARE_SECONDS
    while not signal.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return "" if signal.exists() else UNSEEN.format(signal.parent)


def code_digest() -> str:
    """Digest of the package's sources. A change in any of them makes all notebooks run again."""
    package = ROOT / "tevq"
    return digest({str(file.relative_to(package)): file.read_text(encoding="utf-8")
                   for file in sorted(package.rglob("*.py"))})


def work(job: Job, *needed: Outcome) -> Outcome:
    """Executes one notebook on a worker, unless another command has just done it. needed: how the
    notebooks ended that it needs."""
    from distributed import get_worker

    states, worker = {outcome.status for outcome in needed}, get_worker()
    if states & {"failed", "left out"}:
        return Outcome("left out")

    def stopped(seconds: float = LATE_SECONDS) -> bool:
        until = float(job.variables.get(budget.VARIABLE, "inf"))
        return time.time() >= until + seconds or not os.path.exists(job.signal)

    try:
        if not job.log.parent.exists():
            return Outcome("failed", text=UNSEEN.format(job.log.parent))
        if states & set(execute.UNFINISHED) or stopped(0):
            return Outcome("not started")
        if job.gpus:
            own = {"CUDA_VISIBLE_DEVICES": job.gpus[int(worker.name) % len(job.gpus)]}
            job = replace(job, variables=job.variables | own)
        with hold(job.log.with_suffix(".lock"), job.label, stopped) as held:
            if not held:
                return Outcome("stopped")
            found = read_json(job.record)
            if found.get("finished", 0) > job.planned and found["made_from"] == job.made_from:
                return Outcome("done", text="by another command")
            worker.log_event(job.signal, job.label)
            return _execute(job, stopped)
    except Exception as error:  # Dask would fail what needs this notebook with the same words
        return Outcome("failed", text=execute.describe(error))


def _execute(job: Job, stopped: Any) -> Outcome:
    """Executes a notebook, and keeps a record of what it was made from and wrote."""
    home, began = Path(job.home), time.time()
    if job.page_only:
        return execute.launch(job, stopped)
    job.record.unlink(missing_ok=True)
    outcome = execute.launch(job, stopped)
    if outcome.status == "done":
        # file systems round times; a second is enough for all of them
        files = [str(file.relative_to(home)) for folder in ("figures", "tables")
                 for file in home.glob(f"{folder}/*") if file.stat().st_mtime >= began - 1]
        write_json(job.record, {"made_from": job.made_from, "finished": time.time(),
                                "seconds": round(outcome.seconds, 1), "files": sorted(files)})
    return outcome

