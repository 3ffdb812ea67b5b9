"""The evaluator lets a generator paint and describe, and scores it (sections 4.1 and 4.2)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tevq.config import EvaluationConfig, Settings, digest
from tevq.data.captions import CENTER, Tokenizer
from tevq.data.render import scene_size
from tevq.data.scenes import CASES, Scenes, load_items, load_scenes, part_of, render
from tevq.data.source import SourceImages, class_names
from tevq.evaluate.metrics import (
    Score,
    by_case,
    quadrant_ink,
    read_places,
    score_captions,
    score_images,
)
from tevq.models import classifier, vqgan
from tevq.models.classifier import Classifier
from tevq.models.sampling import generate_captions, generate_images
from tevq.models.transformer import Transformer
from tevq.models.vqgan import VQGAN
from tevq.runs import devices
from tevq.runs.run import open_run
from tevq.runs.storage import DamagedFileError, load_tree, save_tree

CHUNK = 128  # scenes that are rendered, encoded or decoded at a time


@dataclass(frozen=True)
class Evaluator:
    """What scoring needs besides the generator."""

    vqgan: VQGAN
    classifier: Classifier
    tokenizer: Tokenizer
    device: torch.device

    @classmethod
    def load(cls, settings: Settings, results=None, device: torch.device | str = "cpu"
             ) -> Evaluator:
        """With the trained VQGAN of a run and the classifier of its preset."""
        names = class_names(settings.data.source, settings.data.words)
        return cls(vqgan.load(settings, results, device),
                   classifier.load(settings, results, device),
                   Tokenizer(names), torch.device(device))

    def score_images(self, images: torch.Tensor, scenes: Scenes) -> dict[str, Score]:
        """`metrics.IMAGE_METRICS` of images (N, 3, S, S) in [-1, 1] that should show `scenes`."""
        labels, colours = read_places(images.to(self.device), scenes.place, self.classifier.predict)
        center = torch.from_numpy(scenes.place[:, 0] == CENTER).to(self.device)
        ink = quadrant_ink(images.to(self.device), center).cpu().numpy()
        return score_images(labels, colours, scenes.label, scenes.colour, scenes.place, ink)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (N, h, w) -> images (N, 3, S, S) in [-1, 1]."""
        return torch.cat([self.vqgan.decode_codes(part.to(self.device))
                          for part in codes.split(CHUNK)])

    def score_codes(self, codes: torch.Tensor, scenes: Scenes) -> dict[str, Score]:
        """Scores of the images that codes (N, h, w) decode to."""
        return join_scores([self.score_images(self.decode(codes[i : i + CHUNK]),
                                              scenes.take(slice(i, i + CHUNK)))
                            for i in range(0, len(codes), CHUNK)])

    def text_to_image(self, model: Transformer, text, options: EvaluationConfig, seed: int,
                      greedy: bool = False, scene: np.ndarray | None = None) -> torch.Tensor:
        """Codes (N, h, w) painted for token ids (N, L), an array or tensor of whole numbers.

        scene: positions (N,) in the split, which make the seeds; by default the first N.
        """
        text = torch.as_tensor(text).long()
        return torch.cat([
            generate_images(model, words, seeds, options.temperature, options.top_k, greedy)
            for words, seeds in self._batches(text, options, seed, scene)]).cpu()

    def image_to_text(self, model: Transformer, codes: torch.Tensor, options: EvaluationConfig,
                      seed: int, greedy: bool = False) -> list[str]:
        """Captions written for images given as codes (N, h, w)."""
        return [self.tokenizer.decode(row) for part, seeds in self._batches(codes, options, seed)
                for row in generate_captions(model, part, seeds, options.temperature,
                                             options.top_k, greedy).tolist()]

    def _batches(self, x: torch.Tensor, options: EvaluationConfig, seed: int, scene=None) -> zip:
        """Parts of x (N, ...), and sampling seeds made of the run's seed and the scene only."""
        seeds = torch.as_tensor(np.arange(len(x)) if scene is None else scene) + (seed << 32)
        return zip(x.to(self.device).split(options.batch),
                   seeds.to(self.device).split(options.batch), strict=True)

    def score_texts(self, texts: list[str], scenes: Scenes) -> dict[str, Score]:
        """`metrics.CAPTION_METRICS` of captions written for `scenes`."""
        truths = [scenes.clauses(i) for i in range(len(scenes))]
        return score_captions(texts, truths, self.tokenizer.names)


def join_scores(parts: list[dict[str, Score]]) -> dict[str, Score]:
    """Scores per scene of consecutive batches as one."""
    return {metric: Score(*(np.concatenate([part[metric][k] for part in parts]) for k in range(2)))
            for metric in parts[0]}


def split_of(settings: Settings, split: str, count: int = 0) -> tuple[Scenes, SourceImages]:
    """The first `count` scenes of a split (0 = all) and the items they are drawn from."""
    found = load_scenes(settings.data, split)
    return found.take(slice(0, count or None)), load_items(settings.data, part_of(split))


@torch.no_grad()
def encode_scenes(model: VQGAN, scenes: Scenes, items: SourceImages, where) -> torch.Tensor:
    """Codes of scenes (N, h, w), uint8 when K <= 256, else int32. `where` is a devices.Device.

    In the precision of `where`: training sets are encoded as the VQGAN was trained.
    """
    kind = torch.uint8 if model.quantizer.K <= 256 else torch.int32
    items, side = items.to(where.device), scene_size(items.images.shape[-1]) // model.stride
    # one tensor from the start: many small ones between large ones would keep memory from reuse
    found = torch.empty(len(scenes), side, side, dtype=kind)
    for start in range(0, len(scenes), CHUNK):
        x = render(scenes, items, slice(start, start + CHUNK))
        with where.autocast():
            codes = model.codes(x.contiguous(memory_format=torch.channels_last))
        found[start : start + CHUNK] = codes.to(kind)
    return found


def encoded_split(settings: Settings, split: str, evaluator: Evaluator, results=None
                  ) -> torch.Tensor:
    """Codes (N, h, w) of a split, encoded once and kept beside the weights that gave them.

    In the precision of training: the generator reads codes that are made alike. Of the training
    scenes those that `stage2.fraction` uses, cut from all if these are there.
    """
    run = open_run(settings, "stage1", results)
    folder = run.own / "state"
    stem, count = f"codes-{split}-{digest(settings.as_dict()['data'])}-{run.checksum[:8]}", 0
    names = [stem]
    if split == "train" and settings.stage2.fraction < 1:
        count = max(1, round(settings.data.train * settings.stage2.fraction))
        names.append(f"{stem}-{count}")
    for path in (path for name in names for path in folder.glob(f"{name}.*.safetensors")):
        try:
            return load_tree(path)[: count or None]
        except (DamagedFileError, OSError) as error:
            print(f"{error}; encoding the scenes again")
            path.unlink(missing_ok=True)
    began = time.monotonic()
    scenes, items = split_of(settings, split, count)
    codes = encode_scenes(evaluator.vqgan, scenes, items, devices.detect(settings.precision))
    print(f"encoded {len(codes):,} scenes of {split} in {time.monotonic() - began:.0f} s")
    save_tree(folder, names[-1], codes)
    return codes


@torch.no_grad()
def mean_nats(model: Transformer, captions: np.ndarray, codes: torch.Tensor) -> float:
    """Mean of -log p(codes of an image | caption) in nats: captions (N, L), codes (N, h, w)."""
    device, total = next(model.parameters()).device, 0.0
    for text, target in zip(torch.as_tensor(captions).split(CHUNK), codes.split(CHUNK),
                            strict=True):
        target = target.long().to(device)
        logits = model(text.long().to(device), target, "t2i")[1]  # (B, N, K)
        total += float(cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
    return total / len(codes)


def case_values(scores: dict[str, Score], scenes: Scenes, metric: str) -> dict[str, float]:
    """Share of `metric` in every case, {case: value}."""
    table = by_case({metric: scores[metric]}, scenes.case, CASES)
    return {case: found[metric].value for case, found in table.items()}
