"""Run folders and checkpoints: names, atomic saves, damage, data order."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tevq import presets
from tevq.config import SettingsError
from tevq.runs import devices
from tevq.runs import run as runs
from tevq.runs.run import open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree
from tevq.train.loop import Batches, Loop


def settings(variant="te", seed=0, **overrides):
    return presets.load("smoke", variant, seed, overrides)


@pytest.mark.promise("records")
def test_a_run_folder_is_named_by_what_decides_it(tmp_path):
    base = open_run(settings(), "stage1", tmp_path)
    assert base.folder.parent == tmp_path / "smoke" / "runs" / "stage1"
    assert base.folder.name.startswith("digits-te-s0-")
    same = open_run(settings(**{"stage2.steps": 7, "evaluation.scenes": 5}), "stage1", tmp_path)
    assert same.folder == base.folder
    for other in (settings("sc"), settings(seed=1), settings(**{"stage1.steps": 7}),
                  settings(**{"data.train": 700}), settings(**{"precision": "float32"})):
        assert open_run(other, "stage1", tmp_path).folder != base.folder
    third = open_run(settings(**{"stage2.fraction": 1 / 3}), "stage2", tmp_path)
    assert "-p33-" in third.folder.name
    evaluator = open_run(settings("sc", 4, **{"data.train": 700}), "classifier", tmp_path)
    assert evaluator.folder == open_run(settings(), "classifier", tmp_path).folder


def test_a_tree_survives_saving(tmp_path):
    tree = {"a": torch.randn(3, 4), "b": [1, "x", None, 2.5], 3: {"c": torch.arange(4)},
            "view": torch.randn(4, 4).T, "last": torch.randn(2, 3, 4, 4).to(
                memory_format=torch.channels_last)}
    found = load_tree(save_tree(tmp_path, "t", tree))
    assert list(found) == list(tree) and found["b"] == tree["b"]
    for key in ("a", "view", "last"):
        assert torch.equal(found[key], tree[key])
    assert torch.equal(found[3]["c"], tree[3]["c"])
    assert found["last"].stride() == tree["last"].stride()


@pytest.mark.promise("damage")
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(tmp_path, capsys, damage):
    """Planted fault: metrics are not cut back to the checkpoint."""
    run = open_run(settings(), "stage1", tmp_path)
    for step in (1, 2, 3):
        run.save(step, {"x": torch.full((5,), float(step))})
        run.log(step, loss=1.0 / step)
    files = sorted((run.folder / "state").iterdir())
    assert len(files) == runs.KEEP
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    content = {"flip": content, "truncate": content[:-3], "empty": b""}[damage]
    files[-1].write_bytes(bytes(content))
    with pytest.raises(DamagedFileError):
        load_tree(files[-1])
    step, state = run.latest()
    assert step == 2 and state["x"].tolist() == [2.0] * 5
    assert "damaged" in capsys.readouterr().out
    assert [row["step"] for row in run.metrics()] == [1, 2]  # the log goes back with it


@pytest.mark.promise("saves")
def test_a_failed_save_leaves_the_last_one_alone(tmp_path, monkeypatch):
    """Planted fault: the temporary file is left."""
    run = open_run(settings(), "stage1", tmp_path)
    run.save(1, {"x": torch.ones(2)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tevq.runs.storage.os.fsync", full)
    with pytest.raises(OSError):
        run.save(2, {"x": torch.zeros(2)})
    monkeypatch.undo()
    assert run.latest()[0] == 1
    assert len(list((run.folder / "state").iterdir())) == 1  # no temporary file is left


@pytest.mark.promise("records")
def test_a_folder_with_other_settings_is_refused_with_the_difference(tmp_path):
    """Planted fault: the stored settings are not compared."""
    run = open_run(settings(), "stage1", tmp_path)
    run.start(devices.detect())
    path = run.folder / "config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["settings"]["stage1"]["lr"] = 7.0
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(SettingsError, match="stage1.lr is 7.0 instead of"):
        run.start(devices.detect())


@pytest.mark.promise("records")
def test_a_training_does_not_go_on_with_other_weights_before_it(tmp_path):
    """Planted fault: after a resume the record names the later weights only."""
    run = open_run(settings(), "stage2", tmp_path)
    run.start(devices.detect(), {"stage1": "aa"})
    run.start(devices.detect(), {"stage1": "bb"})  # nothing was trained yet
    run.save(1, {"a": torch.zeros(1)})
    run.start(devices.detect(), {"stage1": "bb"})
    with pytest.raises(SettingsError, match="begun on other weights: stage1 is 'bb' instead of"):
        run.start(devices.detect(), {"stage1": "cc"})


@pytest.mark.promise("records")
def test_a_run_knows_its_source_images(tmp_path):
    """Planted faults: the hash not kept over a restart; another one accepted."""
    run, where = open_run(settings(), "stage1", tmp_path), devices.detect()
    run.start(where)
    run.check_source("aa" * 32)  # a record of before hashes were kept
    run.start(where, source="aa" * 32)
    run.start(where)
    assert run.record["source_sha256"] == "aa" * 32
    run.check_source("aa" * 32)
    other = "bb" * 32
    for refused in (lambda: run.check_source(other), lambda: run.start(where, source=other)):
        with pytest.raises(SettingsError, match="other source images .SHA-256 aaaaaaaa") as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.promise("damage")
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"settings": 3', "\0"])
def test_a_damaged_record_is_written_again(content, tmp_path):
    """Planted fault: a traceback of the JSON reader."""
    run = open_run(settings(), "stage1", tmp_path)
    run.start(devices.detect())
    (run.folder / "config.json").write_text(content, encoding="utf-8")
    assert run.made_on == {}
    run.start(devices.detect())
    assert run.record["settings"] == run.config


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_finished_run_in_a_read_only_folder_is_read_without_a_lock():
    """As nobody, because root may write everywhere. Planted faults: a lock wanted for reading;
    a run that is not finished worked on without one."""
    place = Path(tempfile.mkdtemp())  # not tmp_path, which lies in folders that only root may enter
    done, begun = (open_run(settings(seed=s), "stage1", place) for s in (0, 1))
    done.finish({"n": 1}, {"w": torch.ones(2)})
    begun.save(1, {})
    for path in (*place.rglob("*"), place):
        path.chmod(0o555 if path.is_dir() else 0o444)
    read, write = os.pipe()
    if not (pid := os.fork()):
        said = []
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            with done.lock():
                said.append(f"{done.weights()['w'].tolist()}")
            with begun.lock():
                said.append("worked on it")
        except BaseException as error:
            said.append(f"{type(error).__name__}: {error}")
        finally:
            os.write(write, "; ".join(said).encode())
            os._exit(0)
    os.waitpid(pid, 0)
    for path in (place, *place.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.rmtree(place)
    said = os.read(read, 10_000).decode()
    assert said.startswith("[1.0, 1.0]; StorageError: cannot write"), said
    assert "make the folder writable" in said


@given(st.recursive(
    st.none() | st.integers(-2**40, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.builds(lambda shape, kind: (50 * torch.randn(shape)).to(kind),
                st.lists(st.integers(0, 3), max_size=4),
                st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64,
                                 torch.int64, torch.uint8, torch.bool])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=3) | st.integers(), inner, max_size=3), max_leaves=8))
def test_any_tree_comes_back(tree):
    with tempfile.TemporaryDirectory() as folder:
        assert same(load_tree(save_tree(Path(folder), "t", tree)), tree)


def same(a, b) -> bool:
    if isinstance(b, torch.Tensor):
        return a.dtype is b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_tensors_that_share_memory_or_need_gradients_are_saved(tmp_path):
    """Planted fault: handed to the package as they are, which refuses them."""
    x = torch.arange(6.0, requires_grad=True)
    found = load_tree(save_tree(tmp_path, "t", {"a": x, "b": x[2:4], "c": x.detach()}))
    assert torch.equal(found["b"], x[2:4]) and torch.equal(found["c"], x)
    found["a"].zero_()  # may be written to, and shares nothing
    assert found["c"][5] == 5 and not found["a"].requires_grad


@pytest.mark.promise("damage")
@pytest.mark.parametrize("name", ["x", "x.safetensors", "a.b.c"])
def test_a_file_without_a_checksum_in_its_name_is_refused(tmp_path, name):
    """Planted fault: IndexError."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DamagedFileError):
        load_tree(tmp_path / name)


def test_record_names_versions_commit_and_device(tmp_path):
    run = open_run(settings(), "stage1", tmp_path)
    run.start(devices.detect())
    found = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["machine"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"commit", "device", "device_name", "precision", "threads", "instructions"} <= set(found)


def test_a_run_is_done_only_with_its_summary_and_usable_only_with_weights(tmp_path):
    run = open_run(settings(), "stage1", tmp_path)
    assert not run.done and not run.has_weights
    with pytest.raises(SettingsError, match="no weights"):
        run.weights()
    run.save(5, {"x": torch.ones(1)})
    run.finish({"seconds": 1.0}, {"w": torch.ones(3)})
    assert run.done and run.has_weights and run.latest() is None
    assert run.weights()["w"].tolist() == [1, 1, 1]


@pytest.mark.promise("resume")
def test_data_order_is_a_function_of_seed_and_step():
    whole = [Batches(10, 3, 1)[step].tolist() for step in range(7)]
    assert Batches(10, 3, 1)[5].tolist() == whole[5]  # without the steps before
    epoch = sum(whole[:3], [])
    assert len(set(epoch)) == 9 and set(epoch) <= set(range(10))
    assert whole[0] != whole[3] and Batches(10, 3, 2)[0].tolist() != whole[0]
    assert Batches(4, 100, 0)[0].sort().values.tolist() == [0, 1, 2, 3]


@pytest.mark.promise("resume")
def test_loop_goes_on_where_it_was_saved(tmp_path, capsys):
    class Counter:
        value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    run, counter = open_run(settings(), "stage1", tmp_path), Counter()
    loop = Loop(run, {"counter": counter}, 10, save_seconds=0)
    for step in loop:
        counter.value += step
        if step == 6:
            break  # the step is lost, its checkpoint (after step 5) is not
    again = Counter()
    loop = Loop(run, {"counter": again}, 10)
    assert loop.start == 6 and again.value == sum(range(6)) and loop.seconds > 0
    for step in loop:
        again.value += step
    assert again.value == sum(range(10))
    assert "goes on from step 6" in capsys.readouterr().out
