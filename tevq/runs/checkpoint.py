"""Checkpoints without pickle: tensors in the safetensors format, everything else in JSON.

A file's name carries the first half of its SHA-256, so damage is noticed before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from tevq.runs.storage import write_atomically
from tevq.runs.tensorfile import load, save


class DamagedFileError(ValueError):
    """A file whose content does not match the checksum in its name."""


def save_tree(folder: Path, stem: str, tree: Any) -> Path:
    """Saves nested dictionaries, lists, tensors and plain values as `<stem>.<sha>.safetensors`.

    Dictionary keys may be strings or whole numbers (as in optimizer states).
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _pack(tree, tensors)
    content = save(tensors, {"structure": json.dumps(structure)})
    path = folder / f"{stem}.{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    write_atomically(path, content)
    return path


def load_tree(path: Path) -> Any:
    """What `save_tree` saved. Raises DamagedFileError when the checksum does not match."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:32] != path.name.split(".")[-2]:
        raise DamagedFileError(f"{path} is damaged: its content does not match its checksum")
    try:
        tensors, texts = load(content)
        return _unpack(json.loads(texts["structure"]), tensors)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not a checkpoint of this project: {error}") from None


def _pack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous()  # the file knows no other layout
        return {"tensor": name, "channels_last": _is_channels_last(tree)}
    if isinstance(tree, dict):
        return {"dict": [[key, _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_pack(value, tensors) for value in tree]}
    return {"value": tree}


def _unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        # the memory layout selects kernels, hence the last bits of a resumed training
        return tensor.contiguous(memory_format=torch.channels_last) if node[
            "channels_last"] else tensor
    if "dict" in node:
        return {key: _unpack(value, tensors) for key, value in node["dict"]}
    if "list" in node:
        return [_unpack(value, tensors) for value in node["list"]]
    return node["value"]


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return (tensor.dim() == 4 and not tensor.is_contiguous()
            and tensor.is_contiguous(memory_format=torch.channels_last))
