"""When does a cache hurt, and when does it pay? What each way costs on sorting, and the time of a step by length.

Sorting in an undeclared direction is hard on a cache: what the prompt's states must say changes with every token of
the answer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import sorting
from benchmarks.timing import arguments, summarise, table
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.sampling.cache import Cached, agreement, summarize
from lit_llada.sampling.canvas import Specials, State
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan

WAYS: dict[str, dict[str, Any]] = {
    "prefix": {"scheme": "prefix"},
    "dual": {"scheme": "dual"},
    "vicinity 4": {"scheme": "vicinity", "vicinity": 4},
    "prefix, whole every 2nd step": {"scheme": "prefix", "refresh_every": 2},
    "dual, whole every 2nd step": {"scheme": "dual", "refresh_every": 2},
    "prefix, whole every 4th step": {"scheme": "prefix", "refresh_every": 4},
    "dual, whole every 4th step": {"scheme": "dual", "refresh_every": 4},
}


class Price(NamedTuple):
    """What a way of caching computed and what came of it; the meter reads every third step of a run of its own."""

    positions: float  # a row
    seconds: float
    same: float  # share of the answer's tokens as without a cache
    right: float  # share of the rows
    kl: float  # nats a prediction, against the whole canvas
    flips: float  # share of the predictions


def price(
    net: Backbone,
    canvas: Tensor,
    real: Tensor | None,
    right: Callable[[Tensor], Tensor],
    plan: Plan,
    specials: Specials,
    options: dict[str, Any] | None,
    whole: State | None = None,
) -> tuple[Price, State]:
    """One way to decode a batch.

    Args:
        net: in eval mode.
        canvas, real: ``[B, L]`` as for ``generate``.
        right: final canvas -> ``[B]`` bool.
        plan, specials: as for ``generate``.
        options: of :class:`Cached`; None for no cache.
        whole: the last state without one, to be compared with.
    """
    denoiser = net if options is None else Cached(net, **options)
    begin = time.perf_counter()
    *_, state = generate(denoiser, canvas, specials, plan, real=real)
    spent, kl, flips = time.perf_counter() - begin, 0.0, 0.0
    if options is not None:
        metered = Cached(net, **options, meter_every=3)
        list(generate(metered, canvas, specials, plan, real=real))
        reading = summarize(metered.meter)
        kl, flips = (reading.kl, reading.flips) if reading else (0.0, 0.0)
    filled = canvas == specials.mask if real is None else (canvas == specials.mask) & real
    same = 1.0 if whole is None else float(agreement(state.canvas, whole.canvas, filled).mean())
    computed = denoiser.computed if isinstance(denoiser, Cached) else int(state.forwards.sum()) * canvas.shape[1]
    return Price(computed / len(canvas), spent, same, float(right(state.canvas).double().mean()), kl, flips), state


def prices(
    title: str,
    net: Backbone,
    canvas: Tensor,
    real: Tensor | None,
    right: Callable[[Tensor], Tensor],
    plan: Plan,
    specials: Specials,
) -> None:
    """Print the table of all ways."""
    none, whole = price(net, canvas, real, right, plan, specials, None)
    found = {"none": none}
    for name, options in WAYS.items():
        found[name], _ = price(net, canvas, real, right, plan, specials, options, whole)
    lines = []
    for name, p in found.items():
        shares = [f"{p.same:.1%}", f"{p.right:.1%}", f"{p.kl:.3f}", f"{p.flips:.1%}"]
        lines.append([name, f"{p.positions:.0f}", f"{p.seconds:.2f}", *shares])
    table(title, ["cache", "positions", "seconds", "same tokens", "exact match", "KL", "flips"], lines)


@torch.no_grad()
def step_times(config: BackboneConfig, lengths: list[int], block: int, steps: int) -> list[list[str]]:
    """How many times faster than a whole step a cached one is, by canvas length; one row, blocks in its middle."""
    config.vocab_size = 4096
    net, lines = Backbone(config).eval(), []
    for length in lengths:
        canvas = torch.randint(4095, (1, length))
        canvas[:, length // 2 :] = 4095
        plan, specials = Plan(block_length=block), Specials(mask=4095)
        ways = [net, *(Cached(net, s) for s in ("prefix", "dual", "vicinity"))]  # type: ignore[arg-type]
        runs = [generate(way, canvas, specials, plan) for way in ways]
        spent: list[list[float]] = [[] for _ in runs]
        for step in range(min(steps, block)):
            for run, times in zip(runs, spent, strict=True):
                begin = time.perf_counter()
                next(run)
                if step > 1:  # the canvas as it was given, and the step that fills the cache
                    times.append(time.perf_counter() - begin)
        ratios = [summarise(list(zip(times, spent[0], strict=True))).ratio for times in spent[1:]]
        lines.append([f"{length:,}", f"{1e3 * statistics.median(spent[0]):.1f}", *(f"{r:.2f}" for r in ratios)])
    return lines


def main() -> None:
    args = arguments(__doc__)
    columns = ["canvas", "whole, ms", "prefix", "dual", "vicinity 16"]
    lengths, shape = [64, 128, 256, 512, 1024], {"d_model": 256, "n_layers": 4, "n_heads": 4, "ff_dim": 768}
    for name, sparse in (("dense", {}), ("8 experts, 2 a token", {"n_experts": 8, "expert_dim": 384})):
        lines = step_times(BackboneConfig(**shape, **sparse), lengths, 32, 8 if args.quick else 24)  # type: ignore[arg-type]
        table(f"Speed of a cached step over a whole one, d 256, 4 layers, {name}, blocks of 32", columns, lines)
    sort(200 if args.quick else 1_000, 60 if args.quick else 1_000)


def sort(prompts: int, steps: int) -> None:
    """Train a net for ``steps``, and what each way costs it."""
    net, loss = sorting.train(steps)
    tokens, real, maskable = sorting.draw_rows(prompts, torch.Generator().manual_seed(2))
    canvas, title = tokens.masked_fill(maskable, sorting.MASK), f"Sorting ({loss:.2f} nats a token), in blocks of 8"

    def right(final: Tensor) -> Tensor:
        return sorting.solved(final, maskable)

    prices(title, net, canvas, real, right, Plan(block_length=8), sorting.SPECIALS)


if __name__ == "__main__":
    main()
