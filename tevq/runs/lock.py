"""One process at a time works on a run; the others know who does and wait.

Two things together are the lock. The system's own lock keeps processes of one machine apart. It may
not reach other machines (network folders), so beside it lies a note that one process can create and
that its owner touches from time to time. Nobody is known by a name: cloned machines share theirs.
"""

from __future__ import annotations

import contextlib
import errno
import json
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
from typing import Any

from filelock import FileLock, Timeout

from tevq.runs.storage import read_json, write_json, writing

HEARTBEAT = 20.0  # seconds between signs of life of an owner
STALE = 120.0  # seconds without one, after which the owner counts as dead
SETTLE = 1.0  # seconds in which two that take over at once see each other
NOTICE = 60.0  # seconds between two lines of a process that waits
POLL = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


@cache
def boot() -> str:
    """Random name of this start of this machine (and container); empty where nobody tells it."""
    with contextlib.suppress(OSError):  # Linux
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{name}/{os.readlink('/proc/self/ns/pid')}"
    with contextlib.suppress(OSError):  # macOS
        return subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True,
                              encoding="ascii").stdout.strip()
    return ""


def now() -> str:
    """Date and time, for people."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def owner(path: Path) -> dict[str, Any]:
    """The note of who holds a lock; empty when there is none or it cannot be read."""
    return read_json(path.with_suffix(".owner"))


@contextlib.contextmanager
def hold(path: Path, name: str, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """Holds the lock file `path` (made if absent) while the block runs.

    It is taken over when its owner is known to be dead, or has shown no sign of life for STALE.

    name: what is locked, for messages; stop: asked while waiting, True gives up. Yields the random
    token in the note; "" when `stop` said so. Raises StorageError for a read-only folder.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    note, lock, token = path.with_suffix(".owner"), FileLock(path), uuid.uuid4().hex
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(note, token, over), daemon=True)
    try:
        if not _acquire(lock, note, name, token, stop):
            yield ""
            return
        beat.start()
        yield token
    finally:
        over.set()
        if beat.ident:
            beat.join()
        with contextlib.suppress(OSError):
            if read_json(note).get("token") == token:
                note.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, note: Path, name: str, token: str, stop: Callable[[], bool]) -> bool:
    """Waits for the lock; False when `stop` said so."""
    said, beat, seen = -math.inf, -1, 0.0  # time of the last line, last sign of life, when seen
    while not stop():
        free = _free(lock)
        if free and _create(note, token):
            return True
        holder, clock = read_json(note), time.monotonic()
        if (touched := _touched(note)) != beat:
            beat, seen = touched, clock
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        if free and _dead(holder):
            print(f"{name}: {who} was killed while it worked on this; taking over", flush=True)
            write_json(note, _me(token))
            return True
        if free and clock - seen > STALE:
            write_json(note, _me(token))
            time.sleep(SETTLE)
            if read_json(note).get("token") == token:
                print(f"{name}: no sign of life from {who} for {STALE:.0f} s; taking over",
                      flush=True)
                return True
        lock.release()
        if clock - said >= NOTICE:
            print(f"{name}: waiting for {who}, which works on it", flush=True)
            said = clock
        time.sleep(POLL if free else 0)
    return False


def _free(lock: FileLock) -> bool:
    """Takes the system's lock, waiting for a moment. True also where there is no such lock."""
    with writing(Path(lock.lock_file)):
        try:
            lock.acquire(timeout=POLL)
        except Timeout:
            return False
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                raise
    return True


def _create(note: Path, token: str) -> bool:
    """Writes the note if there is none: the system lets one process succeed, also over NFS."""
    with writing(note), contextlib.suppress(FileExistsError):
        with note.open("x", encoding="utf-8") as file:
            try:
                file.write(json.dumps(_me(token)))
                file.flush()
            except BaseException:  # a full disk
                note.unlink(missing_ok=True)
                raise
        return True
    return False


def _me(token: str) -> dict[str, Any]:
    return {"token": token, "boot": boot(), "pid": os.getpid(), "host": platform.node(),
            "since": now()}


def _dead(holder: dict[str, Any]) -> bool:
    """True when a process of this very start of this machine is no longer there."""
    pid = holder.get("pid")
    if not boot() or holder.get("boot") != boot() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
        # a killed process whose parent has not asked for its exit code yet
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False


def _touched(note: Path) -> int:
    try:
        return note.stat().st_mtime_ns
    except OSError:
        return 0


def _beat(note: Path, token: str, over: threading.Event) -> None:
    """Touches the note until the work is over."""
    while not over.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            if read_json(note).get("token") == token:
                os.utime(note)
