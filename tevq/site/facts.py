"""What the playground must know, taken from tevq: grammar, shapes, digits, the code books."""

import base64
from typing import Any

import torch
from torch import Tensor

from tevq.config import SettingsError
from tevq.data import captions, scenes
from tevq.data.render import IMAGE_SIZE, OFFSETS, RGB, render
from tevq.data.source import load_source
from tevq.evaluate.metrics import INK_LEVEL, INK_PIXELS
from tevq.pretrained import Generator

LOOKED_AT = 300  # validation scenes behind what the code book shows
EACH, EXAMPLES = 3, 24  # digits of every class to drag; captions to try


def facts(networks: dict[str, Generator], looked_at: int = LOOKED_AT) -> dict[str, Any]:
    """Everything as JSON can hold it; see `Grammar` and `Engine` in static/js for its readers."""
    te = next(iter(networks.values()))
    m, data, tokenizer = te.model, te.settings.data, te.evaluator.tokenizer
    source = data.source
    try:
        items = load_source(source, "test")
    except SettingsError as error:
        print(f"tevq: {error}; the site shows scikit-learn's digits instead")
        items = load_source(source := "digits", "test")
    found = scenes.build(data, "val", items.labels.numpy()).take(slice(0, looked_at))
    half = items.labels[: len(items.labels) // 2]  # validation's
    digits = torch.cat([(half == i).nonzero()[:EACH, 0] for i in range(len(tokenizer.names))])
    images = render(found, items)
    return {
        "size": data.scene, "item": items.images.shape[-1], "stride": te.evaluator.vqgan.stride,
        "ink": {"level": INK_LEVEL, "pixels": INK_PIXELS * (data.scene / IMAGE_SIZE) ** 2},
        "side": m.h, "offsets": OFFSETS, "rgb": RGB, "variants": list(networks),
        "temperature": te.settings.evaluation.temperature,
        "topK": te.settings.evaluation.top_k or 0,
        "captions": [tokenizer.decode(row) for row in found.caption[:EXAMPLES]],
        "grammar": {
            "words": tokenizer.words, "pad": captions.PAD, "bos": captions.BOS,
            "eos": captions.EOS, "length": captions.LENGTH, "templates": captions.TEMPLATES,
            "places": captions.PLACES, "placeWords": captions.PLACE_WORDS,
            "colours": captions.COLOURS, "connectors": captions.CONNECTORS,
            "names": tokenizer.names, "heldOut": scenes.held_out(len(tokenizer.names))},
        "transformer": {
            "L": m.L, "depth": m.depth, "heads": m.heads, "head": m.head_dim, "K": m.K} | {
            name: {"sources": e.sources.tolist(), "none": len(e.table) - 1}
            for name, e in (("words", m.words), ("codes", m.codes))},
        "digits": {"source": source, "labels": items.labels[digits].tolist(),
                   "pixels": _text(items.images[digits])},
        "books": {name: book(te, images) for name, te in networks.items()}}


@torch.no_grad()
def book(te: Generator, images: Tensor) -> dict[str, Any]:
    """What images (B, 3, S, S) say of a code book: how often and where codes occur, their looks.

    `tree`: which codes Ward's method joins, in this order, as `rivals.merge_codes` does.
    """
    from sklearn.cluster import AgglomerativeClustering

    codes, model = te.codes(images), te.evaluator.vqgan
    table, s, n = model.quantizer.table().cpu(), model.stride, codes[0].numel()
    K, flat = len(table), codes.flatten()
    counts = torch.bincount(flat, minlength=K)
    cell = torch.arange(n).repeat(len(codes))
    where = torch.bincount(flat * n + cell, minlength=K * n).view(K, n)
    cells = te.evaluator.decode(codes).unfold(2, s, s).unfold(3, s, s)  # (B, 3, h, w, s, s)
    cells = cells.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(0, 2)  # (B h w, s s 3)
    looks = torch.zeros(K, cells.shape[1]).index_add_(0, flat, cells) / counts[:, None].clamp(min=1)
    used, near = counts.nonzero()[:, 0], torch.cdist(table, table)
    looks = looks[used[near[:, used].argmin(1)]]  # of an unused code: those of the nearest used one
    ward = AgglomerativeClustering(1, linkage="ward", compute_full_tree=True).fit(table.numpy())
    return {"counts": counts.tolist(), "images": len(images), "tree": ward.children_.tolist(),
            "near": near.fill_diagonal_(-1).argsort(1)[:, 1:7].tolist(),
            "where": _text(where * 255 / where.amax(1, keepdim=True).clamp(min=1)),
            "looks": _text((looks + 1) * 127.5)}


def _text(numbers: Tensor) -> str:
    """Numbers from 0 to 255 as base64 of bytes."""
    return base64.b64encode(numbers.round().to(torch.uint8).numpy().tobytes()).decode()
