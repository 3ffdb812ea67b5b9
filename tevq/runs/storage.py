"""Files of runs: written all or nothing, and checkpoints without pickle.

A file is written beside its place, synchronised and renamed, so a failed save leaves the last one
intact. A checkpoint holds tensors in the safetensors format and everything else as JSON. Its name
carries the first half of its SHA-256, so damage is noticed before anything is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tevq.config import UserError


class StorageError(UserError, OSError):
    """Nothing could be written (disk full, read-only folder); what was there is intact."""


class DamagedFileError(ValueError):
    """A file whose content does not match the checksum in its name, or is no checkpoint."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names the place, the cause and what to do."""
    try:
        yield
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
