"""How are two things compared on a machine that is not quiet? Interleaved pairs, medians, and what the hardware can do.

Neighbours slow both sides of a pair alike, so a ratio of neighbours in time is worth more than two separate timings.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import torch
from rich.console import Console
from rich.table import Table

Step = Callable[[], object]


class Comparison(NamedTuple):
    """Seconds of both sides (medians), and the median of ``slow / fast`` over the pairs with its quartiles."""

    fast: float
    slow: float
    ratio: float
    low: float
    high: float


def compare(fast: Step, slow: Step, pairs: int, warmup: int = 2) -> Comparison:
    """Run ``fast`` and ``slow`` in turns (who begins alternates) and compare neighbours."""
    for _ in range(warmup):
        fast(), slow()
    timed = []
    for i in range(pairs):
        order = (fast, slow) if i % 2 == 0 else (slow, fast)
        first, second = seconds(order[0]), seconds(order[1])
        timed.append((first, second) if i % 2 == 0 else (second, first))
    return summarise(timed)


def summarise(pairs: list[tuple[float, float]]) -> Comparison:
    """Medians of (fast, slow) seconds, and of their ratios."""
    ratios = [slow / fast for fast, slow in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Comparison(fast, slow, middle, low, high)


def seconds(step: Step) -> float:
    """Wall time of one call; no garbage collection inside it."""
    gc.collect()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gemm_peak(dtype: torch.dtype, size: int = 1024, repeats: int = 20) -> float:
    """Floating-point operations per second of a square matrix product: the best of ``repeats``."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def peak_memory(step: Step) -> int:
    """Bytes that ``step`` holds at its worst moment beyond what was there before it.

    Adds up every allocation and release that torch's allocator reports to the profiler, temporaries inside kernels
    included; so it is exact, and does not depend on what the process kept from earlier work, as its resident size does.
    """
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def arguments(question: str | None) -> argparse.Namespace:
    """``--threads`` and ``--quick``, the same for every benchmark; sets the threads."""
    parser = argparse.ArgumentParser(description=(question or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: a rough answer in seconds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, {args.threads} threads, {'quick' if args.quick else 'full'} run")
    return args


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print rows of text, numbers to the right."""
    out = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        out.add_row(*row)
    Console(width=140).print(out)


def verdict(ratio: float, bar: float, at_most: bool = False) -> str:
    """The bar, and whether it is reached."""
    reached = ratio <= bar if at_most else ratio >= bar
    return f"{'<=' if at_most else '>='} {bar:g} {'yes' if reached else 'NO'}"
