"""The command line; `./run_all.sh` calls it."""

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from tevq import forecast, pipeline, presets
from tevq.config import PUBLISHED, ROOT, SettingsError, UserError, expand
from tevq.grid import choose

BEGAN = time.monotonic()  # --budget counts from here
LEAST_BUDGET = 60  # seconds; starting and closing alone take half of them
EXAMPLES = """
examples:
  ./run_all.sh                                  everything on embedded digits, in minutes
  ./run_all.sh --preset laptop --variants sc,te --seeds 0
  ./run_all.sh --preset laptop --budget 540     nine minutes of it; repeat until the exit code is 0

Results go to results/local/<preset>, with a longer name where variants, seeds, tables or settings
are not those of the preset. The published ones in results/<preset> are read and never changed.

A notebook runs again when it, its settings, the code in tevq or a notebook before it has changed.

exit codes: 0 all done, 1 a notebook or test failed, 2 wrong input, 75 stopped by --budget with
work left (the same command goes on), 130 stopped by Ctrl-C (the same)
"""


def parser() -> argparse.ArgumentParser:
    """The options. A wrong command line ends in one line instead of a page of usage."""
    made = argparse.ArgumentParser(
        "run_all.sh", description="Runs the notebooks of the study with papermill.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.error = lambda message: made.exit(2, f"tevq: {message}; see ./run_all.sh --help\n")
    add, where = made.add_argument, made.add_mutually_exclusive_group().add_argument
    target = made.add_mutually_exclusive_group().add_argument
    add("--preset", default="smoke", metavar="NAME",
        help=f"size of the study: {', '.join(presets.PRESETS)} (default smoke)")
    add("--variants", metavar="LIST",
        help=f"from {','.join(presets.VARIANTS)} (default: the preset's)")
    add("--seeds", metavar="LIST", help="e.g. 0,1,2 (default: the preset's)")
    add("--notebooks", metavar="LIST", help="e.g. 03,04 (default: all)")
    add("--tables", metavar="LIST",
        help="1,2,3 of the paper, 4 at another stride (default: the preset's)")
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="override a setting, e.g. stage1.steps=500; may be repeated")
    add("--budget", type=float, default=math.inf, metavar="SECONDS",
        help="save and stop before so many seconds have passed, exit code 75")
    where("--jobs", type=int, metavar="N",
          help="notebooks side by side (default: one for each GPU, without a GPU 2)")
    where("--scheduler", metavar="ADDRESS",
          help="run on the workers of a Dask cluster, e.g. tcp://host:8786")
    where("--slurm", metavar="FILE",
          help="run on Slurm jobs: YAML with `jobs` and the arguments of SLURMCluster")
    target("--results", metavar="DIR", help="another folder for the results")
    target("--publish", action="store_true",
           help="for the maintainers: write to results/<preset>, which git keeps")
    add("--lease", metavar="FOLDER",
        help="train on a GPU machine that is lent for minutes: packs FOLDER/there for it and takes "
             "in FOLDER/back; see tevq/README.md")
    add("--force", action="store_true", help="run again what is finished and unchanged")
    add("--dry-run", action="store_true", help="say what would run and why, and stop")
    add("--site", action="store_true", help="build the web site in results/site instead")
    add("--test", action="store_true", help="run the tests instead: ruff, pytest, nbval")
    add("--torture", action="store_true",
        help="run the long tests instead: kills, damage, full disks; an hour or two")
    return made


def main(arguments: list[str] | None = None, folder: Path = pipeline.FOLDER) -> int:
    """Exit code: see EXAMPLES. folder: where the notebooks are stored."""
    # at once, also into a pipe, and on terminals that do not know every letter
    sys.stdout.reconfigure(errors="replace", line_buffering=True)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    for kind in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs deaf to SIGINT
        signal.signal(kind, signal.default_int_handler)
    try:
        if options.test or options.torture or options.site:
            if len(arguments) > 1:
                raise SettingsError("use --site, --test, --torture alone, not "
                                    + " ".join(arguments))
            script = ROOT / ("tests/check.py" if options.test else "tests/torture/run.py"
                             if options.torture else "tevq/site/__main__.py")
            os.execv(sys.executable, [sys.executable, str(script)])  # so that it gets the signals
        return _run(options, folder)
    except UserError as error:
        print(f"tevq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tevq: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, folder: Path) -> int:
    for name, value in vars(options).items():  # perhaps of a shell variable that is not set
        if value in ("", [""]):
            raise SettingsError(f"--{name} is empty; give it a value, or leave it out")
    if options.jobs is not None and options.jobs < 1:
        raise SettingsError(f"--jobs {options.jobs} is not allowed; use a whole number from 1")
    if options.slurm and not Path(options.slurm).exists():
        raise SettingsError(f"--slurm: No such file or directory: {options.slurm!r}")
    if not options.budget >= LEAST_BUDGET:
        raise SettingsError(f"--budget {options.budget:g} is not allowed; use at least "
                            f"{LEAST_BUDGET} seconds, or leave it out for no limit")
    if options.publish:  # not as a parameter of notebooks: published copies hold no path
        os.environ["TEVQ_RESULTS"] = str(PUBLISHED)
    results = str(expand(options.results)) if options.results else ""
    grid = choose(options.preset, options.variants, options.seeds, options.tables,
                  ",".join(options.set), results)
    if options.lease:
        from tevq import lease  # which imports torch; --help and --dry-run need not wait for it

        print(lease.prepare(grid, Path(options.lease)))
        return 0
    made = pipeline.plan(grid, options.notebooks or "", options.force, folder)
    if options.dry_run:
        print(forecast.table(made))
        return 0
    return pipeline.run(made, options.jobs or 0, BEGAN + options.budget, options.scheduler or "",
                        options.slurm or "")


if __name__ == "__main__":
    sys.exit(main())
