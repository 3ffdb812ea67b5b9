"""Benchmarks: contenders take turns, calls are timed and counted, and held against limits.

A `Benchmark` is one job that several contenders do: ours first, then peers. They take turns (ours,
peer, ours, peer ...), so that a noisy machine disturbs all alike. Ratios are taken turn by turn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.benchmark import timer  # seconds; waits for a GPU first
from torch.utils.flop_counter import FlopCounterMode

COLUMNS = ("work", "unit", "contender", "rate", "rate_low", "rate_high", "ratio", "ratio_low",
           "ratio_high", "measure", "target", "met", "parameters", "gflop_per_unit", "peak_mb",
           "limit", "share_of_limit", "missing")
OURS, GPT2 = "ours", "transformers GPT-2"


@dataclass(frozen=True)
class Contender:
    """Somebody who does a job. `call` does it once, for `units` images, sequences or tokens."""

    name: str
    call: Callable[[], Any]
    units: int
    parameters: int = 0  # trainable numbers
    limit: str = ""  # what it is held against, such as `conv-bfloat16`


@dataclass(frozen=True)
class Benchmark:
    """One job, and what we ask of ourselves."""

    name: str
    unit: str
    contenders: list[Contender]
    targets: dict[str, float] = field(default_factory=dict)  # peer -> how many times faster
    missing: dict[str, str] = field(default_factory=dict)  # peer -> why it did not run
    goal: tuple[str, float] = ("", 0.0)  # what ours should reach: a column of COLUMNS and its value


def seconds_of(call: Callable[[], Any], times: int = 1) -> float:
    """Wall-clock seconds of so many calls, a GPU's work included."""
    began = timer()
    for _ in range(times):
        call()
    return timer() - began


def turns(benchmark: Benchmark, repeats: int, shortest: float = 0.2) -> list[dict[str, Any]]:
    """Turns of at least `shortest` seconds: work, unit, contender, turn, seconds, calls, units."""
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

    rates: operations per second of limits that took no turns themselves, as contenders whose units
    are operations; facts: `flop` (operations of a call) and `peak_mb` (MiB) of each contender."""
    frame, found = pd.DataFrame(rows), []
    speed = {name: (p.units / p.seconds).to_numpy() for name, p in frame.groupby("contender")}
    for one in benchmark.contenders:
        low, middle, high = np.quantile(speed[one.name], (0.25, 0.5, 0.75))
        flop = (fact := facts.get(one.name, {})).get("flop", 0) / one.units
        row = {"contender": one.name, "rate": middle, "rate_low": low, "rate_high": high,
               "parameters": one.parameters or None, "limit": one.limit,
               "gflop_per_unit": flop / 1e9 or None, "peak_mb": fact.get("peak_mb")}
        if one.limit and flop:
            limit = speed[one.limit] if one.limit in speed else rates[one.limit]
            row["share_of_limit"] = np.median(speed[one.name] * flop / limit)
        measure, target = benchmark.goal
        if one is not benchmark.contenders[0]:
            ratio = speed[benchmark.contenders[0].name] / speed[one.name]
            row |= {"ratio": np.median(ratio), "ratio_low": ratio.min(), "ratio_high": ratio.max()}
            measure, target = "ratio", benchmark.targets.get(one.name, 0.0)
        if target:
            row |= {"measure": measure, "target": target,
                    "met": bool(row.get(measure, 0.0) >= target)}
        found.append(row)
    found += [{"contender": name, "target": benchmark.targets.get(name), "missing": why}
              for name, why in benchmark.missing.items()]
    labels = dict.fromkeys(COLUMNS) | {"work": benchmark.name, "unit": benchmark.unit}
    return [labels | row for row in found]


def count(call: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products and convolutions; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def bounds(folder: Path) -> pd.DataFrame:
    """What should stay below a number, from the files that are there: columns work, against, value,
    low, high (over the turns, or nan), target, met."""
    peak = pd.read_csv(folder / "summary.csv").pivot(
        index="work", columns="contender", values="peak_mb").reindex(columns=[OURS, GPT2])
    rows = [(f"{work}: peak memory", GPT2, [peak[OURS][work] / peak[GPT2][work]], 2.0)
            for work in peak.index if work.startswith("sampling")]
    if (path := folder / "tokens.csv").exists():
        first, _, _, last = map(np.median, np.array_split(pd.read_csv(path).seconds.to_numpy(), 4))
        rows.append(("sampling, paper: last quarter of the tokens", "first quarter",
                     [last / first], 1.3))
    if (path := folder / "busy.csv").exists():
        rows.append(("Stage-2 step, laptop, beside a job of two threads", "alone",
                     pd.read_csv(path).eval("beside / alone"), 2.5))
    found = pd.DataFrame([(*names, np.median(x), min(x), max(x), top) for *names, x, top in rows],
                         columns=["work", "against", "value", "low", "high", "target"])
    return found.assign(met=found.value <= found.target).dropna()
