"""Benchmarks: contenders take turns, calls are timed and counted, and held against limits.

A `Benchmark` is one job that several contenders do: ours first, then peers. They take turns (ours,
peer, ours, peer ...), so that a noisy machine disturbs all alike. Ratios are taken turn by turn.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer  # seconds; waits for a GPU first

from tevq.bench import cost
from tevq.runs import devices
from tevq.runs.devices import Device
from tevq.runs.storage import write_atomically

COLUMNS = ("work", "unit", "contender", "rate", "rate_low", "rate_high", "ratio", "ratio_low",
           "ratio_high", "measure", "target", "met", "parameters", "gflop_per_unit", "peak_mb",
           "limit", "share_of_limit", "missing")
SHORTEST = 0.2  # seconds of one turn; shorter calls are repeated within it
OURS = "ours"
PEERS = ("taming-transformers", "vector-quantize-pytorch", "dalle-pytorch", "transformers")


@dataclass(frozen=True)
class Contender:
    """Somebody who does a job. `call` does it once, for `units` images, sequences or tokens."""

    name: str
    call: Callable[[], Any]
    units: int
    parameters: int = 0  # trainable numbers
    limit: str = ""  # the limit it is held against, a name of `limits`


@dataclass(frozen=True)
class Benchmark:
    """One job, and what we ask of ourselves."""

    name: str
    unit: str
    contenders: list[Contender]
    targets: dict[str, float] = field(default_factory=dict)  # contender -> how many times faster
    missing: dict[str, str] = field(default_factory=dict)  # contender -> why it did not run
    rate: float = 0.0  # units per second that ours should reach
    share: float = 0.0  # of its limit that ours should reach


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Wall-clock seconds of so many calls, a GPU's work included."""
    began = timer()
    for _ in range(times):
        call()
    return timer() - began


def turns(benchmark: Benchmark, repeats: int, shortest: float = SHORTEST) -> list[dict[str, Any]]:
    """Turns of all contenders: work, unit, contender, turn, seconds, calls, units."""
    calls = {}
    for one in benchmark.contenders:
        one.call()  # the first call makes buffers and chooses kernels
        calls[one.name] = max(1, math.ceil(shortest / seconds_of(one.call)))
    return [{"work": benchmark.name, "unit": benchmark.unit, "contender": one.name, "turn": turn,
             "seconds": seconds_of(one.call, calls[one.name]), "calls": calls[one.name],
             "units": one.units * calls[one.name]}
            for turn in range(repeats) for one in benchmark.contenders]


def summary(benchmark: Benchmark, rows: list[dict[str, Any]], rates: dict[str, float],
            facts: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row a contender, of COLUMNS: rate per second (median, quartiles), ratio of ours to it
    (median, range), target, share of the limit; or why it is missing.

    rates: operations per second of each limit; facts: `examine` of each contender.
    """
    speed = {one.name: np.array([row["units"] / row["seconds"] for row in rows
                                 if row["contender"] == one.name]) for one in benchmark.contenders}
    ours, *_ = speed.values()
    found = []
    for one in benchmark.contenders:
        fact, own = facts.get(one.name, {}), speed[one.name]
        low, middle, high = np.quantile(own, (0.25, 0.5, 0.75))
        row = {"contender": one.name, "rate": middle, "rate_low": low, "rate_high": high,
               "parameters": one.parameters or None, "limit": one.limit,
               "gflop_per_unit": fact.get("flop", 0) / one.units / 1e9 or None,
               "peak_mb": fact.get("peak_mb")}
        if one.limit and fact.get("flop"):
            row["share_of_limit"] = middle * fact["flop"] / one.units / rates[one.limit]
        asked = {"rate": benchmark.rate, "share_of_limit": benchmark.share}
        if own is not ours:
            ratio = ours / own
            row |= {"ratio": np.median(ratio), "ratio_low": ratio.min(), "ratio_high": ratio.max()}
            asked = {"ratio": benchmark.targets.get(one.name, 0.0)}
        for measure, target in asked.items():
            if target:
                row |= {"measure": measure, "target": target,
                        "met": bool(row.get(measure, 0.0) >= target)}
        found.append(row)
    found += [{"contender": name, "target": benchmark.targets.get(name), "missing": why}
              for name, why in benchmark.missing.items()]
    labels = dict.fromkeys(COLUMNS) | {"work": benchmark.name, "unit": benchmark.unit}
    return [labels | row for row in found]


def examine(one: Contender) -> dict[str, float]:
    """Operations of one call (matrix products and convolutions) and its peak memory in MiB."""
    return {"flop": cost.count(one.call), "peak_mb": peak_memory(one.call) / 2**20}


def peak_memory(call: Callable[[], Any]) -> float:
    """Most bytes of tensors that one call holds at a time beyond those before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    changes = [event.nbytes() for event in recorded.profiler.kineto_results.events()
               if event.name() == "[memory]"]
    return float(np.cumsum([0, *changes]).max())


def operators(work: str, one: Contender, top: int = 5) -> list[dict[str, Any]]:
    """The operators that one call spends most time in, and their share of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with silence(), profile(activities=kinds) as recorded:
        seconds_of(one.call)  # waits for a GPU, too
    times = {e.key: getattr(e, f"self_{'device' if device == 'cuda' else 'cpu'}_time_total")
             for e in recorded.key_averages()}
    ranked = sorted(times, key=times.get, reverse=True)[:top]
    return [{"work": work, "contender": one.name, "rank": rank + 1, "operator": name,
             "share": times[name] / sum(times.values())} for rank, name in enumerate(ranked)]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drops what the profiler's C++ code writes to standard error, past Python."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def limit(kind: str, where: Device) -> str:
    """Name of the limit of `matmul` or `conv` in the precision of a device."""
    return f"{kind}-{where.precision}"


def limits(where: Device, repeats: int = 5, size: int = 2048, channels: int = 128,
           batch: int = 8) -> list[dict[str, Any]]:
    """What the machine can do at best, measured: rows limit, rate (best of `repeats`), unit.

    matmul-*: square matrices of `size`; conv-*: 3x3, `channels` to `channels`, on (batch, 64, 64),
    channels last, and for `conv-float32-default` in the default layout; copy: bytes read and
    written. bfloat16 is left out on processors without it.
    """
    jobs: dict[str, tuple[float, Callable]] = {}
    for dtype in dict.fromkeys((torch.float32, where.dtype)):
        name, on = str(dtype).removeprefix("torch."), {"device": where.device, "dtype": dtype}
        a, b = torch.randn(size, size, **on), torch.randn(size, size, **on)
        jobs[f"matmul-{name}"] = 2 * size**3, lambda a=a, b=b: a @ b
        image = torch.randn(batch, channels, 64, 64, **on)
        kernel = torch.randn(channels, channels, 3, 3, **on)
        layouts = {"": torch.channels_last, "-default": torch.contiguous_format}
        for label, layout in list(layouts.items())[: 2 if dtype is torch.float32 else 1]:
            x, w = (t.contiguous(memory_format=layout) for t in (image, kernel))
            jobs[f"conv-{name}{label}"] = (18 * channels * x.numel(),
                                           lambda x=x, w=w: F.conv2d(x, w, padding=1))
    data = torch.zeros(2**26, device=where.device)  # 256 MiB, more than any cache
    target = torch.empty_like(data)
    jobs["copy"] = 2 * data.nbytes, lambda: target.copy_(data)
    with torch.inference_mode():
        return [{"limit": name, "unit": "byte/s" if name == "copy" else "operations/s",
                 "rate": operations / min(seconds_of(call) for _ in range(repeats + 1))}
                for name, (operations, call) in jobs.items()]


def run(folder: Path, makers: Iterable[Callable[[], Benchmark]], where: Device, repeats: int,
        rates: dict[str, float], say: Callable[[str], None] = print) -> dict[str, list]:
    """Measures one benchmark after the other; each is made when its turn comes, to save memory.

    After each it writes `turns.csv`, `summary.csv` and `profile.csv` into `folder` again, so that
    an interruption loses one benchmark only. Returns their rows.
    """
    found: dict[str, list] = {"turns": [], "summary": [], "profile": []}
    for make in makers:
        benchmark, began = make(), timer()
        rows = turns(benchmark, repeats)
        facts = {one.name: examine(one) for one in benchmark.contenders}
        found["turns"] += rows
        found["summary"] += summary(benchmark, rows, rates, facts)
        found["profile"] += operators(benchmark.name, benchmark.contenders[0])
        for section, lines in found.items():
            write(folder, section, lines)
        say(f"{benchmark.name}: {len(benchmark.contenders)} contenders, {timer() - began:.0f} s")
    return found


def write(folder: Path, section: str, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Writes `<section>.csv` with six significant digits; returns its rows as a frame."""
    frame = pd.DataFrame(rows)
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(folder / f"{section}.csv", text.encode())
    return frame


def folder_of(results: Path, tiny: bool) -> Path:
    """`benchmarks/<processor>` of a results folder; a tiny rehearsal keeps its own.

    Numbers of two processors say nothing about each other, so each has a folder.
    """
    name = devices.record(devices.detect())["device_name"]
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower()))
    return results / "benchmarks" / ("rehearsal" if tiny else "-".join(words))


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for package in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
