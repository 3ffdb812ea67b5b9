"""Training step by step: order of the data, checkpoints, deadline, interrupts, diverging losses."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tevq.config import UserError
from tevq.runs import devices
from tevq.runs.budget import Deadline, OutOfTimeError
from tevq.runs.run import Run
from tevq.train.progress import Picture, Progress

CHECK_EVERY = 20  # steps between checks for divergence, each of which waits for the device


class DivergedError(UserError, FloatingPointError):
    """A loss or gradient became infinite or no number."""


class StoppedError(UserError):
    """Training has stopped at a checkpoint because somebody interrupted it."""


class Loop:
    """Resumable training: restores its parts, hands out step numbers, saves, tells the time left.

    `parts` maps names to objects with `state_dict` and `load_state_dict`. The state of a run at a
    step does not depend on when it was saved, so checkpoints go by the clock. Near a deadline (see
    budget.py) it saves and raises OutOfTimeError, after an interrupt (see `interruptible`)
    StoppedError. picture: what a notebook shows meanwhile, see `Progress`.
    """

    stepping = interrupted = False  # of the one that runs, for `interruptible`

    def __init__(self, run: Run, parts: dict[str, Any], total: int, save_seconds: float = 60,
                 picture: Picture | None = None):
        self.run, self.parts, self.total, self.save_seconds = run, parts, total, save_seconds
        self.progress = Progress(run.name, total, picture)
        self.diverged: Tensor | int = -1  # first step with a value that is not finite
        self.deadline = Deadline()
        self.step, self.seconds = 0, 0.0
        self.start, state = run.latest() or (0, None)
        self.fresh = state is None
        if state:
            self.seconds = state.pop("seconds")
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def __iter__(self) -> Iterator[int]:
        began = saved = time.monotonic()
        before, progress = self.seconds, self.progress
        if self.start:
            progress.say(f"goes on from step {self.start:,} of {self.total:,}")
        if self.start < self.total and self.deadline.near():
            raise OutOfTimeError(self._stopped(self.start, "time is nearly up"))
        Loop.stepping = True
        for step in itertools.count(self.start):
            if step >= self.total:  # which may have changed on the way
                break
            self.step = step
            yield step
            done, last = step + 1, step + 1 == self.total
            if last or done % CHECK_EVERY == 0:
                self.check()
            now = time.monotonic()
            self.seconds = before + now - began
            late = not last and self.deadline.near()
            stop = Loop.interrupted
            due = now - saved > self.save_seconds or self.deadline.needs_a_save
            if late or stop or (due and not last):
                self.save(done)
                saved = now
            if late:
                raise OutOfTimeError(self._stopped(done, "time is nearly up"))
            if stop:
                raise StoppedError(self._stopped(done, "interrupted"))
            progress.total = self.total
            progress.step(done)
        Loop.stepping, progress.total = False, self.total
        progress.end(self.seconds)

    def watch(self, *values: Tensor) -> None:
        """Notes the step if a loss or gradient is not finite, without waiting for the device."""
        finite = torch.stack([value.detach().float() for value in values]).isfinite().all()
        now = torch.where(finite, -1, self.step)
        known = self.diverged
        self.diverged = now if isinstance(known, int) else torch.where(known < 0, now, known)

    def check(self) -> None:
        """Raises DivergedError, with the step, if a watched value was not finite."""
        if int(self.diverged) < 0:
            return
        kind, seed = self.run.folder.parent.name, self.run.config.get("seed", 0)
        kept = self.run.steps_saved()
        rest = f"the checkpoint of step {kept[0]:,} is intact" if kept else "nothing was saved yet"
        raise DivergedError(f"{self.run.name}: the loss or its gradient is not finite at step "
                           f"{int(self.diverged) + 1:,} (seed {seed}); lower {kind}.lr; {rest}")

    def log(self, **metrics: Any) -> None:
        """A line of metrics.jsonl for the step at hand; reads tensors back from the device."""
        self.check()
        read = {name: value.item() if torch.is_tensor(value) else value
                for name, value in metrics.items()}
        if "loss" in read:
            self.progress.loss = f", loss {read['loss']:.3f}"
        self.run.log(self.step + 1, **read)

    def save(self, step: int) -> None:
        """A checkpoint after `step` finished steps, unless the training has diverged."""
        self.check()
        began = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        self.run.save(step, state | {"seconds": self.seconds})
        self.deadline.saved(time.monotonic() - began)

    def _stopped(self, step: int, why: str) -> str:
        print()  # ends the line of the progress
        return (f"{self.run.name}: stopped at step {step:,} of {self.total:,}, {why}; run again to "
                "go on")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C or a notebook's stop button lets a loop finish its step, save and stop.

    Between loops, and when it comes a second time, it acts at once. Without effect outside the main
    thread, which gets no signals.
    """
    def note(*_: Any) -> None:
        if not Loop.stepping or Loop.interrupted:
            raise KeyboardInterrupt
        Loop.interrupted = True

    Loop.stepping, main = False, threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if main else None
    try:
        yield
    finally:
        Loop.stepping = Loop.interrupted = False
        if main:
            signal.signal(signal.SIGINT, before)


class Batches:
    """Data order: a pure function of (seed, step), so a resumed run sees what it would have seen.

    `batches[step]` -> indices (batch,); every epoch is a new permutation of range(n), its
    incomplete last batch left out.
    """

    def __init__(self, n: int, batch: int, seed: int):
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.n // self.batch)
        if epoch != self.epoch:
            random = devices.generator(self.seed, epoch)
            self.epoch, self.order = epoch, torch.randperm(self.n, generator=random)
        return self.order[position * self.batch : (position + 1) * self.batch]
