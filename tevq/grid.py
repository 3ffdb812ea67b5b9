"""Which cells of the study are meant: preset, variants, seeds, tables, overrides, results folder.

The command line and the notebooks both build a `Grid`, so both understand the same words.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tevq import config, presets
from tevq.config import Settings, SettingsError, Stage2Config, unknown

TABLES = (1, 2, 3, 4)  # of the paper; 4 is ours: does the order depend on the stride?
COMPARED = ("sc", "te")  # the variants of Tables 2 to 4
FRACTION = 1 / 3  # share of the training scenes in Table 2 (section 4.3)
OTHER_SOURCE = "fashion"  # second item source of Table 3
OTHER_STRIDE = 8  # of Table 4


@dataclass(frozen=True)
class Grid:
    """A choice of cells. Make one with `choose`, which checks it."""

    preset: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: tuple[int, ...]
    overrides: dict[str, Any] = field(default_factory=dict)
    results: str = ""  # results folder; empty = $TEVQ_RESULTS, else results/local
    source: str = ""  # other item source than the preset's (Table 3)
    fraction: float = 1.0  # share of the training scenes (Table 2)

    def cell(self, variant: str, seed: int, source: str = "", fraction: float = 1.0,
             stride: int = 0) -> Settings:
        """Settings of one (variant, seed); `fraction`, `source`, `stride` as in Tables 2 to 4."""
        changes = {"data.source": source, "stage1.stride": stride,
                   "stage2.fraction": fraction if fraction != 1 else None}
        return presets.load(self.preset, variant, seed, self.overrides | {
            name: value for name, value in changes.items() if value})

    @cached_property
    def settings(self) -> Settings:
        """Settings of the first (variant, seed): the only one in notebooks 03 and 04."""
        return self.cell(self.variants[0], self.seeds[0], self.source, self.fraction)

    @property
    def cells(self) -> list[Settings]:
        """Settings of every (variant, seed) of Table 1, seed by seed."""
        return [self.cell(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def compared(self) -> tuple[str, ...]:
        """The chosen variants among those of Tables 2 to 4."""
        return tuple(variant for variant in COMPARED if variant in self.variants)

    @property
    def second_source(self) -> str:
        """The other item source of Table 3: fashion beside MNIST, nothing beside the others."""
        wanted = 3 in self.tables and self.settings.data.source == "mnist"
        return OTHER_SOURCE if wanted else ""

    @property
    def other_stride(self) -> int:
        """The stride of Table 4; 0 when it is that of all other tables."""
        return OTHER_STRIDE if self.settings.stage1.stride != OTHER_STRIDE else 0

    @property
    def folder(self) -> Path:
        """Where tables, figures, notebooks and logs are written; may not exist yet.

        `<results>/<preset>`. In `results/local` the name also says what differs from the preset, so
        that no choice overwrites the tables of another one. (Runs are not written here: all choices
        share those of `<results>/<preset>/runs`.)
        """
        if told := os.environ.get(config.FOLDER_VARIABLE):
            return Path(told)
        root, words = config.results_root(self.results), [self.preset]
        if root == config.LOCAL:
            own = presets.DEFAULTS[self.preset]
            for letter, chosen, usual in zip(("", "s", "t"), (
                    self.variants, self.seeds, self.tables), own, strict=True):
                words += [letter + "_".join(map(str, chosen))] * (chosen != tuple(usual))
            words += [config.digest(self.overrides)] * bool(self.overrides)
        return root / "-".join(words)

    def find(self, name: str) -> Path:
        """A file or folder below `folder`, or the published one when there is none."""
        own = self.folder / name
        if config.results_root(self.results) != config.LOCAL or own.exists():
            return own
        return config.PUBLISHED / self.preset / name


def choose(preset: str = "smoke", variants: Any = "", seeds: Any = "", tables: Any = "",
           overrides: Any = "", results: str = "", source: str = "",
           fraction: float = 1.0) -> Grid:
    """A checked Grid; lists may be `"sc,te"`, `["sc", "te"]` or empty (the preset's own).

    Raises SettingsError for any unknown name or bad value.
    """
    presets.load(preset)  # refuses an unknown one
    own_variants, own_seeds, own_tables = presets.DEFAULTS[preset]
    grid = Grid(
        preset,
        words_of(variants) or own_variants,
        _numbers("seed", seeds) or own_seeds,
        _numbers("table", tables) or own_tables,
        config.parse_overrides(overrides),
        str(results or ""),
        source,
        config.check(Stage2Config, "fraction", fraction),
    )
    for table in grid.tables:
        if table not in TABLES:
            raise unknown("table", table, TABLES)
    for seed in grid.seeds:
        for variant in grid.variants:  # every override is checked against every variant
            grid.cell(variant, seed, source, grid.fraction)
    return grid


def words_of(value: Any) -> tuple[str, ...]:
    """`"sc, te"`, `["sc", "te"]`, `0` or nothing -> tuple of words without repeats."""
    if isinstance(value, str):
        value = value.split(",")
    parts = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    words = tuple(dict.fromkeys(word for part in parts if (word := str(part).strip())))
    if wide := [word for word in words if len(word.split()) > 1]:
        raise SettingsError(f"{wide[0]!r} holds a space; separate names with commas")
    return words


def _numbers(kind: str, value: Any) -> tuple[int, ...]:
    words = words_of(value)
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 20):
            raise SettingsError(f"{kind} {word!r} is not a whole number from 0; write e.g. 0,1,2")
    return tuple(dict.fromkeys(map(int, words)))
