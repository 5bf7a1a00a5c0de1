"""Sampling with LLaDA-8B's shape in bfloat16: milliseconds a step beside a bare forward pass of the same canvas.

The weights are random, so what is written means nothing, and confidences are not those of a trained net. The threshold
is therefore the confidence that three of the 32 positions of the first block reach in the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Figures, Machine, Row, attempt, build, measure
from benchmarks.timing import now, verdict
from lit_llada.backbone.transformer import Backbone
from lit_llada.sampling.canvas import Specials
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan

STEP_OVER_FORWARD, AT_ONCE = 1.25, 3


def sampling(machine: Machine) -> Iterator[Row]:
    net = build(machine.config("8b"), machine.device, torch.bfloat16).eval().requires_grad_(False)
    for rows in machine.pick((1, 16), (1, 2)):
        yield from ways(machine, net, rows)


def ways(machine: Machine, net: Backbone, rows: int) -> Iterator[Row]:
    """Bare forward passes, and the first block of every way to sample."""
    from benchmarks.sampling import Watched, published_loop
    from lit_llada.sampling.cached import Cached

    prompt, new, block = machine.pick((128, 256, 32), (4, 8, 4))
    specials = Specials(net.config.vocabulary - 1)
    canvas = torch.full((rows, prompt + new), specials.mask, device=machine.device)
    canvas[:, :prompt] = torch.randint(specials.mask, (rows, prompt), device=machine.device)
    asked = first_block(canvas, prompt, block)
    bare, theirs = 0.0, canvas  # seconds of a forward pass, and what the published loop wrote

    def forwards() -> tuple[Figures, str]:
        nonlocal bare
        whole = measure(machine, lambda: net(canvas))
        bare = measure(machine, lambda: net(canvas, None, asked)).seconds
        figures = {"ms": 1e3 * bare, "ms with all positions' logits": 1e3 * whole.seconds}
        return figures | ({"GiB": whole.bytes / 2**30} if whole.bytes else {}), ""

    def way(start: Callable[[], Iterator[Any]]) -> tuple[Figures, str, Tensor]:
        figures, found = first_block_of(machine, start, prompt + block, specials.mask)
        if not bare:
            return figures, "", found
        ratio = figures["over a forward"] = figures["ms"] / 1e3 / bare
        return figures, f"over a forward {verdict(ratio, STEP_OVER_FORWARD, at_most=True)}", found

    def published() -> tuple[Figures, str]:
        nonlocal theirs
        figures, _, theirs = way(lambda: published_loop(Watched(net), canvas, specials.mask, block))
        return figures, ""

    def ours(denoiser: Any, **options: Any) -> tuple[Figures, str]:
        figures, goal, found = way(lambda: generate(denoiser, canvas, specials, Plan(block_length=block, **options)))
        same = (found == theirs).flatten()[asked].double().mean()  # in bfloat16 two positions may be equally sure
        return figures | {"share of tokens as published": float(same)}, goal

    def threshold() -> tuple[Figures, str]:
        bound = usual_bound(net(canvas, None, asked).float().softmax(-1).amax(-1), min(AT_ONCE / block, 0.5))
        figures, goal = ours(net, count="threshold", bound=bound)
        return figures | {"bound": bound}, goal

    name = f"{rows} x ({prompt} + {new})"
    yield attempt(f"{name}, a bare forward", forwards)
    yield attempt(f"{name}, published loop", published)
    yield attempt(f"{name}, ours, one token a step", lambda: ours(net))
    yield attempt(f"{name}, ours, threshold", threshold)
    yield attempt(f"{name}, ours, dual cache", lambda: ours(Cached(net, "dual")))


def first_block(canvas: Tensor, begin: int, block: int) -> Tensor:
    """Flat positions of the first block of every row."""
    rows, length = canvas.shape
    place = torch.arange(begin, begin + block, device=canvas.device)
    return (torch.arange(rows, device=canvas.device)[:, None] * length + place).flatten()


def usual_bound(confidences: Tensor, share: float) -> float:
    """The confidence that ``share`` of the positions reach; below 1, as a plan's bound must be."""
    return min(float(confidences.quantile(1 - share)), 0.999)


def first_block_of(
    machine: Machine, start: Callable[[], Iterator[Any]], end: int, mask_id: int
) -> tuple[Figures, Tensor]:
    """Steps of the first block, until it is full in every row, and the canvas then; two steps before warm up."""
    warm = start()
    for _ in range(3):  # the canvas as given, and two steps
        next(warm)
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
    states = start()
    canvas = canvas_of(next(states))
    tokens = left = masks_before(canvas, end, mask_id)
    steps, begin = 0, now(machine.device)
    while left:
        canvas, steps = canvas_of(next(states)), steps + 1
        left = masks_before(canvas, end, mask_id)
    seconds = now(machine.device) - begin
    figures = {"ms": 1e3 * seconds / steps, "tokens/s": tokens / seconds, "tokens a step": tokens / steps}
    if machine.device.type == "cuda":
        figures["GiB"] = torch.cuda.max_memory_allocated(machine.device) / 2**30
    return figures, canvas


def canvas_of(state: Any) -> Tensor:
    return state if isinstance(state, Tensor) else state.canvas


def masks_before(canvas: Tensor, end: int, mask_id: int) -> int:
    """Positions that are still to be filled; reading the number waits for the device."""
    return int((canvas[:, :end] == mask_id).sum())
