"""The trained networks as ONNX files, for onnxruntime in a browser.

S pixels, h = w = S / stride cells, V words, K codes. `near` are the tokens that the embedding of a
token sees (`words.sources` and `codes.sources` of the transformer). Files of a variant:

    encoder      images (1, 3, S, S) in [-1, 1] -> codes (1, h, w) int32
    decoder      codes (1, h, w) int32 -> images (1, 3, S, S), clamped to [-1, 1]
    transformer  near words (n, window), near codes (n, neighbours), position (n), kept (past,
                 depth, 2, heads, head_dim) -> logits of words (1, V) and of codes (1, K) after the
                 last of the n tokens; and keys and values (n, depth, ...), to be kept

and `classifier`, the same for all: crops (B, 3, s, s) -> classes and colours (B,) int32.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tevq.models.cpu_kernels import GroupNorm
from tevq.models.transformer import Transformer
from tevq.pretrained import Generator

OPSET = 20


class Network(nn.Module):
    """A function of some modules, as the exporter wants it: a module, too."""

    def __init__(self, function: Callable, *parts: nn.Module):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever the function returns."""
        return self.function(*inputs)


class PlainGroupNorm(nn.Module):
    """`GroupNorm` by plain operations, which the exporter can read.

    Means are taken along rows first: in WebAssembly a long sum loses digits, and with them codes.
    """

    def __init__(self, norm: GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """As `GroupNorm.forward`."""
        n = self.norm
        y = x.reshape(x.shape[0], n.num_groups, -1, x.shape[-1])
        y = y - y.mean(-1, keepdim=True).mean(-2, keepdim=True)
        variance = y.square().mean(-1, keepdim=True).mean(-2, keepdim=True)
        y = (y * torch.rsqrt(variance + n.eps)).reshape(x.shape)
        y = y * n.weight[:, None, None] + n.bias[:, None, None]
        return F.silu(y) if n.silu else y


def plain(network: nn.Module) -> nn.Module:
    """A copy with plain group norms and layout of memory, for the exporter and its tests."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNorm) and not isinstance(module, PlainGroupNorm):
                setattr(module, name, PlainGroupNorm(child))
    return network


def step(m: Transformer, words: Tensor, codes: Tensor, position: Tensor, kept: Tensor
         ) -> tuple[Tensor, Tensor, Tensor]:
    """`transformer` of the files: n tokens of one sequence, after those that are kept.

    Positions below L are words, the others codes. One graph serves both directions: every token is
    embedded both ways, and its position chooses.
    """
    n, past, position = position.shape[0], kept.shape[0], position.long()
    places = torch.cat((m.text_position, (m.row + m.column).flatten(0, 1)))  # (L + N, dim)
    both = [F.embedding(near.long(), e.table).flatten(1) for e, near in
            ((m.words, words), (m.codes, codes))]
    both = [x if e.mix is None else e.mix(x) for e, x in zip((m.words, m.codes), both, strict=True)]
    x = torch.where((position < m.L)[:, None], *both) + F.embedding(position, places)  # (n, dim)
    seen = torch.arange(past + n)[None] <= torch.arange(n)[:, None] + past
    hidden, added = torch.where(seen, 0.0, float("-inf")), []
    for layer, block in enumerate(m.blocks):
        qkv = block.qkv(block.norm1(x)).view(n, 3, m.heads, m.head_dim)
        added.append(qkv[:, 1:])
        k, v = torch.cat((kept[:, layer], qkv[:, 1:])).permute(1, 2, 0, 3)  # (heads, past + n, d)
        scores = qkv[:, 0].transpose(0, 1) @ k.transpose(1, 2) * m.head_dim**-0.5
        y = (scores + hidden).softmax(-1) @ v  # (heads, n, head_dim)
        x = x + block.out(y.transpose(0, 1).reshape(n, -1))
        x = x + block.down(F.gelu(block.up(block.norm2(x))))
    return m.text_logits(x[-1:]), m.image_logits(x[-1:]), torch.stack(added, 1)


def export(networks: dict[str, Generator], folder: Path) -> None:
    """Writes the ONNX files of some variants; those that differ in weights only share graphs."""
    graphs: dict[str, Any] = {}
    for name, te in networks.items():
        for kind, (network, grows, inputs) in _parts(te).items():
            key = f"{kind} {network}"
            graphs[key] = graphs.get(key) or _trace(network.eval(), grows, inputs)  # is slow
            file = f"{kind}.onnx" if kind == "classifier" else f"{name}-{kind}.onnx"
            _write(folder / file, graphs[key], network)


def _parts(te: Generator) -> dict[str, tuple[Network, bool, dict[str, Tensor]]]:
    """Kind of file -> network, whether its inputs may grow along their first axis, and inputs."""
    model, m, size = plain(te.evaluator.vqgan), te.model, te.settings.data.scene
    q, reader, side = model.quantizer, te.evaluator.classifier, size // model.stride
    near = {kind: torch.zeros(3, e.sources.shape[1], dtype=torch.int32)
            for kind, e in (("words", m.words), ("codes", m.codes))}
    kept = torch.zeros(5, m.depth, 2, m.heads, m.head_dim)
    return {
        "encoder": (Network(lambda x: q.nearest(model.encoder(x)).int(), model), False,
                    {"images": torch.zeros(1, 3, size, size)}),
        "decoder": (Network(lambda c: model.decoder(q.lookup(c.long())).clamp(-1, 1), model), False,
                    {"codes": torch.zeros(1, side, side, dtype=torch.int32)}),
        "transformer": (Network(lambda *x: step(m, *x), m), True,
                        near | {"position": torch.zeros(3, dtype=torch.int32), "kept": kept}),
        "classifier": (Network(lambda x: tuple(y.argmax(1).int() for y in reader(x)), reader), True,
                       {"crops": torch.zeros(2, 3, size * 7 // 16, size * 7 // 16)}),
    }


def _trace(network: Network, grows: bool, inputs: dict[str, Tensor]) -> Any:
    """The graph of a network, not yet simplified: every weight keeps its name."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    shapes = (({0: torch.export.Dim.DYNAMIC},) * len(inputs),) if grows else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            network, tuple(inputs.values()), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), dynamic_shapes=shapes, optimize=False)


def _write(path: Path, graph: Any, network: Network) -> None:
    """Writes a graph with the weights of a network."""
    import onnx
    from onnxscript import optimizer

    own = dict(network.named_parameters()) | dict(network.named_buffers())
    graph.apply_weights({x: own[x] for x in graph.model.graph.initializers if x in own})
    model = optimizer.optimize(graph.model_proto)
    halve(model.graph)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def halve(graph: Any) -> None:
    """Keeps weights that are float16 numbers as such; they are cast when the file is loaded.

    The networks that come with the repository were rounded to float16, so this loses nothing.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, casts = list(graph.node), []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size < 64:
            continue
        half = values.clip(-6e4, 6e4).astype("float16")
        if (half == values).all():
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
