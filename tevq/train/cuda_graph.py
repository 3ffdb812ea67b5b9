"""Training steps as CUDA graphs: launching kernels from Python takes longer than running them.

A step is hundreds of short kernels, which Python launches one by one. Recorded as a CUDA graph,
they are launched at once. A recording replays kernels on the memory that they used. So inputs are
copied to where those of the recording lay, and whatever changes from step to step has to be a
tensor on the GPU, learning rates included (`set_rate`).
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from tevq.runs import devices

EAGER = 3  # calls before the recording: they make the optimizer's states and choose kernels


class CudaGraph:
    """`function` with recordings, one for each shape of its tensors and each other argument.

    The function may change tensors in place, and must not read numbers back from the GPU. Results
    lie where those of the call before lay: read them before the next call. On a CPU, and where a
    step cannot be recorded (a line says so), every call is a plain one.
    """

    def __init__(self, function: Callable, where: devices.Device):
        self.function, self.possible = function, where.device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.possible else None
        self.pool: Any = None  # memory that all recordings share
        self.calls: Counter = Counter()
        self.recordings: dict[tuple, tuple] = {}  # graph, inputs, results

    def __call__(self, *arguments: Any) -> Any:
        if not self.possible:
            return self.function(*arguments)
        key = tuple((x.shape, x.dtype, x.stride()) if torch.is_tensor(x) else x for x in arguments)
        self.calls[key] += 1
        if self.calls[key] == EAGER + 1:
            self._record(key, arguments)
        if key not in self.recordings:
            return self._plain(arguments)
        graph, inputs, results = self.recordings[key]
        for own, new in zip(inputs, arguments, strict=True):
            if torch.is_tensor(own):
                own.copy_(new)
        graph.replay()
        return results

    def _plain(self, arguments: tuple) -> Any:
        """A call on the stream of the recordings, as CUDA demands before a recording."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = self.function(*arguments)
        current.wait_stream(self.stream)
        return results

    def _record(self, key: tuple, arguments: tuple) -> None:
        """Records a call; nothing is computed by that."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        inputs = [x.clone() if torch.is_tensor(x) else x for x in arguments]
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                results = self.function(*inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed recording leaves its own behind
            cause = error.__context__ or error  # the end of a failed recording fails, too
            reason = str(cause).partition("\n")[0]
            print(f"tevq: the training step cannot be recorded here ({reason}); going on without, "
                  "which is slower", file=sys.stderr)
            self.possible = False
            return
        self.pool = self.pool or graph.pool()
        self.recordings[key] = graph, inputs, results


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets an optimizer's learning rate where a replayed step reads it.

    Call it before every step: a checkpoint of another device brings its own kind of rate.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if device.type != "cuda":
            group["lr"] = rate
            continue
        if "capturable" in group:  # Adam's; a checkpoint of a CPU says no
            group["capturable"] = True
        if torch.is_tensor(group["lr"]) and group["lr"].device == device:
            group["lr"].fill_(rate)
        else:
            group["lr"] = torch.full((), rate, device=device)
