"""Confidence intervals of shares: of one, and of the difference of two that answer the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.959964, right / asked
    middle, half = p + z * z / (2 * asked), z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """How much larger the second share is than the first, with a 95 % interval for answers to the same questions.

    Newcombe's interval for paired shares (1998, Statistics in Medicine 17, p. 2635, method 10): the Wilson intervals of
    both shares put together with the correlation of the answers, which is shrunk by half a question where positive.

    Returns:
        The difference, its lower and its upper end, as shares.
    """
    n = len(first)
    both, neither = sum(a and b for a, b in zip(first, second, strict=True)), n - sum(map(max, first, second))
    one, other = sum(first) - both, sum(second) - both
    product = both * neither - one * other
    spread = math.prod((both + one, neither + other, both + other, neither + one))
    shrunk = max(product - n / 2, 0) if product > 0 else product
    phi = shrunk / math.sqrt(spread) if spread else 0.0
    (p, (p_low, p_high)), (q, (q_low, q_high)) = ((sum(x) / n, interval(sum(x), n)) for x in (first, second))

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return q - p, q - p - reach(q - q_low, p_high - p), q - p + reach(q_high - q, p - p_low)
