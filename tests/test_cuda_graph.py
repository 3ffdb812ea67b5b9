"""Recorded steps: bookkeeping with a stand-in for CUDA graphs; on a real GPU the same numbers."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from small import tiny
from torch._subclasses.fake_tensor import FakeTensorMode

from tevq.models import losses
from tevq.models.classifier import Classifier
from tevq.models.transformer import Transformer
from tevq.runs import devices
from tevq.runs.devices import Device
from tevq.train import cuda_graph, stage1, stage2
from tevq.train.muon import Muon

CPU = Device(torch.device("cpu"), torch.float32)
GPU = Device(torch.device("cuda"), torch.bfloat16)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Graph:
    """Stands in for a CUDA graph: replays by calling again what was recorded, on its tensors."""

    recording = None  # the graph that is being recorded

    def __init__(self):
        self.work = []

    def pool(self):
        return "pool"

    def replay(self):
        for work in self.work:
            work()


@pytest.fixture
def graphs(monkeypatch):
    """torch.cuda with graphs that are stand-ins; the list gets the pool of each recording."""
    pools = []

    @contextmanager
    def graph(made, pool=None, stream=None):
        pools.append(pool)
        Graph.recording = made
        yield
        Graph.recording = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return pools


class Step:
    """total += scale * x; what a GPU would run, and how often Python did."""

    def __init__(self):
        self.total, self.python = torch.zeros(2), 0

    def __call__(self, x, scale):
        self.python += 1
        result = torch.zeros(2)

        def work():
            self.total.add_(x, alpha=scale)
            result.copy_(self.total)

        if Graph.recording:
            Graph.recording.work.append(work)
        else:
            work()
        return result


def test_on_a_processor_every_call_is_a_plain_one():
    step = Step()
    called = cuda_graph.CudaGraph(step, CPU)
    for _ in range(9):
        called(torch.ones(2), 1)
    assert step.python == 9 and step.total.tolist() == [9, 9]


def test_a_recorded_step_takes_new_inputs_and_returns_new_results(graphs):
    """Planted faults: inputs of the recording used again; a call lost to the recording."""
    step, plain = Step(), Step()
    called = cuda_graph.CudaGraph(step, GPU)
    for number in range(12):
        x, scale = torch.tensor([number, 2.0 * number]), 1 + number % 2
        assert called(x, scale).tolist() == plain(x, scale).tolist()
    # each of the two scales: some plain calls and the recording, the rest without Python
    assert step.python == 2 * (cuda_graph.EAGER + 1) and len(called.recordings) == 2
    assert graphs == [None, "pool"]  # the second recording shares the memory of the first


def test_another_shape_is_another_recording(graphs):
    shapes = []

    def step(x):
        shapes.append(tuple(x.shape))
        return x

    called = cuda_graph.CudaGraph(step, GPU)
    for shape in ((2, 3), (3, 2), (2, 3)):
        for _ in range(cuda_graph.EAGER + 2):
            called(torch.zeros(shape))
    assert shapes == [(2, 3)] * (cuda_graph.EAGER + 1) + [(3, 2)] * (cuda_graph.EAGER + 1)


def test_what_cannot_be_recorded_goes_on_and_says_why(graphs, monkeypatch, capsys):
    """Planted fault: the reason hidden by the error with which a failed recording ends."""
    step, streams = Step(), []

    def refuses(x, scale):
        if Graph.recording:
            raise RuntimeError("operation not permitted when stream is capturing\nmore words")
        return step(x, scale)

    @contextmanager
    def graph(made, pool=None, stream=None):
        Graph.recording = made
        try:
            yield
        finally:
            Graph.recording = None
            raise RuntimeError("failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    called = cuda_graph.CudaGraph(refuses, GPU)
    for _ in range(9):
        called(torch.ones(2), 1)
    assert step.total.tolist() == [9, 9] and streams == [torch.cuda.current_stream()]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not permitted" in said and "more words" not in said


def test_rates_are_numbers_on_a_processor():
    """Also after a checkpoint of a GPU, where they are tensors."""
    optimizer = Muon([torch.nn.Parameter(torch.zeros(2, 2))])
    group, = optimizer.param_groups
    group["lr"] = torch.tensor(0.5)
    cuda_graph.set_rate(optimizer, 0.25)
    assert group["lr"] == 0.25 and isinstance(group["lr"], float)


def test_a_checkpoint_of_a_processor_can_be_recorded_on_a_gpu():
    """Planted fault: its `capturable`, False, would make every recording fail."""
    with FakeTensorMode():
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2, device="cuda"))])
        group = optimizer.param_groups[0] = optimizer.param_groups[0] | {"capturable": False}
        cuda_graph.set_rate(optimizer, 0.25)
        rate = group["lr"]
        cuda_graph.set_rate(optimizer, 0.5)
    assert group["capturable"] and rate.device.type == "cuda" and group["lr"] is rate


def test_muon_takes_a_rate_that_is_a_tensor():
    weights = []
    for kind in (float, torch.tensor):
        p = torch.nn.Parameter(torch.arange(12.0).view(4, 3))
        p.grad = torch.ones(4, 3).tril()
        optimizer = Muon([p])
        optimizer.param_groups[0]["lr"] = kind(0.3)
        optimizer.step()
        weights.append(p.detach())
    torch.testing.assert_close(*weights)


def stage1_steps(settings, replayed: bool) -> list[float]:
    devices.seed_everything(0)
    evaluator = Classifier(8).cuda().eval().requires_grad_(False)
    learner = stage1.Learner(settings.stage1, GPU, losses.feature_distance(evaluator))
    update = cuda_graph.CudaGraph(learner.update, GPU) if replayed else learner.update
    numbers = []
    for step in range(24):
        x = torch.rand(4, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
        for optimizer in (learner.optimizer, learner.discriminator_optimizer):
            cuda_graph.set_rate(optimizer, 1e-3 / (step + 1))
        found, codes = update(2 * x - 1, step >= 12)
        numbers += [float(found["loss"].detach()), float(found["gradient_norm"]),
                    float(codes.float().mean())]
    assert not replayed or len(update.recordings) == 2
    return numbers


def stage2_steps(settings, replayed: bool) -> list[float]:
    devices.seed_everything(0)
    s = settings.stage2
    model = Transformer(50, 32, 40, 8, s.dim, s.depth, s.heads, window=s.window,
                        neighbours=s.neighbours, dtype=torch.bfloat16).cuda()
    optimizers = stage2.build_optimizers(model, s)

    def plain(text, codes, direction):
        return stage2.update(model, optimizers, s, text, codes, direction)

    update = cuda_graph.CudaGraph(plain, GPU) if replayed else plain
    numbers = []
    for step in range(24):
        text = torch.randint(1, 50, (4, 40), device="cuda")
        codes = torch.randint(32, (4, 8, 8), device="cuda")
        for optimizer in optimizers.values():
            cuda_graph.set_rate(optimizer, 0.01 / (step + 1))
        found = update(text, codes, stage2.direction_of(step, s))
        numbers += [float(found["loss"]), float(found["gradient_norm"])]
    assert not replayed or len(update.recordings) == 2
    return numbers


@on_gpu
@pytest.mark.parametrize("steps", (stage1_steps, stage2_steps))
def test_replayed_steps_are_the_plain_ones(steps):
    """Planted fault: a learning rate that is a number stays that of the recording."""
    plain, again, replayed = (steps(tiny("te"), way) for way in (False, False, True))
    noise = max(abs(a - b) for a, b in zip(plain, again, strict=True))  # atomic sums
    assert replayed == pytest.approx(plain, rel=1e-3, abs=10 * noise + 1e-6)
