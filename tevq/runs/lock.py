"""One process at a time works on a run; the others know who does and wait.

The operating system's file lock keeps processes of one machine apart and falls with its owner, so a
kill leaves nothing behind. Beside it lies a note with the owner and a heartbeat, for people and for
network folders whose locks do not reach other machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tevq.runs.storage import write_json, writing

HEARTBEAT = 20.0  # seconds between signs of life
STALE = 120.0  # seconds without one, after which an owner on another machine counts as dead
NOTICE = 60.0  # seconds between two lines of a process that waits
POLL = 0.5


@contextlib.contextmanager
def hold(path: Path, name: str, stop: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Holds the lock file `path` (made if absent) while the block runs.

    name: what is locked, for messages; stop: asked while waiting, True gives up. Yields whether the
    lock is held, which is True unless `stop` said so. Raises StorageError for a read-only folder.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    note, lock = path.with_suffix(".owner"), FileLock(path)
    if not _acquire(lock, note, name, stop):
        yield False
        return
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(note, over), daemon=True)
    try:
        write_json(note, {"pid": os.getpid(), "host": platform.node(),
                          "since": time.strftime("%F %T")})
        beat.start()
        yield True
    finally:
        over.set()
        if beat.ident:
            beat.join()
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def owner(note: Path) -> dict[str, str | int]:
    """Who holds a lock, from its note; empty when there is none or it cannot be read."""
    try:
        found = json.loads(note.read_text())
        return {key: found[key] for key in ("pid", "host", "since")}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _acquire(lock: FileLock, note: Path, name: str, stop: Callable[[], bool]) -> bool:
    """Waits for the lock; False when `stop` said so."""
    said = seen = time.monotonic() - NOTICE  # the first line comes at once
    beat = None
    while not stop():
        with writing(Path(lock.lock_file)), contextlib.suppress(Timeout):
            lock.acquire(timeout=POLL)
        holder = owner(note)
        if lock.is_locked:
            if not holder:
                return True
            if holder["host"] == platform.node():  # it had the lock, and the lock is free
                print(f"{name}: process {holder['pid']} was killed while it worked on this; "
                      "taking over", flush=True)
                return True
            if beat is not None and time.monotonic() - seen > STALE:
                print(f"{name}: no sign of life from {holder['host']} for {STALE:.0f} s; "
                      "taking over", flush=True)
                return True
            lock.release()  # its owner is on a machine that this lock does not reach
            time.sleep(POLL)
        if (now := _heartbeat(note)) != beat:
            beat, seen = now, time.monotonic()
        if time.monotonic() - said >= NOTICE:
            print(f"{name}: waiting for process {holder.get('pid', '?')} on "
                  f"{holder.get('host', '?')}, which works on it", flush=True)
            said = time.monotonic()
    return False


def _heartbeat(note: Path) -> int:
    try:
        return note.stat().st_mtime_ns
    except OSError:
        return 0


def _beat(note: Path, over: threading.Event) -> None:
    """Touches the note until the work is over."""
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(note)
