"""The shape of the package: who may import whom, and how large its parts may grow.

`python tests/test_house.py` prints the numbers.
"""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tevq"
# Each layer may import itself and the layers before it. Measures stand below training, because a
# training watches itself with them.
LAYERS = (("config", "presets", "grid"), ("runs",), ("data",), ("models",), ("evaluate",),
          ("train",), ("report",))
BELOW_GRID = {"runs"}  # layers that may import `config` only, of the first layer
# On top: they import what they like, and no layer imports them. Values: who may import them.
TOP = {"bench": set(), "lease": {"__main__", "leased"}, "leased": set(),
       "pipeline": {"__main__", "notebook", "lease"},
       "pretrained": {"__main__", "notebook", "site"}, "site": set(),
       "cluster": {"pipeline"}, "execute": {"pipeline", "cluster", "forecast"},
       "forecast": {"pipeline", "__main__"},
       "notebook": set(), "__main__": set(), "__init__": set()}
PAPER = ("models/quantizer", "models/vqgan", "models/losses", "models/transformer",
         "train/stage1", "train/stage2")
GOAL = 6_000  # lines; `tevq/README.md` says what stands in the way
LIMITS = {"lines": 10_536, "modules": 57, "subpackages": 8, "chain": 9, "file": 360,
          "function": 45, "paper": 1_200}


def files() -> dict[str, Path]:
    """Dotted name below `tevq` -> file, in all folders. A package's `__init__` is left out."""
    return {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
            for path in sorted(PACKAGE.rglob("*.py"))
            if path.name != "__init__.py" or path.parent == PACKAGE}


@functools.cache
def imports(name: str) -> frozenset[str]:
    """The modules of tevq that a module imports, also within functions."""
    known, found = files(), set()
    for line in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(line, ast.ImportFrom) and (line.module or "").split(".")[0] == "tevq":
            base = ".".join(line.module.split(".")[1:])
            found |= {".".join(filter(None, (base, alias.name))) for alias in line.names} | {base}
        elif isinstance(line, ast.Import):
            found |= {".".join(alias.name.split(".")[1:]) for alias in line.names
                      if alias.name.split(".")[0] == "tevq"}
    return frozenset(found & set(known) - {name})


def chain(name: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The longest chain of imports that starts at a module. Raises ValueError for a circle."""
    if name in above:
        raise ValueError(f"a circle of imports: {' -> '.join((*above, name))}")
    below = [_chain_below(other, (*above, name)) for other in sorted(imports(name))]
    return (name, *max(below, key=len, default=()))


_KNOWN: dict[str, tuple[str, ...]] = {}


def _chain_below(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
    if name in above:
        raise ValueError(f"a circle of imports: {' -> '.join((*above, name))}")
    if name not in _KNOWN:
        _KNOWN[name] = chain(name, above)
    return _KNOWN[name]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def numbers() -> dict[str, int]:
    """What is limited, measured."""
    functions = [node.end_lineno - node.lineno + 1 for path in files().values()
                 for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    every = sorted(PACKAGE.rglob("*.py"))
    return {
        "lines": sum(map(lines, every)),
        "modules": len(files()),
        "subpackages": len({path.parent for path in every}) - 1,
        "chain": max(len(chain(name)) for name in files()),
        "file": max(map(lines, every)),
        "function": max(functions),
        "paper": sum(lines(PACKAGE / f"{name}.py") for name in PAPER),
    }


def test_all_folders_are_looked_at():
    assert {"config", "models.quantizer", "train.stage1", "runs.run"} <= set(files())


@pytest.mark.parametrize("name", files())
def test_a_layer_imports_only_what_lies_below(name):
    own = name.split(".")[0]
    order = {part: level for level, layer in enumerate(LAYERS) for part in layer}
    for other in imports(name):
        part = other.split(".")[0]
        if part in TOP:
            assert part == own or own in TOP[part], f"{name} imports {other}"
        elif own in order:
            assert order[part] <= order[own], f"{name} imports {other}"
            assert own not in BELOW_GRID or part in (own, "config"), f"{name} imports {other}"


@pytest.mark.parametrize("what", LIMITS)
def test_the_house_stays_small(what):
    assert numbers()[what] <= LIMITS[what]


if __name__ == "__main__":
    for what, value in numbers().items():
        print(f"{what:12} {value:6,}  of {LIMITS[what]:6,}")
    print("longest chain:", " -> ".join(max((chain(name) for name in files()), key=len)))
