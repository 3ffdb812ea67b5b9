"""One process at a time: waiting, killed owners, owners on other machines."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tevq import presets
from tevq.runs import devices
from tevq.runs import storage as lock
from tevq.runs.run import LostLockError, open_run
from tevq.runs.storage import StorageError, read_json

pytestmark = pytest.mark.promise("two-runs")

HOLDER = """
import sys, time
from pathlib import Path
from tevq.runs import storage as lock
with lock.hold(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(60)
"""


class OtherMachines:
    """The lock of a file system that reaches no other process."""

    is_locked = True

    def __init__(self, path: Path):
        pass

    def acquire(self, timeout: float) -> None:
        pass

    def release(self) -> None:
        pass


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every owner is as on another machine, which no system lock reaches."""
    monkeypatch.setattr(lock, "FileLock", OtherMachines)
    monkeypatch.setattr(lock, "boot", lambda: "")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "POLL", 0.02)
    return tmp_path / "folder" / ".lock"


def test_a_second_one_waits_and_says_for_whom(path, capsys):
    """Planted fault: no lock; both blocks then overlap."""
    order = []

    def second():
        with lock.hold(path, "work") as held:
            order.append(f"second {held()}")

    with lock.hold(path, "work"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert read_json(path.with_suffix(".owner"))["pid"] == os.getpid()
        order.append("first")
    thread.join()
    assert order == ["first", "second True"]
    assert f"work: waiting for process {os.getpid()}" in capsys.readouterr().out
    assert not path.with_suffix(".owner").exists()


def test_a_killed_owner_is_followed_at_once(path, capsys):
    """Planted fault: the note of a dead process of this machine is believed until it is stale."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    give_up = time.monotonic() + 30
    with lock.hold(path, "work", lambda: time.monotonic() > give_up) as held:
        assert held and held()
    assert f"process {child.pid} on {platform.node()} was killed" in capsys.readouterr().out


@pytest.mark.parametrize("boot", ["another boot", ""], ids=["cloned machine", "unknown"])
def test_an_owner_elsewhere_counts_while_it_shows_life(path, boot, monkeypatch, capsys):
    """The file lock is free, as on a network folder whose locks do not reach the other machine,
    whose name is ours (a clone) and whose process number means nobody here.
    Planted faults: the note is not looked at; a host name taken for an identity."""
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(lock, "SETTLE", 0.05)
    if not boot:
        monkeypatch.setattr(lock, "boot", lambda: "")
    path.parent.mkdir()
    note = path.with_suffix(".owner")
    note.write_text(json.dumps({"token": "7", "boot": boot, "pid": 2**22 + 1,
                                "host": platform.node(), "since": "now"}), encoding="utf-8")
    alive_until = time.monotonic() + 1.5

    def stop():  # asked before every look; shows a sign of life for a while
        if time.monotonic() < alive_until:
            os.utime(note)
        return False

    with lock.hold(path, "work", stop) as held:
        assert held() and time.monotonic() > alive_until
    said = capsys.readouterr().out
    assert f"waiting for process {2**22 + 1} on {platform.node()}" in said
    assert "shows no sign of life" in said and "killed" not in said


def test_two_that_start_at_once_without_shared_locks_do_not_both_hold(path, elsewhere):
    """Planted fault: a note written without looking whether there is one."""
    inside, most = [0], [0]

    def work():
        with lock.hold(path, "work"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_two_that_take_over_at_once_do_not_both_hold(path, elsewhere, monkeypatch):
    """Planted fault: the note not read again after it was replaced."""
    monkeypatch.setattr(lock, "STALE", 1.5)  # far above SETTLE, or they take over for ever
    monkeypatch.setattr(lock, "SETTLE", 0.3)
    path.parent.mkdir()
    path.with_suffix(".owner").write_text("{}", encoding="utf-8")
    held, over = [], threading.Event()

    def work():
        with lock.hold(path, "work", over.is_set) as ours:
            if ours:
                held.append(ours())
                over.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == [True]


def test_an_owner_that_stood_still_writes_no_more_and_spoils_nothing(tmp_path, monkeypatch):
    """Another machine has taken the run over. Planted faults: a save without a look at the note;
    the heartbeat or the end of the old owner touching or deleting the new one's note."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    run = open_run(presets.load("smoke", "te", 0), "stage1", tmp_path)
    note = run.folder / ".lock.owner"
    with run.lock():
        run.save(1, {"x": torch.ones(1)})
        note.write_text('{"token": "another"}', encoding="utf-8")
        os.utime(note, (1, 1))
        for write in (lambda: run.save(2, {}), lambda: run.log(2, loss=1.0),
                      lambda: run.finish({}), lambda: run.start(devices.detect())):
            with pytest.raises(LostLockError, match="another process works on it now"):
                write()
        time.sleep(0.2)
    assert note.stat().st_mtime == 1 and run.steps_saved() == [1] and not run.done


def test_waiting_can_be_given_up(path):
    with lock.hold(path, "work"), lock.hold(path, "work", lambda: True) as held:
        assert not held


def test_the_owner_shows_life(path, monkeypatch):
    """Planted fault: the heartbeat does not touch the note."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    note = path.with_suffix(".owner")
    with lock.hold(path, "work"):
        os.utime(note, (1, 1))
        end = time.monotonic() + 10
        while note.stat().st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert note.stat().st_mtime > 2


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write .*Not a directory; make the folder"):
        with lock.hold(tmp_path / "file" / "x" / ".lock", "work"):
            pass
