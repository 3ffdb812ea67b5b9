"""The safetensors file format, read and written: named tensors and texts, no code.

Eight bytes with the length of a JSON header, the header (type, shape and place of every tensor),
the numbers (https://github.com/huggingface/safetensors, "Format"). Our own, so that training needs
no package beyond torch's; files are byte for byte those of the `safetensors` package.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

# in the order in which the package stores them: wide types first, so that all are aligned
TYPES = {"I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32,
         "BF16": torch.bfloat16, "F16": torch.float16, "I16": torch.int16, "I8": torch.int8,
         "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in TYPES.items()}
ALIGNMENT = 8  # of the numbers, after the header


class FormatError(ValueError):
    """Content that is no file of this format."""


def save(tensors: dict[str, torch.Tensor], texts: dict[str, str] | None = None) -> bytes:
    """Tensors and texts (the file's metadata) as the content of a file."""
    order = sorted(tensors, key=lambda name: (list(NAMES).index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": texts} if texts else {}
    parts, place = [], 0
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [place, place + len(parts[-1])]}
        place += len(parts[-1])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What `save` was given. Raises FormatError for anything else."""
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or start > len(content):
        raise FormatError("the header is cut off")
    try:
        header = json.loads(content[8:start])
        texts = header.pop("__metadata__", {})
        found = {name: _tensor(content, start, **told) for name, told in header.items()}
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"the header is wrong: {error}") from None
    if sum(tensor.nbytes for tensor in found.values()) != len(content) - start:
        raise FormatError("the tensors are not all of the file")
    return found, texts


def _tensor(content: bytes, start: int, dtype: str, shape: list[int],
            data_offsets: list[int]) -> torch.Tensor:
    first, last = data_offsets
    kind, count = TYPES[dtype], math.prod(shape)
    if not all(isinstance(n, int) and n >= 0 for n in (first, last, *shape)):
        raise ValueError(f"shape {shape}, place {data_offsets}")
    if last - first != count * kind.itemsize or start + last > len(content):
        raise ValueError(f"{count} numbers of type {dtype} at {data_offsets}")
    if not count:
        return torch.empty(shape, dtype=kind)
    numbers = bytearray(content[start + first : start + last])  # a copy that torch may write to
    return torch.frombuffer(numbers, dtype=kind).view(shape)
