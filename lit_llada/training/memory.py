"""Why does a CPU clear the same memory at every step? Because its allocator gave it back."""

from __future__ import annotations

import ctypes
import sys

# Numbers of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Have glibc keep large blocks that are freed, for the next step; whether it could be told to.

    By default it returns them to the kernel, which hands them out again page by page, each one cleared: a quarter of
    the time of a float32 expert layer. The process then holds what it needed at its worst moment until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    options = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
    return sum(mallopt(option, value) for option, value in options.items()) == len(options)
