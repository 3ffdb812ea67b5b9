"""Command line of the study; `./run_all.sh` calls it."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import psutil

from tevq import graph, pipeline, presets
from tevq.config import SettingsError, parse_overrides
from tevq.grid import choose

EXAMPLES = """
examples:
  ./run_all.sh                                  everything on embedded digits, in minutes
  ./run_all.sh --preset laptop --variants sc,te --seeds 0
  ./run_all.sh --preset laptop --notebooks 03,04 --dry-run
  ./run_all.sh --set stage1.steps=500 --results trial
  ./run_all.sh --preset laptop --budget 540     nine minutes of it; repeat until the exit code is 0
  ./run_all.sh --test                           ruff, pytest, nbval
  ./run_all.sh --torture                        kills, damage, full disks; half an hour

What is finished and unchanged is skipped; what was interrupted goes on where it was. A notebook
runs again when it, its settings, the tevq code it imports or a notebook before it has changed.

exit codes: 0 all done, 1 a notebook or test failed, 2 wrong input, 75 stopped by --budget with
work left (the same command goes on), 130 stopped by Ctrl-C (the same)
"""
LEAST_BUDGET = 60  # seconds; starting and closing alone take half of them


class Parser(argparse.ArgumentParser):
    """Ends a wrong command line in one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"tevq: {message}; see ./run_all.sh --help\n")


def parser() -> Parser:
    """The options."""
    made = Parser("run_all.sh", description="Runs the notebooks of the study with papermill.",
                  epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
                  allow_abbrev=False)
    add = made.add_argument
    add("--preset", default="smoke", metavar="NAME",
        help=f"size of the study: {', '.join(presets.PRESETS)} (default smoke)")
    add("--variants", default="", metavar="LIST",
        help=f"from {','.join(presets.VARIANTS)} (default: the preset's)")
    add("--seeds", default="", metavar="LIST", help="e.g. 0,1,2 (default: the preset's)")
    add("--notebooks", default="", metavar="LIST", help="e.g. 03,04 (default: all)")
    add("--tables", default="", metavar="LIST",
        help="tables to work for: 1,2,3 of the paper, 4 at another stride "
        "(default: the preset's)")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="override a setting, e.g. stage1.steps=500; may be repeated")
    add("--jobs", type=int, default=0, metavar="N",
        help="notebooks side by side (default: 2, or 1 with a GPU)")
    add("--budget", type=float, default=math.inf, metavar="SECONDS",
        help="save and stop before so many seconds of the whole command have passed, exit code 75")
    add("--workers", type=int, default=0, metavar="N",
        help="Dask workers on this machine, one for each GPU if there are some")
    add("--scheduler", default="", metavar="ADDRESS",
        help="run on the workers of a Dask cluster, e.g. tcp://host:8786")
    add("--slurm", default="", metavar="FILE",
        help="run on Slurm jobs: YAML with `jobs` and the arguments of SLURMCluster")
    add("--results", default="", metavar="DIR", help="folder for the results (default: results/)")
    add("--force", action="store_true", help="run again what is finished and unchanged")
    add("--dry-run", action="store_true", help="say what would run and why, and stop")
    add("--test", action="store_true", help="run the tests instead")
    add("--torture", action="store_true", help="run the long tests of reliability instead")
    return made


def main(arguments: list[str] | None = None, folder: Path = graph.FOLDER) -> int:
    """Exit code: see EXAMPLES.

    folder: where the notebooks are stored.
    """
    options = parser().parse_args(arguments)
    for kind in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs deaf to SIGINT
        signal.signal(kind, _interrupt)
    try:
        if options.test or options.torture:
            script = graph.ROOT / "tests" / ("check.py" if options.test else "torture/run.py")
            sys.stdout.flush()
            os.execv(sys.executable, [sys.executable, str(script)])  # so that it gets the signals
        return _run(options, folder)
    except SettingsError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tevq: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, folder: Path) -> int:
    if options.jobs < 0:
        raise SettingsError(f"--jobs {options.jobs} is not allowed; use a whole number from 1")
    if options.workers < 0:
        raise SettingsError(f"--workers {options.workers} is not allowed; use 1 or more")
    if sum(map(bool, (options.workers, options.scheduler, options.slurm))) > 1:
        raise SettingsError("--workers, --scheduler and --slurm exclude each other; use one")
    if not options.budget >= LEAST_BUDGET:
        raise SettingsError(f"--budget {options.budget:g} is not allowed; use at least "
                            f"{LEAST_BUDGET} seconds, or leave it out for no limit")
    overrides = {}
    for text in options.set:
        overrides |= parse_overrides(text)
    results = str(Path(options.results).resolve()) if options.results else ""
    grid = choose(options.preset, options.variants, options.seeds, options.tables, overrides,
                   results)
    made = pipeline.plan(grid, options.notebooks, options.force, folder)
    if options.dry_run:
        print(pipeline.describe(made))
        return 0
    # since this process began, which run_all.sh continues in: its set-up counts too
    until = psutil.Process().create_time() + options.budget
    if not made.to_run or not (options.workers or options.scheduler or options.slurm):
        return pipeline.run(made, options.jobs, say=_say, until=until)
    from tevq import cluster

    with cluster.connect(grid.folder, folder, options.scheduler, options.workers, options.slurm,
                         _say) as pool:
        return pipeline.run(made, options.jobs or pool.slots, _say, until=until,
                            launch=pool.launch)


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
