"""One training on several processes: data parallel, with the numbers of a single process.

Every process (rank) works on an equal part of each batch. All losses are means over equal parts, so
the average of the gradients is the gradient of the whole batch. With one process, which is the
rule, nothing in this file does anything.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import distributed as dist
from torch import nn

from tevq.config import SettingsError
from tevq.runs import devices
from tevq.runs.run import Run

PATIENCE = timedelta(hours=1)  # for the first rank: it prepares, probes and saves alone


class LostRankError(RuntimeError):
    """Another process of this training has ended, so it cannot go on."""


def leader() -> bool:
    """True on the process that reads, writes and prints; also when it is the only one."""
    return devices.processes() == 1 or dist.get_rank() == 0


def join() -> None:
    """Joins the group that the environment describes (set by torchrun or tevq.train.launch), and waits."""
    # gloo carries what lies in main memory: counts, decisions, states
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                            timeout=PATIENCE)


def leave(code: int) -> NoReturn:
    """Ends this process. In a group without torch's clean-up at exit, which now and then aborts
    (SIGABRT) although everything has been written; torchrun would then end the others.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def share(batch: int, name: str, world: int, rank: int) -> slice:
    """Which part of a batch a rank works on. `name`: of the setting that holds the size.

    Raises SettingsError when the batch cannot be split evenly.
    """
    if batch % world:
        allowed = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise SettingsError(f"{name} = {batch} cannot be split evenly over {world} processes; use "
                            f"{allowed} of them, or another {name}")
    return slice(rank * batch // world, (rank + 1) * batch // world)


def own_share(batch: int, name: str) -> slice:
    """`share` of this process; everything when it is the only one."""
    world = devices.processes()
    return share(batch, name, world, dist.get_rank() if world > 1 else 0)


def total(x: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, in place."""
    if devices.processes() > 1:
        try:
            dist.all_reduce(x)
        except RuntimeError as error:
            raise LostRankError(str(error)) from error
    return x


def average(tensors: list[torch.Tensor]) -> None:
    """Averages tensors of any shapes over all processes, in place, in one message."""
    if devices.processes() == 1 or not tensors:
        return
    flat = total(torch.cat([x.reshape(-1) for x in tensors])) / devices.processes()
    for x, part in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
        x.copy_(part.view(x.shape))


def average_gradients(model: nn.Module) -> None:
    """Between `backward` and the optimizer: the gradients of the whole batch."""
    average([p.grad for p in model.parameters() if p.grad is not None])


def average_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """Means over equal parts of a batch -> means over the batch."""
    if devices.processes() == 1:
        return numbers
    values = torch.tensor(list(numbers.values()), dtype=torch.float64)
    average([values])
    return dict(zip(numbers, values.tolist(), strict=True))


def mean_weight(counted: torch.Tensor) -> torch.Tensor | float:
    """Factor that turns a mean over this part's counted elements into its share of the whole mean.

    counted: boolean, any shape. The average over all processes of (weight x mean) is the mean over
    everything that is counted on any of them.
    """
    if devices.processes() == 1:
        return 1.0
    own = counted.sum().double()
    return own * devices.processes() / total(own.clone()).clamp(min=1)


def tell(thing: Any) -> Any:
    """The first rank's `thing` (tensors of main memory, plain values), on every rank."""
    if devices.processes() == 1:
        return thing
    held = [thing]
    try:
        dist.broadcast_object_list(held, src=0)
    except RuntimeError as error:
        raise LostRankError(str(error)) from error
    return held[0]


class _Average(torch.autograd.Function):
    """Average over all processes. Each of them feeds all losses, so gradients are averaged too."""

    @staticmethod
    def forward(ctx, x):
        return total(x.clone()) / devices.processes()

    @staticmethod
    def backward(ctx, gradient):
        return total(gradient.clone()) / devices.processes()


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm for training whose statistics are those of the whole batch.

    torch's SyncBatchNorm does the same, on GPUs only.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> same shape and type."""
        if devices.processes() == 1:
            return super().forward(x)
        y = x.to(self.weight.dtype)  # float32, also within autocast
        mean = _Average.apply(y.mean((0, 2, 3)))  # (C,)
        centred = y - mean[:, None, None]
        variance = _Average.apply(centred.square().mean((0, 2, 3)))
        n = devices.processes() * math.prod((len(x), *x.shape[2:]))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def shared(run: Run) -> Run:
    """`run` as all processes of this training see it."""
    return run if devices.processes() == 1 else SharedRun(run.folder, run.config)


class SharedRun(Run):
    """A run that several processes train: the first reads and writes, the others are told.

    What returns something (`usable`, `latest`, `metrics`, `agree`) has to be asked by all.
    """

    @property
    def _alone(self) -> Run:
        """The same run for the first process only: its methods call each other, not ours."""
        return Run(self.folder, self.config)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        with self._alone.lock() if leader() else contextlib.nullcontext():
            yield

    @property
    def has_weights(self) -> bool:
        return tell(leader() and self._alone.has_weights)

    def start(self, device: devices.Device, parents: dict[str, str] | None = None) -> None:
        if leader():
            self._alone.start(device, parents)

    def log(self, step: int, **numbers: float) -> None:
        if leader():
            self._alone.log(step, **numbers)

    def metrics(self) -> list[dict[str, Any]]:
        return tell(self._alone.metrics() if leader() else None)

    def save(self, step: int, state: Any) -> None:
        if leader():
            self._alone.save(step, state)

    def latest(self) -> tuple[int, Any] | None:
        return tell(self._alone.latest() if leader() else None)

    def finish(self, summary: dict[str, Any], weights: Any = None) -> None:
        if leader():
            self._alone.finish(summary, weights)

    def agree(self, answer: bool) -> bool:
        return tell(answer)
