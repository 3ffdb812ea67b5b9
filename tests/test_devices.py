"""What we run on: memory that is kept between steps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tevq.runs import devices

PROGRAM = """
import resource, torch
from tevq.runs import devices
{first}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # the heap grows to what is needed
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)  # 64 MiB: 16,384 pages of 4 KiB
print(faults() - before)
"""


def faults(first: str) -> int:
    """Pages that the kernel had to hand out for ten tensors, one after the other."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(first=first)], cwd=devices.ROOT,
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not devices.keep_freed_memory(), reason="the C library has no mallopt")
def test_freed_memory_is_kept_for_the_next_step():
    """Planted fault: `detect` does not ask for it."""
    assert faults("") > 10 * 1_000  # a fault a page, or a huge page at a time
    assert faults("devices.detect()") < 1_000
