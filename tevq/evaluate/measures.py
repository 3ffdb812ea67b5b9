"""Measures beside accuracy: decoding, a second judge, variety, likelihood, damaged codes.

A run of the kind `measures` keeps what later questions ask for, so that weights can be thrown away.
It needs both stages and both judges, and looks at the first scenes of each of Quad1-4. Rows:

    rows        shares of t2i at every point of the decoding grid, of the ceilings, and of i2t
                (greedy) from true codes and from codes of which a share is `replaced`
    diversity   frechet, precision, recall of the items of painted `test` scenes against the real
                ones, by what the second judge's heads see
    nats        -log p(true codes of an image | caption)
    round_trip  kept: share of codes that decoding and encoding give back

Greedy is temperature 0 and top_k 1; a top_k of 0 is no limit.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tevq.config import Settings
from tevq.data.scenes import Scenes, render
from tevq.evaluate import equivariance
from tevq.evaluate.evaluate import case_rows, first_of_each_case
from tevq.evaluate.evaluator import CHUNK, Evaluator, encoded_split, mean_nats, split_of
from tevq.evaluate.metrics import GRID, read_places
from tevq.models import classifier, transformer
from tevq.models.transformer import Transformer
from tevq.runs import devices
from tevq.runs.run import Run, open_run, parents

NEIGHBOURS = 3  # k of precision and recall, as in their paper
NATS = ("val", "val_seen", "test", "test_seen")


def measure(settings: Settings, results=None) -> Run:
    """All measures of one (variant, seed); returns its run. Raises SettingsError for what lacks."""
    run = open_run(settings, "measures", results)
    with run.lock():
        if run.done:
            return run
        began, where = time.monotonic(), devices.detect("float32")
        apart = classifier.second_judge(settings)
        first = Evaluator.load(settings, results, where.device)
        second = classifier.load(apart, results, where.device)
        model = transformer.load(settings, results, where.device)
        run.start(where, parents(settings, "classifier", "stage1", "stage2", results=results)
                  | {"second judge": open_run(apart, "classifier", results).checksum})
        judges = {"first": first, "second": dataclasses.replace(first, classifier=second)}
        run.finish(Measures(settings, judges, model, results).all()
                   | {"seconds": time.monotonic() - began})
    return run


class Measures:
    """The networks of one run, and rows so far."""

    def __init__(self, settings: Settings, judges: dict[str, Evaluator], model: Transformer,
                 results=None):
        self.settings, self.judges, self.model, self.results = settings, judges, model, results
        self.evaluator = judges["first"]
        self.found: dict[str, list[dict[str, Any]]] = {
            "rows": [], "diversity": [], "nats": [], "round_trip": []}

    def all(self) -> dict[str, list[dict[str, Any]]]:
        """All measures of the directions that the generator was trained in."""
        s, real = self.settings, self.ceilings()
        if s.stage2.directions != "i2t":
            for split, count in (("val", s.measures.val), ("test", s.measures.test)):
                self.decodings(split, count, real)
                print(f"{s.variant} s{s.seed}: {split} painted", flush=True)
            for split in NATS:
                scenes, _, codes = self.chosen(split, s.measures.test)
                nats = mean_nats(self.model, scenes.caption, codes)
                self.found["nats"].append({"split": split, "nats": nats, "n": len(scenes)})
        if s.stage2.directions != "t2i":
            self.captions()
        return self.found

    def chosen(self, split: str, count: int) -> tuple[Scenes, np.ndarray, Tensor]:
        """The first `count` scenes of Quad1-4, their positions in the split, their codes."""
        scenes, _ = split_of(self.settings, split)
        at = first_of_each_case(scenes.case, count, 4)
        codes = encoded_split(self.settings, split, self.evaluator, self.results)
        return scenes.take(at), at, codes[at].long()

    def ceilings(self) -> Tensor:
        """Real scenes and reconstructions; returns what the second judge sees of the real."""
        scenes, *_ = self.chosen("test", self.settings.measures.test)
        x = render(scenes, split_of(self.settings, "test")[1]).to(self.evaluator.device)
        codes, ink = self.encode(x)
        real = self.judge(x, scenes, split="test", task="ceiling-real")
        self.compare(codes, scenes, real, ink, split="test", task="ceiling-reconstruction")
        return real

    def decodings(self, split: str, count: int, real: Tensor) -> None:
        """Text->image at every point of the grid, and at the official one where it is another."""
        options, seed = self.settings.evaluation, self.settings.seed
        scenes, at, _ = self.chosen(split, count)
        for temperature, top_k in dict.fromkeys(((options.temperature, options.top_k), *GRID)):
            own = dataclasses.replace(options, temperature=temperature or 1.0,
                                      top_k=top_k or self.model.K)
            codes = self.evaluator.text_to_image(self.model, scenes.caption, own, seed,
                                                 temperature == 0, at)
            labels = {"split": split, "task": "t2i", "temperature": temperature, "top_k": top_k}
            if split == "test":
                self.compare(codes, scenes, real, **labels)
            else:
                self.judge(self.evaluator.decode(codes), scenes, **labels)

    def captions(self) -> None:
        """Image->text, the likeliest words, with the true codes and with some of them replaced."""
        s, (scenes, _, truth) = self.settings, self.chosen("test", self.settings.measures.test)
        for share in (0.0, s.measures.replaced):
            codes = replaced(truth, share, s.seed)
            texts = self.evaluator.image_to_text(self.model, codes, s.evaluation, s.seed, True)
            scores = self.evaluator.score_texts(texts, scenes)
            self.found["rows"] += case_rows({m: scores[m] for m in ("official_digit", "digit")},
                                            scenes, split="test", task="i2t", replaced=share)

    def judge(self, x: Tensor, scenes: Scenes, **labels: Any) -> Tensor:
        """Both judges read images; returns what the second one sees of all items (M, C)."""
        for name, judge in self.judges.items():
            scores = judge.score_images(x, scenes)
            self.found["rows"] += case_rows({m: scores[m] for m in ("digit", "scene")}, scenes,
                                            judge=name, **labels)
        seen, second = [], self.judges["second"].classifier
        with torch.no_grad():
            read_places(x, scenes.place, lambda crops: seen.append(second.pooled(crops)) or
                        second.predict(crops))
        return torch.cat(seen).double().cpu()

    def compare(self, codes: Tensor, scenes: Scenes, real: Tensor, ink: Tensor | None = None,
                **labels: Any) -> None:
        """Both judges read what codes decode to; its variety; the codes that it gives back.

        ink (N, h, w): the foreground cells. By default those where what was decoded is not quite
        black; painted backgrounds seldom are, so such rows say little about the items.
        """
        x = self.evaluator.decode(codes)
        painted = self.judge(x, scenes, **labels)
        self.found["diversity"].append(labels | {
            "frechet": frechet(real, painted), "precision": inside(painted, real),
            "recall": inside(real, painted), "n": len(real)})
        again, own = self.encode(x)
        kept, ink = again == codes.to(again), own if ink is None else ink
        for cells, mask in (("all", torch.ones_like(ink)), ("foreground", ink)):
            share = float(kept[mask].double().mean()) if mask.any() else None
            self.found["round_trip"].append(
                labels | {"cells": cells, "kept": share, "n": int(mask.sum())})

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and ink (N, h, w) of images (N, 3, S, S)."""
        parts = [equivariance.encode(self.evaluator.vqgan, part) for part in x.split(CHUNK)]
        return torch.cat([p.codes for p in parts]), torch.cat([p.ink for p in parts])


def replaced(codes: Tensor, share: float, seed: int) -> Tensor:
    """Codes (N, h, w) of which a share of every image, at random places, is another used code.

    Used: chosen anywhere in `codes`; every other used code is equally likely.
    """
    used, rank = codes.unique(return_inverse=True)
    if len(used) < 2:
        return codes
    random, (N, h, w) = devices.generator(seed, len(codes)), codes.shape
    order = torch.rand(N, h * w, generator=random).argsort(1)  # a permutation in every row
    other = torch.randint(1, len(used), codes.shape, generator=random)
    hit = (order < round(share * h * w)).view(N, h, w)
    return torch.where(hit, used[(rank + other) % len(used)], codes)


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (n, C) and (m, C) (Heusel et al., 2017).

    |mean difference|^2 + tr(A + B - 2 (A B)^1/2), with the covariances A and B.
    """
    A, B = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # root B root is symmetric and has the eigenvalues of A B
    both = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * both)


def inside(points: Tensor, centres: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of points (n, C) that lie within the reach of a centre (m, C), its k-th neighbour.

    Precision (painted points, real centres) and recall (the reverse) of Kynkäänniemi et al., 2019.
    """
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    among = torch.cdist(centres, centres, **exact).sort(1).values  # column 0: itself
    reach = among[:, min(k, len(centres) - 1)]
    return float((torch.cdist(points, centres, **exact) <= reach).any(1).double().mean())
