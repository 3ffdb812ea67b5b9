"""A trained generator for use in programs: captions to images and back, with checked inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tevq.config import MOST_SEED, Settings, SettingsError
from tevq.data.captions import parse
from tevq.evaluate.evaluator import CHUNK, Evaluator
from tevq.models.transformer import Transformer


@dataclass(frozen=True, repr=False)
class Generator:
    """A trained generator with its VQGAN. Bad captions, images and seeds raise SettingsError.

    S is the side of a scene, 64 in the networks that come with the repository.
    """

    settings: Settings
    evaluator: Evaluator
    model: Transformer

    def __repr__(self) -> str:
        return f"<generator {self.settings.variant!r} of scenes of {self.settings.data.source}>"

    def paint(self, captions: str | Sequence[str], seed: int = 0, greedy: bool = False
              ) -> torch.Tensor:
        """Images (N, 3, S, S) in [-1, 1], one per caption. greedy: always the likeliest code."""
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise SettingsError("paint takes a caption or a list of captions, as text")
        tokenizer = self.evaluator.tokenizer
        text = torch.zeros(len(captions), tokenizer.length, dtype=torch.long)
        for row, caption in zip(text, captions, strict=True):
            ids = tokenizer.encode(caption)
            problems = parse(caption, tokenizer.names).problems if ids[1:-1] else ("it is empty",)
            if problems:
                raise SettingsError(f"caption {caption!r}: {'; '.join(problems)}. A good one: "
                                    f"'the upper left is blue {tokenizer.names[-1]}.'")
            row[: len(ids)] = torch.tensor(ids)
        options = self.settings.evaluation
        codes = self.evaluator.text_to_image(self.model, text, options, _seed(seed), greedy)
        return self.evaluator.decode(codes)

    def describe(self, images: torch.Tensor, seed: int = 0, greedy: bool = True) -> list[str]:
        """One caption per image (N, 3, S, S) in [-1, 1]."""
        options, codes = self.settings.evaluation, self.codes(images)
        return self.evaluator.image_to_text(self.model, codes, options, _seed(seed), greedy)

    @torch.no_grad()
    def codes(self, images: torch.Tensor) -> torch.Tensor:
        """Codes (N, h, w) of images (N, 3, S, S) in [-1, 1]."""
        return torch.cat([self.evaluator.vqgan.codes(part.to(self.evaluator.device))
                          for part in _checked(images, self.settings.data.scene).split(CHUNK)])

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, S, S) in [-1, 1] as their codes show them."""
        return self.evaluator.decode(self.codes(images))


def _checked(images: torch.Tensor, size: int) -> torch.Tensor:
    wanted = f"wanted floats (N, 3, {size}, {size}) in [-1, 1]"
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise SettingsError(f"images of type {getattr(images, 'dtype', type(images).__name__)}; "
                            f"{wanted}: x / 127.5 - 1 of whole numbers from 0 to 255")
    if images.shape[1:] != (3, size, size) or not len(images):
        raise SettingsError(f"images of shape {tuple(images.shape)}; {wanted}")
    low, high = images.amin((1, 2, 3)), images.amax((1, 2, 3))  # NaN when any pixel is
    if not bool(((low >= -1.001) & (low < 0) & (high <= 1.001)).all()):
        raise SettingsError(f"images with values from {low.min():g} to {high.max():g}; {wanted}, "
                            "with a background of -1: 2 * x - 1 of images in [0, 1]")
    return images.float()


def _seed(seed: int) -> int:
    if not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise SettingsError(f"seed {seed!r} is not a whole number from 0 to {MOST_SEED}")
    return seed
