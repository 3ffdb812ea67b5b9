"""What we run on: device, precision, seeds, and the record of both that every run keeps."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import random
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

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
    dtype = torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and fast) else None
    return Device(device, dtype or torch.float32)


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


def exact_float32(device: torch.device) -> bool:
    """Measured: float32 products and convolutions keep a bit that TF32 and bfloat16 round away."""
    x = torch.full((1, 1, 512, 512), 1 + 2.0**-12, device=device)
    one = torch.ones(16, 16, 1, 1, device=device)
    image = x.view(1, 16, 128, 128)
    return bool((x @ torch.eye(512, device=device) == x).all()
                and (torch.conv2d(image, one) == 16 * x.max()).all())


def cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use: by affinity, and by the quota of its container.

    root: where `proc` and `sys` lie. A quota of one and a half cores counts as one.
    """
    found = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        found.append(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)  # "0::/path" (version 2), "4:cpu,cpuacct:/path" (1)
            if not kinds or "cpu" in kinds.split(","):
                place = Path(path.strip("/"))  # seen from a container, it may not exist
                found += [_quota(root / "sys/fs/cgroup" / kinds / folder)
                          for folder in (place, *place.parents)]
    return max(1, int(min(found)))


def _quota(group: Path) -> float:
    """Cores that a control group may use, of either version; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        try:
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        except OSError:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")
                             for name in ("quota", "period"))
        if float(quota) > 0:  # "max" and -1 are no limit
            return float(quota) / float(period)
    return math.inf


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
        "float32_is_exact": exact_float32(devices.device),
        "threads": torch.get_num_threads(),
        "processes": 1,  # as in the records of before
        "cores": cores(),
        "system": platform.system(),
    }


def commit(root: Path = ROOT) -> str:
    """Commit of the repository, with `-dirty` when what decides results differs; else unknown.

    Unknown is also a copy of the package that lies inside another repository.
    """
    try:
        told = _git(root, "rev-parse", "--show-toplevel", "HEAD")
        if "dubious ownership" in told.stderr:
            return "unknown (git refuses: dubious ownership)"
        top, _, head = told.stdout.strip().partition("\n")
        if told.returncode or not os.path.samefile(top, root):
            return "unknown"
        changed = _git(root, "status", "--porcelain", "--", *SOURCES)
    except OSError:
        return "unknown"
    return head + ("-dirty" if changed.returncode or changed.stdout.strip() else "")


def _git(root: Path, *words: str) -> subprocess.CompletedProcess:
    """Git in a folder, in English, whatever repository the environment names (as in hooks)."""
    env = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE")}
    return subprocess.run(["git", "-C", str(root), *words], env=env | {"LC_ALL": "C"},
                          capture_output=True, encoding="utf-8", errors="replace")


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
