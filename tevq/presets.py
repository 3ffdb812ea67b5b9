"""The variants and the presets, the sizes of the study.

A variant changes one thing only. To add one, add a record to `VARIANTS`; a new way of downsampling
also needs its layer in `models/`. Nothing else is to be edited.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

from tevq.config import (
    ClassifierConfig,
    DataConfig,
    EvaluationConfig,
    Settings,
    SettingsError,
    Stage1Config,
    Stage2Config,
    check,
    parse_overrides,
    unknown,
)

COLOURS = cycle(("#E69F00", "#999933", "#882255", "#44AA99", "#000000", "#332288"))
MARKERS = cycle("PX^hdp")  # both for variants that name none, in turn

GROUPS = {  # of arms in results/plan.md -> colour (Tol's "bright" and "muted")
    "vocabulary": "#CCBB44", "orthogonality": "#AA3377", "length": "#66CCEE",
    "context": "#228833", "curve": "#DDCC77", "dose": "#EE6677", "rivals": "#777777"}
ARM_MARKERS = cycle("PX^<>hdpDsv8")
TE, LOCAL = {"orthogonality": 10.0}, {"attention": False, "normalization": "position"}


@dataclass(frozen=True)
class Variant:
    """A way of training the quantizer, and how figures show it."""

    name: str  # letters, digits and _; part of the run folders' names
    settings: dict[str, Any]  # dotted name -> value, over those of the preset
    label: str  # in legends
    colour: str = field(default_factory=lambda: next(COLOURS))
    marker: str = field(default_factory=lambda: next(MARKERS))  # of matplotlib
    dashes: Any = "-"  # line style of matplotlib
    group: str = ""  # of arms in results/plan.md

    def __post_init__(self):
        if not self.name.isidentifier():
            raise SettingsError(f"variant {self.name!r}: use letters, digits and _ only")


def arm(group: str, name: str, label: str, **changes: Any) -> Variant:
    """An arm of results/plan.md: what it changes in Stage 1; a group has one colour."""
    return Variant(name, {f"stage1.{key}": value for key, value in changes.items()}, label,
                   GROUPS[group], next(ARM_MARKERS), group=group)


# Table 1 of the paper, in its order. Okabe and Ito's colours, told apart with every common colour
# blindness; markers and dashes repeat the distinction without colour.
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in (
    Variant("mb", {"stage1.downsample": "max_blurpool"}, "MB  MaxBlurpool",
            "#56B4E9", "v", (0, (1, 1))),
    Variant("mp", {"stage1.downsample": "maxpool"}, "MP  MaxPool",
            "#009E73", "s", (0, (4, 1, 1, 1))),
    Variant("cb", {"stage1.downsample": "conv_blurpool"}, "CB  ConvBlurpool",
            "#CC79A7", "D", (0, (4, 2))),
    Variant("sc", {"stage1.downsample": "strided_conv"}, "SC  StridedConv", "#0072B2", "o",
            group="reference"),
    Variant("te", {"stage1.downsample": "strided_conv", "stage1.orthogonality": 10.0},
            "TE  SC + orthogonal codes", "#D55E00", "*", group="reference"),
    # why `te` is better than `sc`: results/plan.md says what each of these tests
    arm("vocabulary", "sc40", "SC, 40 codes", codes=40),
    arm("vocabulary", "te40", "TE, 40 codes", codes=40, **TE),
    arm("vocabulary", "merged", "SC, merged to 40 codes", quantizer="merged", merged_to=40),
    arm("vocabulary", "te_unused", "TE, penalty on unused codes", penalty_on="unused", **TE),
    arm("orthogonality", "te_revived", "TE, dead codes revived", revive_every=100, **TE),
    arm("orthogonality", "orthonormal", "fixed orthonormal codes", quantizer="orthonormal"),
    arm("orthogonality", "te_used", "TE, penalty on used codes", penalty_on="used", **TE),
    arm("length", "sc_lengths", "SC, lengths frozen", frozen_lengths=True),
    arm("length", "te_lengths", "TE, lengths frozen", frozen_lengths=True, **TE),
    arm("length", "cosine", "SC, cosine codes", quantizer="cosine"),
    arm("context", "sc_local", "SC, encoder without context", **LOCAL),
    arm("context", "te_local", "TE, encoder without context", **LOCAL, **TE),
    *(arm("curve", f"sc{K}", f"SC, {K} codes", codes=K) for K in (16, 24, 64, 128)),
    *(arm("dose", name, f"TE, lambda = {x:g}", orthogonality=x)
      for name, x in (("te_01", 0.1), ("te_1", 1.0), ("te_100", 100.0))),
    arm("rivals", "fsq40", "FSQ, 40 codes", quantizer="fsq", codes=40, levels=(8, 5)),
    arm("rivals", "fsq240", "FSQ, 240 codes", quantizer="fsq", codes=240, levels=(8, 6, 5)),
    arm("rivals", "simvq", "SimVQ", quantizer="simvq"),
    arm("rivals", "lfq", "LFQ, 256 codes", quantizer="lfq", codes=256),
    arm("rivals", "crt", "SC, codes easy to predict", causal=0.25),
    arm("rivals", "shift_features", "SC, shifted features", shift_features=1.0),
    arm("rivals", "shift_decoding", "SC, shifted codes decoded", shift_decoding=1.0),
    arm("rivals", "aps", "SC, adaptive polyphase", downsample="adaptive_polyphase",
        padding="circular"),
    arm("rivals", "mb_te", "MB + orthogonal codes", downsample="max_blurpool", **TE),
)}
PAPER = ("mb", "mp", "cb", "sc", "te")  # the variants of Table 1; others run when they are named
OF_VARIANTS = ("stage1.downsample", "stage1.orthogonality")  # what tells those of the paper apart


def smoke() -> Settings:
    """First contact and CI: scikit-learn's digits, nothing to download, minutes on two cores.

    Shows every step and every figure; only the equivariance results mean something at this size.
    """
    return Settings(
        preset="smoke",
        data=DataConfig(source="digits", train=1_500, val=100, test=200),
        classifier=ClassifierConfig(width=8, steps=300, batch=64),
        stage1=Stage1Config(channels=8, multipliers=(1, 2, 2), decoder_blocks=1, codes=32,
                            code_dim=32, warmup_steps=80, steps=300, batch=8, disc_start=290,
                            disc_channels=8, disc_layers=2, decay=True),
        stage2=Stage2Config(dim=64, depth=2, heads=2, head_dim=32, steps=100, batch=16,
                            warmup_steps=20, probe_every=50, probe_scenes=20),
        evaluation=EvaluationConfig(scenes=60),
    )


def laptop() -> Settings:
    """Real MNIST with narrow networks: one (variant, seed) in 1.5 to 3 hours on two cores."""
    return Settings(
        preset="laptop",
        data=DataConfig(source="mnist", train=100_000, val=1_000, test=1_500),
        classifier=ClassifierConfig(width=24, steps=4_000, batch=100),
        stage1=Stage1Config(channels=16, decoder_blocks=1, warmup_steps=600, steps=4_000,
                            batch=8, decay=True),
        stage2=Stage2Config(window=8, neighbours=2, t2i_share=0.75, steps=14_000, batch=16,
                            warmup_steps=200, probe_every=1_000),
    )


def gpu() -> Settings:
    """The full data on one GPU: one (variant, seed).

    The generator learns until it paints captions like those it saw, at most for `stage2.steps`.
    """
    return Settings(
        preset="gpu",
        data=DataConfig(source="mnist", train=300_000, val=3_000, test=3_000),
        classifier=ClassifierConfig(width=64, steps=6_000),
        stage1=Stage1Config(channels=64, multipliers=(1, 2, 2), perceptual_weight=0.2, steps=4_000,
                            batch=128, disc_start=3_000, disc_channels=32, decay=True),
        stage2=Stage2Config(dim=256, depth=6, heads=4, steps=24_000, batch=256, warmup_steps=500,
                            until=0.97, probe_every=1_000, probe_scenes=500),
        evaluation=EvaluationConfig(batch=1_000),
    )


def plain() -> Settings:
    """Preset `gpu` without what the paper lacks: only its Adam, single words and codes, codes
    that start uniform, constant learning rates in Stage 1."""
    return replace(gpu(), preset="plain").override({
        "stage1.codebook_start": "uniform", "stage1.warmup_steps": 0, "stage1.decay": False,
        "stage2.window": 1, "stage2.neighbours": 0, "stage2.t2i_share": 0.5,
        "stage2.optimizer": "adam", "stage2.lr": 1e-3, "stage2.beta2": 0.999})


def paper() -> Settings:
    """The paper's experiment; what the paper leaves out is the official code's.

    What still differs stands in a table of tevq/README.md.

    Stage 1: 40 epochs of 300,000 in batches of 192, the learning rate the official command arrives
    at (8e-6 x 96 x 2). Stage 2: 20 epochs in batches of 200, each batch used in both directions.
    """
    return Settings(
        preset="paper",
        data=DataConfig(source="mnist", train=300_000, val=3_000, test=3_000,
                        words="numerals"),
        classifier=ClassifierConfig(architecture="resnet18", width=64, steps=6_000),
        stage1=Stage1Config(channels=128, multipliers=(1, 2, 2), codebook_start="uniform",
                            warmup_steps=0, perceptual="lpips-vgg", perceptual_weight=1.0,
                            steps=62_500, batch=192, lr=1.536e-3),
        stage2=Stage2Config(architecture="official", captions="fresh", dim=256, depth=8, heads=8,
                            window=1, neighbours=0, steps=60_000, batch=200, optimizer="adam",
                            lr=1e-3, beta2=0.999, warmup_steps=3_000, schedule="restarts",
                            probe_every=3_000, probe_scenes=500),
        evaluation=EvaluationConfig(batch=500),
    )


PRESETS = {"smoke": smoke, "laptop": laptop, "gpu": gpu, "plain": plain, "paper": paper}

# What `run_all.sh` does when it is not told: (variants, seeds, tables)
DEFAULTS: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    "smoke": (("sc", "te"), (0,), (1, 2, 3)),
    "laptop": (PAPER, (0, 1, 2), (1,)),
    "gpu": (PAPER, (0, 1, 2), (1, 2, 3, 4)),
    "plain": (("sc", "te"), (0, 1, 2), (1,)),
    "paper": (PAPER, (0, 1, 2), (1, 2, 3)),
}


def load(preset: str = "smoke", variant: str = "te", seed: int = 0,
         overrides: str | dict[str, Any] | None = None) -> Settings:
    """Settings of one cell: preset, then variant, then overrides.

    Raises SettingsError for unknown names and bad values.
    """
    for kind, name, known in (("preset", preset, PRESETS), ("variant", variant, VARIANTS)):
        if not isinstance(name, str) or name not in known:
            raise unknown(kind, name, known)
    own, changes = VARIANTS[variant].settings, parse_overrides(overrides)
    if clash := {*OF_VARIANTS, *own} & set(changes):
        raise SettingsError(f"{', '.join(sorted(clash))} belongs to the variant; "
                            "choose a variant, or add one to tevq/presets.py")
    settings = replace(PRESETS[preset](), variant=variant, seed=check(Settings, "seed", seed))
    made = settings.override({**own, **changes})
    check_arm(made.stage1)
    return made


def check_arm(s: Stage1Config) -> None:
    """Raises SettingsError where settings that arms of results/plan.md use do not fit together."""
    levels = "-".join(map(str, s.levels))
    codes, quantizer = f"stage1.codes = {s.codes}", f"stage1.quantizer = {s.quantizer}"
    for wrong, message in (
        (s.orthogonality and s.quantizer in ("orthonormal", "merged", "fsq", "lfq"),
         f"{quantizer} has no codes that stage1.orthogonality = {s.orthogonality:g} could move; "
         "use vq, or orthogonality 0"),
        (s.penalty_on != "all" and not s.orthogonality,
         f"stage1.penalty_on = {s.penalty_on} needs a penalty: stage1.orthogonality above 0"),
        ((s.revive_every or s.frozen_lengths or s.penalty_on != "all") and s.quantizer != "vq",
         f"{quantizer} has no codebook for revive_every, frozen_lengths, penalty_on; use vq"),
        (bool(s.merged_to) != (s.quantizer == "merged") or s.merged_to >= s.codes,
         f"stage1.merged_to = {s.merged_to} of {codes} with {quantizer} makes no sense; use "
         "quantizer merged and 1 ... codes - 1, or neither"),
        (s.quantizer == "orthonormal" and s.codes > s.code_dim,
         f"{codes} cannot all be orthogonal in stage1.code_dim = {s.code_dim}; use at most that"),
        (s.quantizer == "lfq" and s.codes & s.codes - 1,
         f"{codes} is no power of 2, which {quantizer} needs; use e.g. 256"),
        (max(len(s.levels), (s.quantizer == "lfq") * (s.codes.bit_length() - 1)) > s.code_dim,
         f"stage1.code_dim = {s.code_dim} is less than the channels of {quantizer}; use more"),
        (bool(s.levels) != (s.quantizer == "fsq") or s.levels and math.prod(s.levels) != s.codes,
         f"stage1.levels = {levels or 'none'} with {codes} and {quantizer} makes no sense; use "
         "quantizer fsq and levels whose product is codes, e.g. 8-5 and 40, or neither"),
    ):
        if wrong:
            raise SettingsError(message)
