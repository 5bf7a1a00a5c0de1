"""The rules that decide how many tokens are committed in a step. A new rule is one entry of ``RULES``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Rule(NamedTuple):
    """How many of the candidates go together. At least one always goes.

    Attributes:
        says: the rule in words, for ``--help``.
        bound: the usual bound.
        sweep: the bounds that ``calibrate`` tries.
        passes: doubts ``1 - c`` and entropies of a row's candidates, each ``[b, L]`` in the order of their turn, and
            the bound -> ``[b, L]`` bool, who goes. Positions that cannot go come last, with doubt 1 and entropy inf.
        needs_entropy: whether ``passes`` looks at entropies.
    """

    says: str
    bound: float
    sweep: list[float]
    passes: Callable[[Tensor, Tensor, float], Tensor]
    needs_entropy: bool = False


def threshold(doubt: Tensor, entropy: Tensor, bound: float) -> Tensor:
    """``c >= bound``."""
    return doubt <= 1 - bound


def factor(doubt: Tensor, entropy: Tensor, bound: float) -> Tensor:
    """The largest n with ``(n + 1) (1 - c_n) < bound``."""
    n = doubt.new_ones(doubt.shape).cumsum(1)
    return (n + 1) * doubt.cummax(1).values < bound


def frechet(doubt: Tensor, entropy: Tensor, bound: float) -> Tensor:
    """The largest n with ``sum (1 - c) + max (1 - c) < bound``."""
    return doubt.cumsum(1) + doubt.cummax(1).values < bound


def entropy_bound(doubt: Tensor, entropy: Tensor, bound: float) -> Tensor:
    """The largest n with ``sum H - max H <= bound``."""
    return entropy.cumsum(1) - entropy.cummax(1).values <= bound  # inf - inf is nan, which is False


RULES: dict[str, Rule] = {
    "threshold": Rule(
        "all with probability >= bound (2505.22618)", 0.9, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99], threshold
    ),
    "factor": Rule(
        "the largest n with (n + 1)(1 - c_n) < bound (2505.22618)", 1.0, [0.25, 0.5, 0.75, 1.0, 1.5, 2.0], factor
    ),
    "frechet": Rule(
        "the largest n with sum of (1 - c) + max of (1 - c) < bound (2606.02955)",
        1.0,
        [0.1, 0.25, 0.5, 0.75, 1.0],
        frechet,
    ),
    "entropy_bound": Rule(
        "the largest n whose entropies sum to at most bound above their maximum (EB-Sampler, 2505.24857)",
        0.1,
        [0.01, 0.03, 0.1, 0.3, 1.0],
        entropy_bound,
        needs_entropy=True,
    ),
}
