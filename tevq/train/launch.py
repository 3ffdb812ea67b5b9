"""One training from the command line, on one or several processes.

    python -m tevq.train.launch stage1 --preset laptop --variant te --seed 0
    python -m tevq.train.launch stage1 --preset gpu --variant te --seed 0 --processes 4
    torchrun --nproc_per_node 4 -m tevq.train.launch stage1 --preset gpu --variant te --seed 0

All three leave the run folder that notebook 03 (stage1) or 04 (stage2) finds finished. Several
processes share every batch, so the result is that of one process up to rounding.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from typing import NoReturn

import torch

from tevq import presets
from tevq.config import Settings, SettingsError, UserError, parse_overrides
from tevq.data import scenes
from tevq.evaluate.evaluator import Evaluator
from tevq.grid import choose
from tevq.models import classifier
from tevq.runs import budget, devices
from tevq.train import parallel, stage1, stage2

STAGES = {"stage1": stage1, "stage2": stage2}
LOST = 76  # exit code of a process that ends because another one has
CLOSING_SECONDS = 10  # before the budget ends
SETTLE_SECONDS = 3  # for processes to end by themselves after one of them has
GRACE_SECONDS = 10  # between asking a process to end and killing it


class Parser(argparse.ArgumentParser):
    """Ends a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tevq: {message}; see python -m tevq.train.launch --help\n")


def parser() -> Parser:
    """The options; those of run_all.sh mean the same here."""
    made = Parser("python -m tevq.train.launch", description=__doc__, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter,
                  epilog="exit codes: 0 done, 1 failed, 2 wrong input, 75 stopped by --budget, 130 "
                         "stopped by Ctrl-C; after 1, 75 and 130 the same command goes on")
    add = made.add_argument
    add("stage", choices=STAGES)
    add("--preset", default="smoke", metavar="NAME", help=", ".join(presets.PRESETS))
    add("--variant", default="te", metavar="NAME", help=", ".join(presets.VARIANTS))
    add("--seed", default="0", metavar="N")
    add("--source", default="", metavar="NAME", help="other items than the preset's (Table 3)")
    add("--fraction", type=float, default=1.0, metavar="F", help="of the scenes (Table 2)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="override a setting")
    add("--results", default="", metavar="DIR")
    add("--processes", type=int, default=1, metavar="N",
        help="processes on this machine that share every batch; on GPUs at most one for each")
    add("--budget", type=float, default=math.inf, metavar="SECONDS",
        help="save and stop before so many seconds have passed")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Exit code: see `parser`."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    began = time.time()
    rank, world = (int(os.environ.get(name, default))
                   for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    try:
        settings = _settings(options)
        _check(options, settings, max(world, options.processes))
        if options.budget < math.inf:
            os.environ[budget.VARIABLE] = str(began + options.budget - CLOSING_SECONDS)
        if world == 1 and options.processes > 1:
            return launch([sys.executable, "-m", "tevq.train.launch", *words], options.processes)
        return _train(options, settings, rank, world)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others say the same
            print(f"tevq: {error}", file=sys.stderr)
        return {SettingsError: 2, budget.OutOfTimeError: budget.EXIT_CODE}.get(type(error), 1)
    except parallel.LostRankError:
        if rank == 0 and "TORCHELASTIC_RUN_ID" in os.environ:
            print("tevq: another process of this training has ended; the same command goes on from "
                  "the last checkpoint", file=sys.stderr, flush=True)
        return LOST
    except KeyboardInterrupt:
        if "LOCAL_RANK" not in os.environ:  # else the one that started it says so
            print("tevq: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _settings(options: argparse.Namespace) -> Settings:
    """The settings that a notebook gets from the same words."""
    overrides = {}
    for text in options.set:
        overrides |= parse_overrides(text)
    return choose(options.preset, [options.variant], [options.seed], "", overrides,
                  options.results, options.source, options.fraction).settings


def _check(options: argparse.Namespace, settings: Settings, world: int) -> None:
    """Raises SettingsError for what can be refused before anything is started."""
    if options.processes < 1:
        raise SettingsError(f"--processes {options.processes} is not allowed; use 1 or more")
    if not options.budget > CLOSING_SECONDS:
        raise SettingsError(f"--budget {options.budget:g} is not allowed; use more than "
                            f"{CLOSING_SECONDS} seconds")
    parallel.share(getattr(settings, options.stage).batch, f"{options.stage}.batch", world, 0)
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), options.processes)
    gpus = torch.cuda.device_count()
    if gpus and here > gpus:
        raise SettingsError(f"{here} processes on a machine with {gpus} GPUs; use {gpus} or fewer")


def _train(options: argparse.Namespace, settings: Settings, rank: int, world: int) -> int:
    """What one process does."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if rank > 0:
        sys.stdout = open(os.devnull, "w")
    results = options.results or None
    if world > 1:
        if rank == 0:
            _prepare(options.stage, settings, results)
        parallel.join()  # the others wait here
        deadline = parallel.tell(os.environ.get(budget.VARIABLE, ""))
        os.environ[budget.VARIABLE] = deadline  # agreed on, whatever other machines were told
    run = STAGES[options.stage].train(settings, results)
    print(f"{run.name}: finished")
    return 0


def _prepare(stage: str, settings: Settings, results: str | None) -> None:
    """Makes what is made once: classifier, scenes, codes of the training set."""
    if stage == "stage2":
        evaluator = Evaluator.load(settings, results, devices.detect(settings.precision).device)
        stage2.encoded_split(settings, "train", evaluator, results)
    elif settings.stage1.perceptual == "classifier":
        classifier.train(settings, results)
    scenes.load_scenes(settings.data, "train")


def launch(command: list[str], processes: int) -> int:
    """Runs a command as so many ranks of one training on this machine; returns its exit code.

    When one of them dies the others are ended, and one line says so.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    env = {"OMP_NUM_THREADS": str(max(1, cores // processes))} | os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        # torch's words for: the store is there already
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    children = [subprocess.Popen(command, env=env | {"RANK": str(i), "LOCAL_RANK": str(i)})
                for i in range(processes)]
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                break
            time.sleep(0.1)
        _wait(children, SETTLE_SECONDS)
        codes = [child.poll() for child in children]  # before the rest is ended
    finally:
        _end(children)
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            print(f"tevq: process {rank} of {processes} was killed by {signal.Signals(-code).name};"
                  " the same command goes on from the last checkpoint", file=sys.stderr)
            return 1
    return max((code for code in codes if code not in (None, LOST)), default=1)


def _wait(children: list[subprocess.Popen], seconds: float) -> None:
    """Until all have ended, at most so long."""
    until = time.monotonic() + seconds
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(0.1)


def _end(children: list[subprocess.Popen]) -> None:
    """Ends what still runs: asks, then makes."""
    for ask in ("terminate", "kill"):
        for child in children:
            if child.poll() is None:
                getattr(child, ask)()
        _wait(children, GRACE_SECONDS)


if __name__ == "__main__":
    parallel.leave(main())
