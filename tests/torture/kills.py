"""Runs one stage in forked children that are killed: at random moments, and in the middle of saves.

`python kills.py STAGE RESULTS KILLS SEED LONGEST`; STAGE is stage1, stage2 or evaluation. Prints
how many children were killed, and how many of them inside a save. A process of its own, because
PyTorch's threads do not survive a fork: the parent must not have computed anything.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import FEATURES, tiny  # noqa: E402

from tevq import evaluation, runs, stage1, stage2  # noqa: E402

SETTINGS = tiny(**{"stage1.steps": 150, "stage1.disc_start": 40, "stage2.steps": 150,
                   "stage2.probe_every": 75})


def work(stage: str, results: str) -> None:
    """One stage, a checkpoint after every step."""
    torch.set_num_threads(1)
    stage1.KMEANS_VECTORS, evaluation.PROBE_ITEMS = FEATURES, 6
    runs.Loop.__init__.__defaults__ = (-1,)
    {"stage1": stage1.train, "stage2": stage2.train, "evaluation": evaluate}[stage](
        SETTINGS, results)


def evaluate(settings, results) -> None:
    """Both kinds of evaluation."""
    evaluation.evaluate_quantizer(settings, results)
    evaluation.evaluate(settings, results)


def die_in_a_save(countdown: int) -> None:
    """From now on, the process kills itself at its `countdown`-th step of writing a file."""
    left = [countdown]

    def deadly(function):
        def call(*arguments, **more):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **more)
        return call

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


def child(stage: str, results: str, countdown: int = 0) -> int:
    """Forks; returns the child's process number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if countdown:
            die_in_a_save(countdown)
        work(stage, results)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> bool:
    """Waits for a child for some time; True when it ended by itself. Raises if it failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit("a child failed")
            return not os.WIFSIGNALED(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def main(stage: str, results: str, kills: int, seed: int, longest: float) -> None:
    """Kills `kills` children, every third one in a save, then lets the last one finish."""
    moments, killed, inside = random.Random(seed), 0, 0
    Path(results).mkdir(parents=True, exist_ok=True)
    while killed < kills:
        in_save = killed % 3 == 2
        countdown = moments.randint(1, 12) if in_save else 0
        pid = child(stage, results, countdown)
        if ended(pid, 60 if in_save else moments.uniform(0, longest)):
            break
        killed, inside = killed + 1, inside + in_save
    else:
        ended(child(stage, results), 600)
    print(f"killed {killed}, {inside} of them inside a save")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
