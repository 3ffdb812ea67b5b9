"""Run folders and checkpoints: names, atomic saves, damage, data order."""

import json

import pytest
import torch

from tevq import presets
from tevq.config import SettingsError
from tevq.runs import run as runs
from tevq.runs.storage import DamagedFileError, load_tree, save_tree
from tevq.runs.run import open_run
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
    from tevq.runs import devices

    run = open_run(settings(), "stage1", tmp_path)
    run.start(devices.detect())
    path = run.folder / "config.json"
    tree = json.loads(path.read_text())
    tree["settings"]["stage1"]["lr"] = 7.0
    path.write_text(json.dumps(tree))
    with pytest.raises(SettingsError, match="stage1.lr is 7.0 instead of"):
        run.start(devices.detect())


@pytest.mark.promise("records")
def test_a_training_does_not_go_on_with_other_weights_before_it(tmp_path):
    """Planted fault: after a resume the record names the later weights only."""
    from tevq.runs import devices

    run = open_run(settings(), "stage2", tmp_path)
    run.start(devices.detect(), {"stage1": "aa"})
    run.start(devices.detect(), {"stage1": "bb"})  # nothing was trained yet
    run.save(1, {"a": torch.zeros(1)})
    run.start(devices.detect(), {"stage1": "bb"})
    with pytest.raises(SettingsError, match="begun on other weights: stage1 is 'bb' instead of"):
        run.start(devices.detect(), {"stage1": "cc"})


def test_record_names_versions_commit_and_device(tmp_path):
    from tevq.runs import devices

    run = open_run(settings(), "stage1", tmp_path)
    run.start(devices.detect())
    found = json.loads((run.folder / "config.json").read_text())["machine"]
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"commit", "device", "device_name", "precision", "threads"} <= set(found)


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
    assert "going on at step 6" in capsys.readouterr().out
