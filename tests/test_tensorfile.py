"""Our reader and writer of the safetensors format, against the package of that name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tevq.runs import devices
from tevq.runs.tensorfile import TYPES, FormatError, load, save

SHAPES = st.lists(st.integers(0, 4), max_size=4)
TREES = st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(
    st.sampled_from(list(TYPES.values())), SHAPES), max_size=6)
TEXTS = st.dictionaries(st.just("structure"), st.text(max_size=20))


def filled(tree: dict) -> dict[str, torch.Tensor]:
    """A tensor of every type and shape, numbers at random."""
    return {name: (50 * torch.randn(shape)).to(kind) for name, (kind, shape) in tree.items()
            if name != "__metadata__"}


@given(TREES, TEXTS)
def test_files_are_those_of_the_package(tree, texts):
    tensors = filled(tree)
    content = save(tensors, texts)
    assert content == safetensors.torch.save(tensors, texts or None)
    found, told = load(content)
    assert told == texts and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype is tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num())
        found[name].zero_()  # may be written to, and shares nothing with the file
    assert content == save(tensors, texts)


def test_any_layout_and_gradients_are_fine():
    odd = {"t": torch.randn(3, 5).T, "c": torch.randn(2, 3, 4, 4).to(
        memory_format=torch.channels_last), "g": torch.randn(2, requires_grad=True)}
    found, _ = load(save(odd))
    assert all(torch.equal(found[name], odd[name]) for name in odd)
    assert not found["g"].requires_grad


def test_every_truncation_and_extension_is_refused():
    content = save({"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.uint8)}, {"x": "y"})
    for length in range(len(content)):
        with pytest.raises(FormatError):
            load(content[:length])
    with pytest.raises(FormatError, match="not all of the file"):
        load(content + b"\0")


def header(**told) -> bytes:
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("told", [
    {"dtype": "F128", "shape": [1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [True], "data_offsets": [0, 4], "more": 1},
    {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
    {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1]}, [], None])
def test_wrong_headers_are_refused(told):
    load(header(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + bytes(4))
    with pytest.raises(FormatError):
        load(header(a=told) + bytes(4))


def test_training_needs_no_package_beyond_torchs():
    """Planted fault: `import safetensors` in checkpoint.py."""
    program = ("import sys\nfor name in ('safetensors', 'matplotlib', 'pandas', 'lpips', "
               "'nbformat', 'papermill', 'psutil'): sys.modules[name] = None\n"
               "import tevq.train.stage2, tevq.evaluate.evaluate")
    subprocess.run([sys.executable, "-c", program], cwd=devices.ROOT, check=True)
