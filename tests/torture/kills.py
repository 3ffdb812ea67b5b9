"""Runs one stage in forked children that are killed: at random moments, and in the middle of saves.

`python kills.py STAGE RESULTS KILLS SEED LONGEST`; STAGE is stage1, stage2 or evaluation. Children
die in turn up to LONGEST seconds after their start, up to LONGEST seconds after they have saved
something, and inside a save. Prints as JSON how many died, how many of them inside a save, and the
step of the newest checkpoint after each death. A process of its own, because PyTorch's threads do
not survive a fork: the parent must not have computed anything.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import FEATURES, tiny  # noqa: E402

from tevq.evaluate import evaluate as evaluation
from tevq.train import loop, stage1, stage2

SETTINGS = tiny(**{"stage1.steps": 300, "stage1.disc_start": 60, "stage2.steps": 300,
                   "stage2.probe_every": 100})


def work(stage: str, results: str) -> None:
    """One stage, a checkpoint after every step."""
    torch.set_num_threads(1)
    stage1.KMEANS_VECTORS, evaluation.PROBE_ITEMS = FEATURES, 6
    loop.Loop.__init__.__defaults__ = (-1, None)
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


def saved(stage: str, results: str) -> set[str]:
    """Names of the files a stage keeps; the names hold the hash of the content."""
    return {path.name for path in Path(results).glob(f"smoke/runs/{stage}/*/state/*.*")
            if not path.name.startswith(".")}


def changed(stage: str, results: str, before: set[str]) -> bool:
    """Whether a stage has saved something since."""
    return saved(stage, results) != before


def newest_step(stage: str, results: str) -> int:
    """Step of the newest checkpoint; 0 without one."""
    return max((int(name[5:14]) for name in saved(stage, results) if name.startswith("step-")),
               default=0)


def ended(pid: int, stop: Callable[[], bool]) -> bool:
    """Waits for a child, kills it when `stop` says so; True when it ended by itself."""
    while not stop():
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit("a child failed")
            return not os.WIFSIGNALED(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def never() -> bool:
    """Waits for ever."""
    return False


def after(seconds: float, sign: Callable[[], bool] = lambda: True) -> Callable[[], bool]:
    """True from `seconds` after `sign` has first been True."""
    since: list[float] = []

    def stop() -> bool:
        if not since and sign():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] > seconds

    return stop


def main(stage: str, results: str, kills: int, seed: int, longest: float) -> None:
    """Kills `kills` children, then lets the last one finish."""
    moments, steps = random.Random(seed), []
    Path(results).mkdir(parents=True, exist_ok=True)
    while len(steps) < kills:
        kind, seconds, before = len(steps) % 3, moments.uniform(0, longest), saved(stage, results)
        progress = partial(changed, stage, results, before)
        stop = [after(seconds), after(seconds, progress), never][kind]
        if stage == "evaluation" and kind == 1:  # it saves only at its end
            stop = after(seconds)
        countdown = moments.randint(1, 12 if stage == "evaluation" else 40) if kind == 2 else 0
        if ended(child(stage, results, countdown), stop):
            break
        steps.append(newest_step(stage, results))
    else:
        ended(child(stage, results), never)
    print(json.dumps({"killed": len(steps), "inside": len(steps) // 3, "steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
