"""The gradient of a loss on many draws, with one draw's graph in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def two_pass(
    log_likelihood: Callable[[int], tuple[Tensor, Tensor | None]],
    draws: int,
    loss: Callable[[Tensor], Tensor],
    scale: float = 1.0,
    weighted: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of ``loss([n, S] sums of log p)`` with one draw's graph in memory at a time.

    First all draws without a graph (the last one with its), then the loss and its derivative after each sum, and then
    draw by draw backwards, each times its own. That is the chain rule: the gradient is exactly that of one big graph.

    Args:
        log_likelihood: number of the draw -> ``[S]`` sums of log p, and a scalar that is added to the loss as it is
            (router losses), or None.
        draws: n.
        loss: ``[n, S]`` -> scalar.
        scale: what the gradients that are computed in here are divided by, as the caller will divide the one returned.
        weighted: number of the draw and ``[S]`` slopes -> ``slopes . sums + scalar``, made at less cost than by
            ``log_likelihood``, which None takes.

    Returns:
        a scalar whose gradient is still to be taken, and the sums ``[n, S]`` without a graph.
    """

    def surrogate(slope: Tensor, sums: Tensor, extra: Tensor | None) -> Tensor:
        value = (slope * sums).sum()
        return value if extra is None else value + extra

    weighted = weighted or (lambda draw, slope: surrogate(slope, *log_likelihood(draw)))
    with torch.no_grad():
        sums = [log_likelihood(draw)[0] for draw in range(draws - 1)]
    last, extra = log_likelihood(draws - 1)
    with torch.enable_grad():
        every = torch.stack([*sums, last.detach()]).requires_grad_()
        (slopes,) = torch.autograd.grad(loss(every), every)
    rest = surrogate(slopes[-1], last, extra)
    for draw in range(draws - 1):
        rest.div(scale).backward()
        rest = weighted(draw, slopes[draw])
    return rest, every.detach()
