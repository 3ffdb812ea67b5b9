"""Full disks and read-only folders: one clear line, and the last save intact."""

import contextlib
import errno
import os
import resource

import pytest
import torch
from small import FEATURES, tiny

from tevq import presets
from tevq.runs import run as runs
from tevq.runs.run import open_run
from tevq.runs.storage import StorageError, hold, write_atomically
from tevq.train import loop, stage1

pytestmark = pytest.mark.promise("saves")


@contextlib.contextmanager
def largest_file(size: int):
    """No file can grow past `size`; the system says so like a full disk does.

    Only around one call: pytest's own output may go to a file that is larger.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """Planted fault: writing straight to the final name; half a file is then the newest."""
    run = open_run(presets.load("smoke", "te", 0), "stage1", tmp_path)
    run.save(1, {"x": torch.ones(1000)})
    with pytest.raises(StorageError, match=r"step-0+2\..*File too large; make room"):
        with largest_file(2048):
            run.save(2, {"x": torch.zeros(1000)})
    step, state = run.latest()
    assert step == 1 and state["x"].sum() == 1000
    assert len(list((run.folder / "state").iterdir())) == 1


def test_a_training_on_a_full_disk_ends_in_one_line_and_goes_on_later(tmp_path, monkeypatch):
    """Planted fault: the error of the system as it is, a traceback without advice."""
    monkeypatch.setattr(stage1, "KMEANS_VECTORS", FEATURES)
    monkeypatch.setattr(loop.Loop.__init__, "__defaults__", (-1, None))
    whole = stage1.train(tiny(), tmp_path / "whole")
    save = runs.Run.save

    def full_from_step_3(self, step, state):
        full = step >= 3 and self.folder.parent.name == "stage1"
        with largest_file(1024) if full else contextlib.nullcontext():
            save(self, step, state)

    monkeypatch.setattr(runs.Run, "save", full_from_step_3)
    with pytest.raises(StorageError) as error:
        stage1.train(tiny(), tmp_path / "full")
    lines = error.value._render_traceback_()
    assert len(lines) == 1 and "What was saved before is intact" in lines[0]
    run = open_run(tiny(), "stage1", tmp_path / "full")
    assert run.steps_saved() == [2, 1] and not run.done
    monkeypatch.setattr(runs.Run, "save", save)
    again = stage1.train(tiny(), tmp_path / "full")
    assert all(torch.equal(a, b) for a, b in
               zip(again.weights().values(), whole.weights().values(), strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_read_only_folder_is_one_line(tmp_path):
    """As nobody, because root may write everywhere. Planted fault: a bare PermissionError."""
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    tmp_path.chmod(0o555)
    read, write = os.pipe()
    if not (pid := os.fork()):
        said = "nothing was raised"
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            write_atomically(target, b"new")
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.waitpid(pid, 0)
    said = os.read(read, 10_000).decode()
    tmp_path.chmod(0o755)
    assert said.startswith("StorageError: cannot write") and "Permission denied" in said
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("number, advice", [
    (errno.ENOSPC, "make room and run again"), (errno.EDQUOT, "make room and run again"),
    (errno.EROFS, "make the folder writable"), (errno.EIO, "choose another")])
def test_the_advice_fits_the_cause(number, advice, tmp_path, monkeypatch):
    """Planted faults: every error blamed on a lack of space; the same told twice by `hold`."""
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tevq.runs.storage.os.fsync", fail)
    with pytest.raises(StorageError, match=advice) as error:
        write_atomically(tmp_path / "x", b"new")
    assert ("room" in str(error.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert os.strerror(number) in str(error.value) and not list(tmp_path.iterdir())
    with pytest.raises(StorageError) as error, hold(tmp_path / ".lock", "x"):
        pass
    assert str(error.value).count("cannot write") == 1 and advice in str(error.value)
