"""Races between our code and its peers: interleaved, repeated, counted, against measured limits.

A `Work` is one job that several contenders do: ours first, then peers. They take turns (ours, peer,
ours, peer ...), so that a noisy machine disturbs all alike; ratios are taken turn by turn.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from tevq.bench import cost
from tevq.runs.storage import write_atomically

COLUMNS = ("work", "unit", "contender", "rate", "rate_low", "rate_high", "ratio", "ratio_low",
           "ratio_high", "measure", "bar", "met", "parameters", "gflop_per_unit", "peak_mb",
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
    limit: str = ""  # the limit it is held against, a name of `bench_limits.measure`


@dataclass(frozen=True)
class Work:
    """One job, and what we ask of ourselves."""

    name: str
    unit: str
    contenders: list[Contender]
    bars: dict[str, float] = field(default_factory=dict)  # contender -> how many times faster
    missing: dict[str, str] = field(default_factory=dict)  # contender -> why it did not run
    rate: float = 0.0  # units per second that ours should reach
    share: float = 0.0  # of its limit that ours should reach


def race(work: Work, repeats: int, shortest: float = SHORTEST) -> list[dict[str, Any]]:
    """Turns of all contenders: work, unit, contender, turn, seconds, calls, units."""
    calls = {}
    for one in work.contenders:
        one.call()  # the first call makes buffers and chooses kernels
        calls[one.name] = max(1, math.ceil(shortest / seconds_of(one.call)))
    rows = []
    for turn in range(repeats):
        for one in work.contenders:
            seconds = seconds_of(one.call, calls[one.name])
            rows.append({"work": work.name, "unit": work.unit, "contender": one.name, "turn": turn,
                         "seconds": seconds, "calls": calls[one.name],
                         "units": one.units * calls[one.name]})
    return rows


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Wall-clock seconds of so many calls, a GPU's work included."""
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Waits until a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(work: Work, rows: list[dict[str, Any]], limits: dict[str, float],
            facts: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row a contender, of COLUMNS: rate per second (median, quartiles), ratio of ours to it
    (median, range), bar, share of the limit; or why it is missing.

    limits: operations per second by name; facts: `examine` of each contender.
    """
    rates = {one.name: np.array([row["units"] / row["seconds"] for row in rows
                                 if row["contender"] == one.name]) for one in work.contenders}
    found = []
    for one in work.contenders:
        rate, fact = rates[one.name], facts.get(one.name, {})
        low, middle, high = np.quantile(rate, (0.25, 0.5, 0.75))
        row = {"work": work.name, "unit": work.unit, "contender": one.name, "rate": middle,
               "rate_low": low, "rate_high": high, "parameters": one.parameters or None,
               "gflop_per_unit": fact.get("flop", 0) / one.units / 1e9 or None,
               "peak_mb": fact.get("peak_mb"), "limit": one.limit}
        if one.limit and fact.get("flop"):
            row["share_of_limit"] = middle * fact["flop"] / one.units / limits[one.limit]
        if one is not work.contenders[0]:
            ratio = rates[work.contenders[0].name] / rate
            row |= {"ratio": np.median(ratio), "ratio_low": ratio.min(), "ratio_high": ratio.max()}
        found.append(row | _verdict(work, one, row))
    found += [{"work": work.name, "unit": work.unit, "contender": name,
               "bar": work.bars.get(name), "missing": why} for name, why in work.missing.items()]
    return [dict.fromkeys(COLUMNS) | row for row in found]


def _verdict(work: Work, one: Contender, row: dict[str, Any]) -> dict[str, Any]:
    """What was asked and whether it was met: of ours a rate or a share, else a ratio."""
    if one is work.contenders[0]:
        asked = {"rate": work.rate, "share_of_limit": work.share}
    else:
        asked = {"ratio": work.bars.get(one.name, 0.0)}
    for measure, bar in asked.items():
        if bar:
            return {"measure": measure, "bar": bar, "met": bool(row.get(measure, 0.0) >= bar)}
    return {}


def examine(one: Contender) -> dict[str, float]:
    """Operations of one call (matrix products and convolutions) and its peak memory."""
    return {"flop": cost.count(one.call), "peak_mb": peak_memory(one.call) / 2**20}


def peak_memory(call: Callable[[], Any]) -> float:
    """Most bytes of tensors that one call holds at a time beyond those before it."""
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    with silence(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return float(peak)


def shares(work: str, one: Contender, top: int = 5) -> list[dict[str, Any]]:
    """The operators that one call spends most time in, and their share of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with silence(), profile(activities=kinds) as recorded:
        seconds_of(one.call)  # waits for a GPU, too
    times = {e.key: getattr(e, f"self_{'device' if device == 'cuda' else 'cpu'}_time_total")
             for e in recorded.key_averages()}
    whole = sum(times.values())
    ranked = sorted(times, key=times.get, reverse=True)[:top]
    return [{"work": work, "contender": one.name, "rank": rank + 1, "operator": name,
             "share": times[name] / whole} for rank, name in enumerate(ranked)]


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


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows as CSV with the columns of all of them; numbers with six significant digits."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value
                         for key, value in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for package in PEERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
