"""The five variants and the four sizes of the study.

A variant changes one thing only. To add one, write a line here (and, for a new way of downsampling,
a module in `downsample.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tevq.config import (
    ClassifierConfig,
    DataConfig,
    EvaluationConfig,
    Settings,
    SettingsError,
    Stage1Config,
    Stage2Config,
    parse_overrides,
    unknown,
)

# Table 1 of the paper, in its order
VARIANTS: dict[str, dict[str, Any]] = {
    "mb": {"stage1.downsample": "max_blurpool"},
    "mp": {"stage1.downsample": "maxpool"},
    "cb": {"stage1.downsample": "conv_blurpool"},
    "sc": {"stage1.downsample": "strided_conv"},
    "te": {"stage1.downsample": "strided_conv", "stage1.orthogonality": 10.0},
}


def smoke() -> Settings:
    """First contact and CI: scikit-learn's digits, nothing to download, minutes on two cores.

    Shows every step and every figure; only the equivariance results mean something at this size.
    """
    return Settings(
        preset="smoke",
        data=DataConfig(source="digits", train=1_500, val=100, test=200),
        classifier=ClassifierConfig(width=8, steps=300, batch=64),
        stage1=Stage1Config(channels=8, multipliers=(1, 2, 2), decoder_blocks=1, codes=32, code_dim=32,
                      warmup_steps=80, steps=300, batch=8, disc_start=290, disc_channels=8,
                      disc_layers=2, decay=True),
        stage2=Stage2Config(dim=64, depth=2, heads=2, head_dim=32, steps=100, batch=16, warmup_steps=20,
                      probe_every=50, probe_scenes=20),
        evaluation=EvaluationConfig(scenes=60),
    )


def laptop() -> Settings:
    """Real MNIST with narrow networks: one (variant, seed) in about an hour on two cores."""
    return Settings(
        preset="laptop",
        data=DataConfig(source="mnist", train=100_000, val=1_000, test=1_500),
        classifier=ClassifierConfig(width=24, steps=4_000, batch=100),
        stage1=Stage1Config(channels=16, decoder_blocks=1, warmup_steps=600, steps=4_000, batch=8,
                      decay=True),
        stage2=Stage2Config(window=8, neighbours=2, t2i_share=0.75, steps=14_000, batch=16,
                      warmup_steps=200, probe_every=1_000),
    )


def gpu() -> Settings:
    """The full data on one GPU: one (variant, seed) in minutes."""
    return Settings(
        preset="gpu",
        data=DataConfig(source="mnist", train=300_000, val=3_000, test=3_000),
        classifier=ClassifierConfig(width=64, steps=6_000),
        stage1=Stage1Config(channels=64, multipliers=(1, 2, 2), perceptual_weight=0.2, steps=4_000,
                      batch=128, disc_start=3_000, disc_channels=32, decay=True),
        stage2=Stage2Config(dim=256, depth=6, heads=4, steps=12_000, batch=256, warmup_steps=500,
                      probe_every=1_000, probe_scenes=500),
        evaluation=EvaluationConfig(batch=1_000),
    )


def paper() -> Settings:
    """The published sizes; what the paper leaves out is the official code's (see README).

    Stage 1: 40 epochs of 300,000 in batches of 192, the learning rate the official command arrives
    at (8e-6 x 96 x 2). Stage 2: 20 epochs in batches of 200, each batch used in both directions.
    """
    return Settings(
        preset="paper",
        data=DataConfig(source="mnist", train=300_000, val=3_000, test=3_000),
        classifier=ClassifierConfig(width=64, steps=6_000),
        stage1=Stage1Config(channels=128, multipliers=(1, 2, 2), codebook_start="uniform",
                      warmup_steps=0, perceptual="lpips-vgg", perceptual_weight=1.0,
                      steps=62_500, batch=192, lr=1.536e-3),
        stage2=Stage2Config(dim=256, depth=8, heads=8, window=1, neighbours=0, steps=60_000,
                      batch=200, optimizer="adam", lr=1e-3, beta2=0.999, warmup_steps=3_000,
                      schedule="restarts", probe_every=3_000, probe_scenes=500),
        evaluation=EvaluationConfig(batch=500),
    )


PRESETS = {"smoke": smoke, "laptop": laptop, "gpu": gpu, "paper": paper}

# What `run_all.sh` does when it is not told: (variants, seeds, tables)
DEFAULTS: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    "smoke": (("sc", "te"), (0,), (1, 2, 3)),
    "laptop": (tuple(VARIANTS), (0, 1, 2), (1,)),
    "gpu": (tuple(VARIANTS), (0, 1, 2), (1, 2, 3, 4)),
    "paper": (tuple(VARIANTS), (0, 1, 2), (1, 2, 3)),
}


def load(preset: str = "smoke", variant: str = "te", seed: int = 0,
         overrides: str | dict[str, Any] | None = None) -> Settings:
    """Settings of one cell: preset, then variant, then overrides.

    Raises SettingsError for unknown names and bad values.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SettingsError(f"seed {seed!r} is not allowed; use a whole number from 0")
    settings = PRESETS[preset]()
    fixed = {"stage1.downsample", "stage1.orthogonality"}
    changes = parse_overrides(overrides)
    if clash := fixed & set(changes):
        raise SettingsError(f"{', '.join(sorted(clash))} belongs to the variant; "
                            "choose a variant, or add one to tevq/presets.py")
    settings = dataclasses.replace(settings, variant=variant, seed=seed)
    return settings.override({**VARIANTS[variant], **changes})
