"""Files of runs: written all or nothing, checkpoints without pickle, and the lock of a folder.

A file is written beside its place, synchronised and renamed, so a failed save leaves the last one
intact. A checkpoint holds tensors in the safetensors format and everything else as JSON. Its name
carries the first half of its SHA-256, so damage is noticed before anything is loaded.

One process at a time works on a run; the others know who does and wait. Two things together are the
lock (`hold`). The system's own lock keeps processes of one machine apart, and a killed process
loses it. It may not reach other machines (network folders), so beside it lies a note that one
process can create and that its owner touches from time to time. The `filelock` package has such
notes, too, but knows machines by their names, which cloned machines share.
"""

import contextlib
import errno
import hashlib
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

from tevq.config import UserError

HEARTBEAT = 20.0  # seconds between signs of life of an owner
STALE = 120.0  # seconds without one, after which the owner counts as dead
SETTLE = 1.0  # seconds in which two that take over at once see each other
NOTICE = 60.0  # seconds between two lines of a process that waits
POLL = 0.5


class StorageError(UserError, OSError):
    """Nothing could be written (disk full, read-only folder); what was there is intact."""


class DamagedFileError(ValueError):
    """A file whose content does not match the checksum in its name, or is no checkpoint."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the place, the cause and what to do."""
    try:
        yield
    except StorageError:  # from within, where it was told already
        raise
    except OSError as error:
        remedy = ("make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else
                  "make the folder writable or choose another (--results, TEVQ_RESULTS)")
        raise StorageError(f"cannot write {path}: {error.strerror or error}; {remedy} and run "
                           "again. What was saved before is intact") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` all or nothing.

    Raises StorageError (disk full, read-only folder); what was at `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_json(path: Path, tree: Any) -> None:
    """JSON, all or nothing."""
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        tree = json.loads(path.read_text(encoding="utf-8"))
        return tree if isinstance(tree, dict) else {}
    return {}


def save_tree(folder: Path, stem: str, tree: Any) -> Path:
    """Saves nested dictionaries, lists, tensors and plain values as `<stem>.<sha>.safetensors`.

    Dictionary keys may be strings or whole numbers (as in optimizer states).
    """
    from safetensors.torch import save  # whoever only writes JSON does not wait for torch

    tensors: dict[str, Any] = {}
    content = save(tensors, {"structure": json.dumps(_pack(tree, tensors))})
    path = folder / f"{stem}.{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    write_atomically(path, content)
    return path


def load_tree(path: Path) -> Any:
    """What `save_tree` saved. Raises DamagedFileError when the checksum does not match."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    if path.name.split(".")[-2:-1] != [hashlib.sha256(content).hexdigest()[:32]]:
        raise DamagedFileError(f"{path} is damaged: its content does not match its checksum")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _unpack(json.loads(header["__metadata__"]["structure"]), tensors)
    except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DamagedFileError(f"{path} is not a checkpoint of this project: {error}") from None


def _pack(tree: Any, tensors: dict[str, Any]) -> Any:
    from torch import Tensor, channels_last

    if isinstance(tree, Tensor):
        name = str(len(tensors))
        # the file knows no other layout, and no two tensors that share memory
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        last = tree.dim() == 4 and not tree.is_contiguous() and tree.is_contiguous(
            memory_format=channels_last)
        return {"tensor": name, "channels_last": last}
    if isinstance(tree, dict):
        return {"dict": [[key, _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_pack(value, tensors) for value in tree]}
    return {"value": tree}


def _unpack(node: Any, tensors: dict[str, Any]) -> Any:
    from torch import channels_last

    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        # the memory layout selects kernels, hence the last bits of a resumed training
        return tensor.contiguous(memory_format=channels_last) if node["channels_last"] else tensor
    if "dict" in node:
        return {key: _unpack(value, tensors) for key, value in node["dict"]}
    if "list" in node:
        return [_unpack(value, tensors) for value in node["list"]]
    return node["value"]


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
    that tells whether the lock is still ours; None after `stop`. Raises StorageError if read-only.
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
    thread.start()
    try:
        yield ours if _acquire(lock, note, name, me, stop) else None
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):
            if ours():
                note.unlink()
        lock.release()


def _acquire(lock: FileLock, note: Path, name: str, me: dict, stop: Callable[[], bool]) -> bool:
    """Waits for the lock; False when `stop` said so."""
    said, beat, seen = -math.inf, -1, 0.0  # time of the last line, last sign of life, when seen
    while not stop():
        with writing(note), contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
        free = lock.is_locked  # by us, so for all others of this machine
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
