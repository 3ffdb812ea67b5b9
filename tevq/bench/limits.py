"""What the machine can do at best, measured: matrix products, convolutions, copies."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tevq.bench import timing as bench
from tevq.runs.devices import Device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def limit(kind: str, where: Device) -> str:
    """Name of the limit of `matmul` or `conv` in the machine's precision."""
    return f"{kind}-{where.precision}"


def measure(where: Device, repeats: int = 5, size: int = 2048, channels: int = 128,
            batch: int = 8) -> list[dict[str, Any]]:
    """Rows name, rate (best of `repeats`), unit.

    matmul-*: square matrices of `size`; conv-*: 3x3, `channels` to `channels`, on (batch, 64, 64),
    channels last, and for `conv-float32-default` in the default layout; copy: bytes read and
    written. bfloat16 is left out on processors without it.
    """
    rows = []
    for name, dtype in DTYPES.items():
        if dtype is torch.bfloat16 and where.dtype is torch.float32:
            continue
        a, b = (torch.randn(size, size, device=where.device, dtype=dtype) for _ in range(2))
        rows.append(_row(f"matmul-{name}", 2 * size**3, lambda a=a, b=b: a @ b, repeats))
        x = torch.randn(batch, channels, 64, 64, device=where.device, dtype=dtype)
        w = torch.randn(channels, channels, 3, 3, device=where.device, dtype=dtype)
        layouts = {"": torch.channels_last}
        if dtype is torch.float32:
            layouts["-default"] = torch.contiguous_format
        for label, layout in layouts.items():
            x, w = (t.contiguous(memory_format=layout) for t in (x, w))
            rows.append(_row(f"conv-{name}{label}", 2 * 9 * channels * x.numel(),
                             lambda x=x, w=w: F.conv2d(x, w, padding=1), repeats))
    data = torch.zeros(2**26, device=where.device)  # 256 MiB, more than any cache
    target = torch.empty_like(data)
    row = _row("copy", 2 * data.nbytes, lambda: target.copy_(data), repeats)
    return [*rows, row | {"unit": "byte/s"}]


def _row(name: str, operations: float, call, repeats: int) -> dict[str, Any]:
    with torch.inference_mode():
        call()
        seconds = min(bench.seconds_of(call) for _ in range(repeats))
    return {"limit": name, "rate": operations / seconds, "unit": "operations/s"}
