"""One process at a time works on a run; the others know who does and wait.

Two things together are the lock. The system's own lock keeps processes of one machine apart, and a
killed process loses it. It may not reach other machines (network folders), so beside it lies a note
that one process can create and that its owner touches from time to time. The `filelock` package has
such notes, too, but knows machines by their names, which cloned machines share.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from tevq.runs.storage import read_json, write_json, writing

HEARTBEAT = 20.0  # seconds between signs of life of an owner
STALE = 120.0  # seconds without one, after which the owner counts as dead
SETTLE = 1.0  # seconds in which two that take over at once see each other
NOTICE = 60.0  # seconds between two lines of a process that waits
POLL = 0.5


@cache
def boot() -> str:
    """Random name of this start of this machine; empty where nobody tells it."""
    with contextlib.suppress(OSError):  # Linux
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError):  # macOS
        return subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True,
                              encoding="utf-8").stdout.strip()
    return ""


@contextlib.contextmanager
def hold(path: Path, name: str, stop: Callable[[], bool] = lambda: False
         ) -> Iterator[Callable[[], bool] | None]:
    """Holds the lock file `path` (made if absent) while the block runs.

    It is taken over when its owner is known to be dead, or has shown no sign of life for STALE.

    name: what is locked, for messages; stop: asked while waiting, True gives up. Yields a function
    that tells whether the lock is still ours; None when `stop` said so. Raises StorageError for a
    read-only folder.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    note, lock, over = path.with_suffix(".owner"), FileLock(path), threading.Event()
    me = {"token": uuid.uuid4().hex, "boot": boot(), "pid": os.getpid(), "host": platform.node()}

    def ours() -> bool:
        return read_json(note).get("token") == me["token"]

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                if ours():
                    os.utime(note)

    thread = threading.Thread(target=beat, daemon=True)
    try:
        if _acquire(lock, note, name, me, stop):
            thread.start()
            yield ours
        else:
            yield None
    finally:
        over.set()
        if thread.ident:
            thread.join()
        with contextlib.suppress(OSError):
            if ours():
                note.unlink()
        lock.release()


def _acquire(lock: FileLock, note: Path, name: str, me: dict, stop: Callable[[], bool]) -> bool:
    """Waits for the lock; False when `stop` said so."""
    said, beat, seen = -math.inf, -1, 0.0  # time of the last line, last sign of life, when seen
    while not stop():
        free = True
        with writing(note):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                free = False
        if free and _create(note, me):
            return True
        holder, clock = read_json(note), time.monotonic()
        with contextlib.suppress(OSError):
            if (touched := note.stat().st_mtime_ns) != beat:
                beat, seen = touched, clock
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        killed = free and boot() and holder.get("boot") == boot()  # it would have the system's lock
        if killed or (free and beat >= 0 and clock - seen > STALE):
            write_json(note, me)
            time.sleep(0 if killed else SETTLE)
            if read_json(note).get("token") == me["token"]:
                print(f"{name}: {who} {'was killed' if killed else 'shows no sign of life'}; "
                      "taking over", flush=True)
                return True
        lock.release()
        if clock - said >= NOTICE:
            print(f"{name}: waiting for {who}, which works on it", flush=True)
            said = clock
        time.sleep(POLL)
    return False


def _create(note: Path, me: dict) -> bool:
    """Writes the note if there is none: the system lets one process succeed, also over NFS."""
    with writing(note), contextlib.suppress(FileExistsError):
        note.touch(exist_ok=False)
        try:
            write_json(note, me)
        except BaseException:  # a full disk
            note.unlink(missing_ok=True)
            raise
        return True
    return False
