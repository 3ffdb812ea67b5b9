"""All notebooks: without a network, twice at once, and with a run killed beside another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import check
import pandas as pd
import pytest


def tables(results: Path) -> dict[str, pd.DataFrame]:
    return {path.name: pd.read_csv(path) for path in (results / "smoke/tables").glob("*.csv")}


def assert_same_tables(a: Path, b: Path) -> int:
    """Number of cells, all equal."""
    one, other = tables(a), tables(b)
    assert one.keys() == other.keys() and len(one) >= 4
    for name in one:
        pd.testing.assert_frame_equal(one[name], other[name], check_exact=True)
    return sum(table.size for table in one.values())


@pytest.mark.promise("offline")
def test_the_study_needs_no_network(tmp_path, record_property):
    """Preset smoke as it is, once with the network as it is and once with none at all, not even
    loopback. Planted fault: kernels that are talked to over TCP."""
    alone = ["unshare", "-n"] if os.getuid() == 0 else ["unshare", "-rn"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let us take the network away (unshare -n)")
    began = time.monotonic()
    for folder, prefix in (("offline", alone), ("online", [])):
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "tevq", "--variants", "sc,te", "--results",
             str(tmp_path / folder)], cwd=check.ROOT, capture_output=True, text=True,
            env=check.environment(TEVQ_CACHE=str(tmp_path / folder / "cache")))
        assert done.returncode == 0, done.stdout[-3000:]
    cells = assert_same_tables(tmp_path / "offline", tmp_path / "online")
    record_property("measured", f"preset smoke, {cells:,} cells of tables equal with and without "
                    f"network, {time.monotonic() - began:.0f} s for both")


def started_trainings(results: Path) -> int:
    """How often a training began, from the logs of the run folders: none may begin twice."""
    count = 0
    for path in (results / "smoke/runs").glob("stage?/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps = [row["step"] for row in rows if "probe" not in row]
        assert steps == sorted(set(steps)), f"{path}: two trainings wrote it"
        count += 1
    return count


def executed(logs: list[str]) -> list[str]:
    """Labels of the notebooks that the runs executed themselves."""
    return [line.split()[1] for log in logs for line in log.splitlines()
            if line.startswith("done ") and "by another" not in line]


@pytest.mark.promise("two-runs")
@pytest.mark.parametrize("kill", [False, True], ids=["both", "one killed"])
def test_two_runs_on_one_folder(tmp_path, kill, record_property):
    """Planted fault: no lock on a notebook; both then execute it. With `kill`, the first run and
    all its children die in the middle of Stage 1, and the second one takes over."""
    results = tmp_path / "both"
    words = [sys.executable, *check.command(results, "--tables", "1")]
    runs = [subprocess.Popen(words, cwd=check.ROOT, text=True, env=check.environment(),
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    if kill:
        state = results / "smoke/runs/stage1"
        while not list(state.glob("*/metrics.jsonl")) and runs[0].poll() is None:
            time.sleep(0.1)
        runs[0].send_signal(signal.SIGKILL)
    logs = [run.communicate()[0] for run in runs]
    codes = [run.returncode for run in runs]
    assert codes == [-signal.SIGKILL if kill else 0, 0], logs
    before = check.written(results)
    subprocess.run(words, cwd=check.ROOT, env=check.environment(), check=True)
    assert before and check.written(results) == before
    done = executed(logs)
    assert done and len(done) == len(set(done)), done
    count = started_trainings(results)
    assert count == 4
    assert not list(results.rglob("*.owner")), "a lock was left behind"
    record_property("measured", f"two runs{', one killed' if kill else ''}: {count} trainings, "
                    "none twice")
    if not kill:
        alone = tmp_path / "alone"
        subprocess.run([sys.executable, *check.command(alone, "--tables", "1")], cwd=check.ROOT,
                       env=check.environment(), check=True, stdout=subprocess.DEVNULL)
        assert_same_tables(results, alone)
