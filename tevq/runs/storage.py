"""Writing files all or nothing.

A file is written beside its place, synchronised and renamed, so a save never destroys a save.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tevq.config import UserError


class StorageError(UserError, OSError):
    """Nothing could be written (disk full, read-only folder); what was there is intact."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the place and says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; make room or make the folder "
            "writable and run again. What was saved before is intact") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` all or nothing.

    Raises StorageError (disk full, read-only folder); what was at `path` stays as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, tree: Any) -> None:
    """JSON, all or nothing."""
    write_atomically(path, (json.dumps(tree, indent=1) + "\n").encode())
