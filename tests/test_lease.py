"""A lent GPU machine: packing, working there in pieces, taking in; and what can go wrong."""

import io
import json
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
from small import TINY

import tevq.runs.run
from tevq import config, lease, presets
from tevq import leased as machine
from tevq.__main__ import main
from tevq.grid import choose
from tevq.runs.run import NETWORKS, open_run
from tevq.runs.storage import read_json, write_json

SMALL = TINY | {"evaluation.scenes": 5}
KINDS = ("stage1", "quantizer", "stage2", "evaluation", "measures")


def grid(results, seeds="0"):
    return choose("smoke", "sc", seeds, "1", SMALL, str(results))


def there(folder, seconds, **more):
    """What the other machine does: a bare copy, and no git."""
    own = {"TEVQ_PYTHON": sys.executable, "TEVQ_LEASE_WORK": str(folder / "machine"),
           "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(["bash", str(folder / "there/run.sh"), str(seconds), "1"], env=own | more,
                          capture_output=True, text=True, cwd="/", timeout=1200)


@pytest.fixture(scope="module")
def leased(tmp_path_factory):
    """One cell, packed, trained in two pieces on the other machine, and taken in."""
    folder, results = tmp_path_factory.mktemp("lease"), tmp_path_factory.mktemp("results")
    said = [lease.prepare(grid(results), folder)]
    first = there(folder, machine.CLOSING + 1)  # time for nothing
    assert first.returncode == 75, first.stderr
    cut = read_json(folder / "back/archive.json")["done"]
    second = there(folder, 1000)
    kept = {path.name: path.read_bytes() for path in (folder / "back").glob("*")}
    said.append(lease.prepare(grid(results), folder))
    return folder, results, said, (first, second), cut, kept


def test_a_cell_comes_back_finished_with_its_records(leased):
    """Planted faults: no evaluation there; records without the commit; the archive not whole."""
    folder, results, said, (first, second), cut, _ = leased
    assert "1 cells to do" in said[0] and "run.sh 540" in said[0]
    assert first.returncode == 75 and cut == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert "taken in: 7 runs, 7 of 7 done" in said[1]  # with the second judge
    assert "all runs are there" in said[1]
    for kind in KINDS:
        run = open_run(grid(results).settings, kind, results)
        assert run.done and run.made_on["commit"] != "unknown"
    assert open_run(grid(results).settings, "stage1", results).has_weights
    known = read_json(folder / "lease.json")
    assert known["seconds"] > 0 and known["pflop"] is None  # of smoke nobody counted operations
    assert not list((folder / "back").glob("*"))  # taken once


def test_what_a_lease_has_cost(leased, monkeypatch, tmp_path):
    """6 steps of 4 images and of 4 sequences, by hand."""
    _, results, *_ = leased
    (tmp_path / "results").mkdir()
    (tmp_path / "results/cost.csv").write_text(
        "preset,stage,gflop_per_sample\nsmoke,stage1,3\nsmoke,stage2,2\ngpu,stage2,9\n")
    monkeypatch.setattr(lease, "ROOT", tmp_path)
    pieces = [{"seconds": 10, "tflops": 2, "kwh": None}, {"seconds": 20, "tflops": 2, "kwh": 0.5}]
    found = lease.spent(grid(results), pieces)
    assert found["seconds"] == 30 and found["kwh"] == 0.5
    assert found["pflop"] == pytest.approx((24 * 3 + 24 * 2) / 1e6)
    assert found["share_of_rate"] == pytest.approx(120e9 / (30 * 2e12))


def test_a_setting_made_neutral_arrives_so(tmp_path):
    """Planted fault: values at neutral stay out of the pack; there the preset's own count."""
    made = choose("gpu", "sc", "0", "1", {"stage2.until": 0, "data.source": "digits"},
                  str(tmp_path))
    lease.pack(made, tmp_path, [(made.settings, KINDS)])
    with tarfile.open(tmp_path / "pack.tar.gz") as tar:
        line = json.load(tar.extractfile("cells.json"))[0]
    assert presets.load("gpu", "sc", 0).stage2.until != 0
    assert machine._settings(line["settings"]) == made.settings


def test_the_same_archive_may_be_taken_in_again(leased, tmp_path):
    """Planted fault: a traceback, because the folder it goes to is there."""
    assert "taken in: 7 runs" in again(leased, tmp_path, lambda folder: None)
    shutil.copytree(next(tmp_path.glob("taken-*")), tmp_path / "back")
    assert "taken in: 0 runs" in lease.prepare(grid(tmp_path / "results"), tmp_path)
    assert len(read_json(tmp_path / "lease.json")["pieces"]) == 1


def again(leased, tmp_path, change):
    """Takes the same archive into an empty results folder after a change to it."""
    kept = leased[-1]
    back = tmp_path / "back"
    back.mkdir()
    for name, content in kept.items():
        (back / name).write_bytes(content)
    change(tmp_path)
    return lease.prepare(grid(tmp_path / "results"), tmp_path)


def cut_short(folder):
    path = folder / "back/archive.0"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_piece(folder):
    (folder / "back/archive.0").unlink()


def another_card(folder):
    write_json(folder / "lease.json", {"on": {"device": "Card B", "torch": "9.9"}, "pieces": []})


@pytest.mark.parametrize(("change", "words"), [
    (cut_short, "archive.0 is missing or damaged; copy it again"),
    (lose_a_piece, "archive.0 is missing or damaged"),
    (another_card, "before on Card B with torch 9.9; results of both do not compare"),
])
def test_a_bad_archive_is_one_line_and_changes_nothing(leased, tmp_path, change, words):
    with pytest.raises(lease.LeaseError, match=words):
        again(leased, tmp_path, change)
    assert not (tmp_path / "results").exists() and (tmp_path / "back/archive.json").exists()


def test_finished_runs_are_never_replaced(leased, tmp_path):
    results = tmp_path / "results"
    run = open_run(grid(results).settings, "stage1", results)
    write_json(run.folder / "summary.json", {"steps": 1, "images": 1})
    again(leased, tmp_path, lambda folder: None)
    assert run.summary()["steps"] == 1
    assert open_run(grid(results).settings, "quantizer", results).done


def test_what_is_further_here_stays(leased, tmp_path):
    """Planted faults: the state removed first; a checkpoint of ours behind an older one of theirs;
    the lock of a training not asked for."""
    name = grid(tmp_path).settings

    def taken(step: int | None) -> set[str]:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            state = [f"state/step-{step:09d}.1.safetensors"] if step else []
            for path in ["config.json", *state]:
                entry = tarfile.TarInfo(f"smoke/runs/stage1/{run.folder.name}/{path}")
                tar.addfile(entry, io.BytesIO(b""))
        lease._extract(content.getvalue(), tmp_path)
        return {path.name for path in run.folder.glob("state/*")}

    run = open_run(name, "stage1", tmp_path)
    assert taken(50) == {"step-000000050.1.safetensors"}
    assert taken(70) == {"step-000000070.1.safetensors"}
    for older in (60, None):
        assert taken(older) == {"step-000000070.1.safetensors"}


def test_what_rests_on_lost_weights_stays_here(tmp_path):
    """Planted faults: published numbers packed without their networks; git's weights not found."""
    results = tmp_path / "results"
    settings = grid(results).settings
    for kind in ("classifier", *KINDS):
        run = open_run(settings, kind, results)
        run.folder.mkdir(parents=True)
        run.finish({}, {"w": torch.ones(1)} if kind in NETWORKS else None)

    def packed() -> list[str]:
        todo = [(settings, KINDS)]
        return [run.folder.parent.name for run in lease.runs_of(todo, results, carried=True)]

    assert packed() == ["classifier", *KINDS, "classifier"]
    shutil.rmtree(open_run(settings, "stage2", results).folder / "state")
    assert packed() == ["classifier", "stage1", "quantizer", "classifier"]
    shutil.rmtree(open_run(settings, "classifier", results).folder / "state")
    assert packed() == ["classifier"]  # the second judge, which nobody has trained


def test_the_weights_of_git_are_carried(tmp_path, monkeypatch):
    """Published, and `results/local` reads it from there. Planted faults: a network without its
    weights; everything taken in again, so that published results no longer count."""
    monkeypatch.delenv("TEVQ_RESULTS", raising=False)
    for module in (config, tevq.runs.run):
        monkeypatch.setattr(module, "LOCAL", tmp_path / "local")
    monkeypatch.setattr(lease, "_add_source", lambda tar, name: None)
    made = choose("laptop", "te", "0", "1")
    lease.pack(made, tmp_path, [(made.settings, ("stage1",))])
    with tarfile.open(tmp_path / "pack.tar.gz") as tar:
        held = [name for name in tar.getnames() if "/state/weights." in name]
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as back:
            for entry in tar:
                if entry.name.startswith("results/"):
                    data = tar.extractfile(entry).read()
                    entry.name, entry.pax_headers = entry.name.removeprefix("results/"), {}
                    back.addfile(entry, io.BytesIO(data))
    assert len(held) == 2 and any("/stage1/" in name for name in held)
    assert lease._extract(content.getvalue(), tmp_path / "local") == 0
    assert open_run(made.settings, "evaluation").done
    assert lease._extract(content.getvalue(), tmp_path / "elsewhere") == 2


def test_what_has_no_room_is_named(leased, tmp_path, monkeypatch):
    """Planted fault: records dropped before weights."""
    folder, results, *_ = leased
    runs = lease.runs_of([(grid(results).settings, KINDS)], results)
    monkeypatch.setattr(machine, "PIECE", 150_000)
    machine.archive(runs, tmp_path, {"done": 5, "runs": 5})
    note = json.loads((tmp_path / "archive.json").read_text())
    assert note["without_state"] and all(
        (tmp_path / f"archive.{n}").stat().st_size <= 150_000 for n in range(len(note["pieces"])))


def test_too_much_to_carry_and_sources_that_stay_here(tmp_path, monkeypatch, capsys):
    """Planted fault: for --lease a message that names --results."""
    monkeypatch.setattr(lease, "MOST_THERE", 1000)
    command = ["--preset", "smoke", "--variants", "sc", "--seeds", "0", "--lease",
               str(tmp_path / "a"), "--results", str(tmp_path)]
    assert main(command) == 2
    assert "more than 0; choose fewer seeds" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*command, "--lease", str(tmp_path / "file")]) == 2
    assert f"tevq: --lease {tmp_path / 'file'}: Not a directory; use" in capsys.readouterr().err
    assert main([*command, "--set", "data.source=folder:/nowhere"]) == 2
    assert "--lease carries mnist, fashion, digits" in capsys.readouterr().err
