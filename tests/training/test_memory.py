"""The allocator keeps what a step frees: the next step faults in no new pages."""

from __future__ import annotations

import resource
import subprocess
import sys

CODE = """
import resource, sys, torch
from lit_llada.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(100):
    torch.ones(4, 1024, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(4, 1024, 1024)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


def test_large_blocks_are_not_cleared_again() -> None:
    pages = 20 * 4 * 2**20 * 4 // resource.getpagesize()
    assert faults("keep") < pages / 10 < pages / 2 < faults("plain")
