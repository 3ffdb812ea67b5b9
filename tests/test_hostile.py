"""No code runs from data: what files and parameters can hold, and what is refused."""

import ast
import hashlib
import json
from pathlib import Path

import pytest
from fakes import write_all
from safetensors.torch import save

from tevq import notebook
from tevq.__main__ import main
from tevq.config import SettingsError
from tevq.runs import devices
from tevq.runs.storage import DamagedFileError, load_tree

pytestmark = pytest.mark.promise("no-code")
RUNNING_CODE = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load",
         "torch.save", "np.load", "yaml.load", "yaml.unsafe_load", "joblib.load", "joblib.dump"}
COUNTS_CORES = "joblib"  # imported whole for `joblib.cpu_count`; its reader and writer are in CALLS


def code_that_runs_data(source: str) -> list[str]:
    """Imports of pickling modules, torch.load or save, pickled arrays, eval, shells."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names
                      if a.name.split(".")[0] in RUNNING_CODE - {COUNTS_CORES}]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] * ((node.module or "").split(".")[0] in RUNNING_CODE)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [name] * (name in CALLS or words.get("shell") == "True")
    return found


@pytest.mark.parametrize("bad", [
    "import pickle", "from joblib import load", "joblib.load(f)", "torch.load(f)",
    "torch.save(m, f)",
    "np.load(f, allow_pickle=True)", "eval(x)", "yaml.load(f)", "os.system(x)",
    "subprocess.run(x, shell=True)"])
def test_the_search_finds_planted_faults(bad):
    assert code_that_runs_data(bad)


def test_nothing_in_the_package_runs_data():
    """Planted faults: torch.save in runs/storage.py; only one folder is looked at."""
    files = list((devices.ROOT / "tevq").rglob("*.py"))
    assert len({path.parent for path in files}) > 5
    for path in files:
        assert not code_that_runs_data(path.read_text(encoding="utf-8")), path


def stored(folder: Path, content: bytes) -> Path:
    """A file whose name holds the right checksum: what somebody who means harm would make."""
    path = folder / f"weights.{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
    path.write_bytes(content)
    return path


def header(tree: dict) -> bytes:
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text


HOSTILE = {
    "nothing": b"",
    "a pickle": b"\x80\x04\x95.\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system.",
    "a header of terabytes": (1 << 42).to_bytes(8, "little") + b"{}",
    "offsets outside": header(
        {"0": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}),
    "a shape that overflows": header(
        {"0": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]}}),
    "no structure": save({}),
    "a structure of another kind": save({}, {"structure": "[1, 2]"}),
    "a tensor that is not there": save({}, {"structure": '{"tensor": "7", "channels_last": true}'}),
    "a structure without end": save({}, {"structure": '{"list": [' * 50_000}),
    "deep nesting": save({}, {"structure": '{"list": [' * 5_000 + '{"value": 1}' + "]}" * 5_000}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_checkpoints_are_refused(kind, tmp_path):
    """Planted fault: only SafetensorError is caught."""
    with pytest.raises(DamagedFileError):
        load_tree(stored(tmp_path, HOSTILE[kind]))


WORDS = ["../laptop", "/etc/passwd", "$(touch hacked)", "`touch hacked`", "te; touch hacked",
         "te\ntouch hacked", "__import__('os').system('touch hacked')", "\x00"]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("option", ["--preset", "--variants", "--seeds", "--notebooks", "--tables",
                                    "--set"])
def test_hostile_options_are_refused(option, word, tmp_path, monkeypatch, capsys):
    """One line and exit code 2, before anything is written."""
    folder = write_all(tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    more = ["--results", str(tmp_path / "results")]
    assert main([option, word, *more, "--dry-run"], folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("tevq: ") and "Traceback" not in said
    assert not (tmp_path / "results").exists() and not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", ["preset", "variant", "seed", "source", "overrides"])
def test_hostile_parameters_of_a_notebook_are_refused(name, word):
    values = {"preset": "smoke", "variant": "te", "seed": 0, "source": "", "overrides": "",
              "results": ""}
    with pytest.raises(SettingsError):
        notebook.start(values | {name: word}, "03_stage1")


def test_a_results_folder_is_only_a_name(tmp_path, monkeypatch):
    """Planted fault: a command line put together as text."""
    monkeypatch.chdir(tmp_path)
    folder = write_all(tmp_path / "notebooks")
    name = "a $(touch hacked) ; touch hacked"
    assert main(["--notebooks", "01", "--results", name], folder) == 0
    assert (tmp_path / name / "smoke/notebooks/01_dataset.html").exists()
    assert not [path for path in tmp_path.rglob("hacked")]
