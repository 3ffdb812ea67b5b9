"""Every setting of a run, validated, in frozen dataclasses; and the folder of the results.

A `Settings` object describes one cell (preset, variant, seed) of the study completely. A digest of
it names the run folder, so nobody mistakes a run for one with other settings.
"""

import difflib
import hashlib
import importlib
import json
import math
import os
import re
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parents[1]  # of the repository in an editable installation
PUBLISHED = ROOT / "results"  # the study of the repository: read by all, written by --publish only
LOCAL = PUBLISHED / "local"  # where everything else is written; git ignores it
FOLDER_VARIABLE = "TEVQ_FOLDER"  # set for kernels: the folder of the command that started them
MOST = 999_999_999  # largest whole number of a setting: nine digits of a step in a file name
MOST_SEED = 2**31 - 1  # the seed is the upper half of 64 bits in sampling
BUILT_IN = {  # known without an import of torch, which --help and --dry-run need not wait for
    "tevq.models.vqgan.DOWNSAMPLERS":
        "strided_conv conv_blurpool maxpool max_blurpool adaptive_polyphase".split(),
    "tevq.models.quantizer.QUANTIZERS": "vq cosine orthonormal simvq merged fsq lfq".split()}
CELL = ("preset", "variant", "seed")  # what names a cell, and is no setting to override


class UserError(Exception):
    """An error whose message says all; notebooks and the command line show no traceback."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class SettingsError(UserError, ValueError):
    """Bad input from the user: one line with the value, what is allowed, and what to do."""


def unknown(kind: str, value: Any, allowed) -> SettingsError:
    """The error for a name that is not in `allowed`: first what may be meant, then what is near."""
    text, names = str(value), sorted(map(str, allowed))
    close = [name for name in names if name.endswith(f".{text}")] or difflib.get_close_matches(
        text, names, 1, 0.8 if "." in text else 0.6)  # settings of a group begin alike
    hint = f"did you mean {' or '.join(map(repr, close))}? " * bool(close)
    near = [name for name in names if name.startswith(text.partition(".")[0] + ".")] or sorted(
        {re.sub(r"\..*", ".*", name) for name in names})
    told = f"{'Allowed' if hint else 'allowed'}: {', '.join(near)}" * (not hint or len(near) < 12)
    return SettingsError(f"unknown {kind} {value!r}; {hint}{told}".rstrip())


def option(default: Any, low: float = -math.inf, high: float = math.inf, choices=None,
           neutral: Any = MISSING) -> Any:
    """A dataclass field with its allowed range (inclusive; of every number in a tuple) or choices.

    choices: allowed values, or where the package holds a dictionary of them by name. It is read
    when a value is checked, so a new entry there is allowed at once. A choice that ends with a
    colon allows every text that begins with it.
    neutral: the value that changes nothing against runs of before the setting existed. A setting at
    its neutral value is left out of digests and records, so finished runs stay valid.
    """
    return field(default=default, metadata={"low": low, "high": high, "choices": choices,
                                            "neutral": neutral})


@dataclass(frozen=True)
class DataConfig:
    """Scenes of the study (section 4, Data Construction). Sizes count scenes."""

    source: str = option("digits", choices="tevq.data.source.SOURCES")
    train: int = option(20_000, low=5)
    val: int = option(500, low=5)
    test: int = option(500, low=5)  # also the size of test_seen
    seed: int = option(0, low=0, high=MOST_SEED)  # of the scenes; the same for every run
    scene: int = option(64, low=32, high=512, neutral=64)  # pixels of a scene's side
    # class words of digits in captions: two or (official) 2; other sources have names only
    words: str = option("names", choices=("names", "numerals"), neutral="names")

    @property
    def word(self) -> str:
        """The source as part of a file's name: of a path or colon the last part."""
        return re.sub(r"[^\w-]+", "-", re.split(r"[/:]", self.source.rstrip("/"))[-1])


@dataclass(frozen=True)
class ClassifierConfig:
    """Digit and colour classifier that judges images and lends its features to the loss."""

    architecture: str = option("own", choices=("own", "resnet18", "residual"), neutral="own")
    seed: int = option(0, low=0, high=MOST_SEED, neutral=0)  # weights at the start, order of items
    width: int = option(16, low=4, high=128)  # of our own architectures
    steps: int = option(1500, low=1)
    batch: int = option(128, low=2)
    lr: float = option(3e-3, low=1e-6, high=1.0)


@dataclass(frozen=True)
class Stage1Config:
    """Image quantizer: VQGAN, or TE-VQGAN when `orthogonality` > 0 (section 3.2)."""

    downsample: str = option("strided_conv", choices="tevq.models.vqgan.DOWNSAMPLERS")
    quantizer: str = option("vq", choices="tevq.models.quantizer.QUANTIZERS", neutral="vq")
    orthogonality: float = option(0.0, low=0.0)  # lambda of equation 5
    stride: int = option(4, choices=(2, 4, 8, 16))  # pixels per code and axis
    channels: int = option(16, low=4)
    multipliers: tuple = option((1, 2, 4), low=1, high=64)  # of channels, a level; last repeats
    encoder_blocks: int = option(1, low=1)
    decoder_blocks: int = option(2, low=1)
    padding: str = option("replicate", choices=("replicate", "zeros", "circular"))  # encoder
    codes: int = option(256, low=2, high=16_384)  # K; equation 2 counts K^2 pairs
    code_dim: int = option(256, low=1)  # C'
    codebook_start: str = option("kmeans", choices=("kmeans", "uniform"))
    warmup_steps: int = option(100, low=0)  # autoencoder steps before the k-means start
    beta: float = option(0.25, low=0.0)  # commitment weight
    perceptual: str = option("classifier", choices=("classifier", "lpips-vgg"))
    perceptual_weight: float = option(0.2, low=0.0)
    disc_start: int = option(30_001, low=0)  # generator steps before the adversarial loss
    disc_weight: float = option(0.8, low=0.0)
    disc_channels: int = option(64, low=4)
    disc_layers: int = option(3, low=1, high=4)
    steps: int = option(1500, low=1)
    batch: int = option(32, low=1)
    lr: float = option(1e-3, low=1e-7, high=1.0)
    decay: bool = option(False)  # cosine to a tenth of lr, else constant (official)
    # for arms of results/plan.md, see models/rivals.py and train/regularizers.py
    merged_to: int = option(0, low=0, high=16_384, neutral=0)  # groups of the codes of `sc`
    levels: tuple = option((), low=2, high=1024, neutral=())  # of every channel of FSQ
    attention: bool = option(True, neutral=True)  # of the encoder
    normalization: str = option("group", choices=("group", "position"), neutral="group")
    penalty_on: str = option("all", choices=("all", "used", "unused"), neutral="all")
    revive_every: int = option(0, low=0, neutral=0)  # steps; 0 = never
    frozen_lengths: bool = option(False, neutral=False)
    causal: float = option(0.0, low=0.0, neutral=0.0)  # lambda of three penalties
    shift_features: float = option(0.0, low=0.0, neutral=0.0)
    shift_decoding: float = option(0.0, low=0.0, neutral=0.0)

    @property
    def K(self) -> int:
        """The codes that images are made of."""
        return self.merged_to or self.codes


@dataclass(frozen=True)
class Stage2Config:
    """Decoder-only transformer over [text | image] and [image | text]."""

    architecture: str = option("own", choices=("own", "official"), neutral="own")
    # fixed: one caption a scene; fresh (official): another one of the same scene in every epoch
    captions: str = option("fixed", choices=("fixed", "fresh"), neutral="fixed")
    dim: int = option(128, low=8)
    depth: int = option(4, low=1)
    heads: int = option(2, low=1)
    head_dim: int = option(64, low=4)
    window: int = option(6, low=1, high=64)  # words that a text embedding sees, itself included
    neighbours: int = option(1, low=0, high=32)  # codes an image embedding reaches; 0 = own
    directions: str = option("both", choices=("both", "t2i", "i2t"))
    t2i_share: float = option(0.5, low=0.0, high=1.0)  # of the steps, if directions = both
    target_weight: float = option(7.0, low=0.0)  # of the target modality; the other has 1
    fraction: float = option(1.0, low=1e-3, high=1.0)  # share of the training scenes (Table 2)
    steps: int = option(1000, low=1)  # optimizer steps; the two directions take turns
    # if above 0: `steps` is the most, and the learning rate falls as soon as greedy images of
    # combinations that training shows (val_seen) have this share of right digits
    until: float = option(0.0, low=0.0, high=1.0, neutral=0.0)
    batch: int = option(32, low=1)
    optimizer: str = option("muon", choices=("muon", "adam"))  # muon: for the blocks' matrices
    muon_lr: float = option(0.01, low=1e-7, high=1.0)
    lr: float = option(3e-3, low=1e-7, high=1.0)
    beta2: float = option(0.95, low=0.0, high=0.99999)
    warmup_steps: int = option(100, low=0)
    schedule: str = option("linear", choices=("linear", "restarts", "constant"))
    clip: float = option(1.0, low=0.0)  # gradient norm; 0 = no clipping
    probe_every: int = option(500, low=1)  # steps between learning-curve points
    probe_scenes: int = option(100, low=0)  # per point and split; 0 = no learning curve


@dataclass(frozen=True)
class EvaluationConfig:
    """Sampling and counting (sections 4.1, 4.2)."""

    scenes: int = option(0, low=0)  # of each test split; 0 = all
    temperature: float = option(1.0, low=1e-3)
    top_k: int = option(38, low=1)  # official: a tenth of 384 logits
    batch: int = option(128, low=1)


@dataclass(frozen=True)
class MeasuresConfig:
    """Measures beside accuracy; numbers of scenes are of each of the cases Quad1-4."""

    val: int = option(25, low=1, neutral=25)  # of the decoding grid, to choose a point
    test: int = option(100, low=1, neutral=100)  # of the grid and of all other measures
    replaced: float = option(0.05, low=0.0, high=1.0, neutral=0.05)  # share of the codes


@dataclass(frozen=True)
class Settings:
    """One cell of the study.

    Every setting decides the runs that it can change (see `runs.run.run_config`). A setting added
    later needs a neutral value, see `option`.
    """

    preset: str = "smoke"
    variant: str = "te"
    seed: int = option(0, low=0, high=MOST_SEED)
    precision: str = option("auto", choices=("auto", "float32", "bfloat16"))
    data: DataConfig = DataConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Stage2Config()
    evaluation: EvaluationConfig = EvaluationConfig()
    measures: MeasuresConfig = MeasuresConfig()

    @property
    def suffix(self) -> str:
        """Another stride than the paper's, in words; empty otherwise."""
        stride = self.stage1.stride
        return f"stride {stride}" if stride != Stage1Config().stride else ""

    def override(self, values: dict[str, Any]) -> "Settings":
        """A copy with dotted names replaced, e.g. `{"stage1.steps": 100}`.

        Raises SettingsError for an unknown name, a wrong type or a value out of range.
        """
        changed, known = self, names()
        for name, value in values.items():
            if name not in known:
                raise unknown("setting", name, known)
            group, _, leaf = name.rpartition(".")
            part = getattr(changed, group) if group else changed
            part = replace(part, **{leaf: check(type(part), leaf, value, name)})
            changed = replace(changed, **{group: part}) if group else part
        _check_combinations(changed)
        return changed

    def as_dict(self, neutral: bool = False) -> dict[str, Any]:
        """Nested plain values, ready for JSON; those at their neutral value only if asked for."""
        return json.loads(json.dumps(_plain(self, neutral)))


def _plain(group: Any, neutral: bool) -> Any:
    if not is_dataclass(group):
        return group
    return {f.name: _plain(value, neutral) for f in fields(group)
            if (value := getattr(group, f.name)) != f.metadata.get("neutral", MISSING) or neutral}


def parse_overrides(text: str | dict[str, Any] | None) -> dict[str, Any]:
    """`"stage1.steps=100, stage2.lr=1e-3"` (or a dictionary) -> `{name: value}`."""
    if not text:
        return {}
    if isinstance(text, dict):
        return dict(text)
    pairs = {}
    for part in filter(None, (p.strip() for p in str(text).split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise SettingsError(f"override {part!r} is not name=value, e.g. stage1.steps=100")
        pairs[name.strip()] = value.strip()
    return pairs


def names() -> list[str]:
    """All dotted names that can be overridden."""
    tree = Settings().as_dict(neutral=True)
    leaves = [k for k, v in tree.items() if not isinstance(v, dict) and k not in CELL]
    return leaves + [f"{k}.{n}" for k, v in tree.items() if isinstance(v, dict) for n in v]


def digest(tree: dict[str, Any]) -> str:
    """First 8 hexadecimal digits of the SHA-256 of a nested dictionary in canonical JSON."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check(group: type, name: str, value: Any, label: str = "") -> Any:
    """`value` in the type of a setting, e.g. `check(EvaluationConfig, "top_k", "38")` -> 38.

    label: the name in messages. Raises SettingsError for a wrong type or a value out of range.
    """
    label, kind = label or name, get_type_hints(group)[name]
    try:
        value = _cast(kind, value)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        wanted = {tuple: "whole numbers such as 1-2-4", float: "float (a finite number)"}
        raise SettingsError(f"{label} = {value!r} is not of type "
                            f"{wanted.get(kind, kind.__name__)}") from None
    told = group.__dataclass_fields__[name].metadata
    if isinstance(choices := told["choices"], str):
        if value in BUILT_IN.get(choices, ()):
            return value
        module, _, dictionary = choices.rpartition(".")
        choices = getattr(importlib.import_module(module), dictionary)
    if choices and value not in choices and not str(value).startswith(
            tuple(choice for choice in map(str, choices) if choice.endswith(":"))):
        raise SettingsError(f"{label} = {value!r} is not one of {', '.join(map(str, choices))}")
    high = min(told["high"], MOST) if kind in (int, tuple) else told["high"]
    for number in value if kind is tuple else (value,):
        if kind is not str and not told["low"] <= number <= high:
            bound = f"at least {told['low']}" if number < told["low"] else f"at most {high}"
            raise SettingsError(f"{label} = {value!r} is out of range; it must be {bound}")
    return value


def _cast(kind: type, value: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[str(value).lower()]
    if isinstance(value, bool):  # else True would pass as 1
        raise TypeError
    if kind is tuple:
        parts = value.split("-") if isinstance(value, str) else value
        return tuple(_cast(int, part) for part in parts)
    if kind is str:
        return str(value)
    number = float(value)
    if not math.isfinite(number) or (kind is int and number % 1):
        raise ValueError
    return kind(number)


def _check_combinations(settings: Settings) -> None:
    """Rules that join settings."""
    one, two, size = settings.stage1, settings.stage2, settings.data.scene
    for broken, told in (
        (size % 32 or size < max(least := (4 * one.stride, 3 * 2**one.disc_layers)),
         f"data.scene = {size} must be a multiple of 32, at least 4 x stride = {least[0]} and "
         f"3 x 2^disc_layers = {least[1]}"),
        (one.orthogonality > 0 and one.codes > one.code_dim,
         f"stage1.codes = {one.codes} vectors of stage1.code_dim = {one.code_dim} cannot all be "
         "orthogonal (equation 5); use codes <= code_dim, or a variant without it"),
        (one.perceptual == "classifier" and settings.classifier.architecture != "own",
         "stage1.perceptual = classifier needs classifier.architecture = own, not "
         f"{settings.classifier.architecture}"),
        (two.until and (two.schedule != "linear" or two.directions == "i2t"
                        or not two.probe_scenes),
         "stage2.until watches painted images of the learning curve; it needs stage2.schedule = "
         "linear, directions = both or t2i, probe_scenes > 0"),
        (two.architecture == "official" and (two.window, two.neighbours) != (1, 0),
         "stage2.architecture = official looks at single words and codes; add stage2.window=1, "
         "stage2.neighbours=0"),
    ):
        if broken:
            raise SettingsError(told)


def expand(path: str | Path) -> Path:
    """The absolute path, `~` replaced. Raises SettingsError when nobody says where home is."""
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise SettingsError(f"folder {str(path)!r} cannot be used: {error}; write the whole path "
                            "without ~") from None


def results_root(folder: str | Path | None = None) -> Path:
    """`folder`, else $TEVQ_RESULTS, else `results/local` of the repository."""
    return expand(folder or os.environ.get("TEVQ_RESULTS") or LOCAL)
