"""Kill it anywhere: stages and evaluation, 20 kills each, bitwise what they would have been."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 20
LONGEST = {"stage1": 1.0, "stage2": 1.0, "evaluation": 0.8}  # seconds, see kills.py
SCRIPT = Path(__file__).with_name("kills.py")


def run(stage: str, results: Path, kills: int, seed: int = 0) -> dict:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), stage, str(results), str(kills), str(seed),
         str(LONGEST[stage])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def without_time(tree):
    if isinstance(tree, dict):
        return {k: without_time(v) for k, v in tree.items() if k not in ("seconds", "finished")}
    return [without_time(v) for v in tree] if isinstance(tree, list) else tree


def content(results: Path) -> dict[str, object]:
    """All that must be equal. The names of weights and codes hold the hash of their content."""
    found: dict[str, object] = {}
    for path in sorted(results.glob("smoke/runs/*/*/**/*")):
        name = str(path.relative_to(results))
        if path.suffix == ".safetensors":
            found[name] = path.stat().st_size
        elif path.name == "summary.json":
            found[name] = without_time(json.loads(path.read_text()))
        elif path.suffix in (".jsonl", ".gz", ".png"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Results after every stage, never interrupted."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    for stage in LONGEST:
        run(stage, folder / "now", kills=0)
        found[stage] = shutil.copytree(folder / "now", folder / stage)
    return found


@pytest.mark.promise("resume")
@pytest.mark.parametrize("stage", list(LONGEST))
def test_killed_twenty_times_it_is_bitwise_the_same(whole, tmp_path, stage, record_property):
    """Planted faults: an optimizer's state, or the code-usage counters, left out of the checkpoint;
    metrics not cut back on resume."""
    before = {"stage2": "stage1", "evaluation": "stage2"}.get(stage)
    results = tmp_path / "results"
    if before:
        shutil.copytree(whole[before], results)
    died = run(stage, results, KILLS, seed=1)
    assert died["killed"] == KILLS and died["inside"] >= 5
    expected, found = content(whole[stage]), content(results)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == expected[name], name
    said = f"{stage}: {KILLS} kills, {died['inside']} inside a save"
    if stage != "evaluation":
        resumed = set(died["steps"]) - {0}
        assert len(resumed) >= 8, died["steps"]
        said += f", resumed at {len(resumed)} different steps"
    record_property("measured", f"{said}, bitwise equal")
