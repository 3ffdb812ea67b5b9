"""One process at a time: waiting, killed owners, owners on other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tevq.runs import lock
from tevq.runs.storage import StorageError

pytestmark = pytest.mark.promise("two-runs")

HOLDER = """
import sys, time
from pathlib import Path
from tevq import lock
with lock.hold(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "POLL", 0.02)
    return tmp_path / "folder" / ".lock"


def test_a_second_one_waits_and_says_for_whom(path, capsys):
    """Planted fault: no lock; both blocks then overlap."""
    order = []

    def second():
        with lock.hold(path, "work") as held:
            order.append(f"second {held}")

    with lock.hold(path, "work"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        assert lock.owner(path.with_suffix(".owner"))["pid"] == os.getpid()
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
        assert held
    assert f"process {child.pid} was killed" in capsys.readouterr().out


def test_an_owner_on_another_machine_counts_while_it_shows_life(path, monkeypatch, capsys):
    """The file lock is free, as on a network folder whose locks do not reach the other machine.
    Planted fault: the note is not looked at, and both machines work."""
    monkeypatch.setattr(lock, "STALE", 0.5)
    path.parent.mkdir()
    note = path.with_suffix(".owner")
    note.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "now"}))
    alive_until = time.monotonic() + 1.5

    def stop():  # asked before every look; shows a sign of life for a while
        if time.monotonic() < alive_until:
            os.utime(note)
        return False

    with lock.hold(path, "work", stop) as held:
        assert held and time.monotonic() > alive_until
    said = capsys.readouterr().out
    assert "waiting for process 7 on elsewhere" in said and "no sign of life" in said


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
    with pytest.raises(StorageError, match="cannot write .*make room"):
        with lock.hold(tmp_path / "file" / "x" / ".lock", "work"):
            pass
