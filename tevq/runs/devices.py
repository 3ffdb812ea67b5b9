"""What we run on: device, precision, seeds, and the record of both that every run keeps."""

import contextlib
import ctypes
import os
import platform
import random
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import joblib
import numpy as np
import torch

from tevq.config import ROOT

SOURCES = ("tevq", "notebooks", "requirements.txt", "run_all.sh", "pyproject.toml")
# mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD (bytes asked for at a time)
KEEP = {-4: 0, -1: 2**31 - 1, -2: 2**26}


@dataclass(frozen=True)
class Device:
    """Where tensors live and in which precision the networks compute."""

    device: torch.device
    dtype: torch.dtype  # of autocast regions; float32 means no autocast

    @property
    def precision(self) -> str:
        """`float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self):
        """Context in which convolutions and matrix products run in `dtype`."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def detect(precision: str = "auto") -> Device:
    """The best device, with bfloat16 where its hardware has it (`precision="auto"`)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    # float32 means float32: by default cuDNN rounds it to 10 bits, and the environment can ask
    # for the same in matrix products
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
    rounded = precision == "bfloat16" or (precision == "auto" and fast)
    return Device(device, torch.bfloat16 if rounded else torch.float32)


@cache
def keep_freed_memory() -> bool:
    """Has the C library keep freed memory for the next step; True where it can (glibc).

    By default every large tensor is mapped afresh and the kernel clears its pages at first touch,
    step after step: measured once, a Stage-1 step took 1.2 to 1.5 times as long. The price: memory
    is given back only at the end of the process (in that measurement 4.0 instead of 3.3 GB).
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return all(mallopt(option, value) for option, value in KEEP.items())
    return False


@contextlib.contextmanager
def fewer_threads():
    """One thread while others keep the cores busy: threads that wait for each other lose most."""
    before = torch.get_num_threads()
    with contextlib.suppress(OSError, AttributeError):  # not every system tells its load
        if os.getloadavg()[0] > 0.75 * joblib.cpu_count():
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_has_bfloat16() -> bool:
    """True on processors with bfloat16 matrix instructions (AMX, AVX512-BF16)."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a pure function of its numbers, e.g. (seed, epoch)."""
    state = np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def record(devices: Device) -> dict:
    """Versions, commit and device, for the record of a run."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn")
    name = torch.cuda.get_device_name() if devices.device.type == "cuda" else _processor()
    return {
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in packages},
        "commit": commit(),
        "device": devices.device.type,
        "device_name": name,
        "precision": devices.precision,
        "float32_is_exact": not torch.backends.cudnn.allow_tf32
        and torch.get_float32_matmul_precision() == "highest",
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # one name, several processors
        "cores": joblib.cpu_count(),  # of a container: its quota
        "system": platform.system(),
    }


def commit(root: Path = ROOT) -> str:
    """Commit of the repository, with `-dirty` when what decides results differs; else unknown.

    Unknown is also a copy of the package that lies inside another repository. A copy without git
    is told by $TEVQ_COMMIT (see lease.py).
    """
    if told := os.environ.get("TEVQ_COMMIT"):
        return told
    def git(*words: str) -> str:  # also where the repository belongs to somebody else
        return subprocess.run(["git", "-c", "safe.directory=*", "-C", str(root), *words],
                              check=True, capture_output=True, text=True).stdout

    try:
        prefix, head = git("rev-parse", "--show-prefix", "HEAD").splitlines()
        changed = git("status", "--porcelain", "--", *SOURCES)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return "unknown"
    return "unknown" if prefix else head + ("-dirty" if changed else "")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
