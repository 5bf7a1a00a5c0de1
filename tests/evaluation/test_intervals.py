"""Intervals of shares: published values, and what must hold at their ends."""

from __future__ import annotations

import itertools
import math

import pytest

from lit_llada.evaluation.intervals import interval, paired_difference


def test_wilsons_interval_of_a_share() -> None:
    low, high = interval(81, 263)  # Newcombe 1998, Statistics in Medicine 17, p. 857: 0.2553, 0.3662
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert interval(0, 20)[0] == 0.0 and interval(20, 20)[1] == 1.0
    assert interval(0, 20)[1] == pytest.approx(1 - interval(20, 20)[0])


def test_a_difference_of_equal_answers_is_0_and_turns_its_sign_with_the_order() -> None:
    first, second = [True] * 6 + [False] * 4, [True] * 3 + [False] * 5 + [True] * 2
    assert paired_difference(first, first)[0] == 0.0
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there[0] == pytest.approx(-0.1) and there == pytest.approx((-back[0], -back[2], -back[1]))
    assert there[1] < there[0] < there[2]


def test_answers_that_go_together_are_told_apart_with_fewer_questions() -> None:
    first, together = [True, False] * 20, ([True, False] * 18) + [True] * 4
    apart = [False, True] * 18 + [True] * 4
    assert sum(together) == sum(apart)
    width = [high - low for _, low, high in (paired_difference(first, other) for other in (together, apart))]
    assert width[0] < width[1]


def answers(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_the_paired_interval() -> None:
    # Questions that both get right, or both wrong, tell the two apart the less the more there are of them.
    d, low, high = paired_difference(*answers(0, 0, 20, 0))
    assert d == 1 and low > 0.7 and high == pytest.approx(1)
    assert paired_difference(*answers(10, 0, 0, 10))[0] == 0
    for cells in ((5, 3, 8, 4), (0, 2, 9, 1), (7, 0, 0, 0), (0, 0, 0, 7)):
        first, second = answers(*cells)
        d, low, high = paired_difference(first, second)
        back = paired_difference(second, first)
        assert -1 - 1e-9 <= low <= d <= high <= 1 + 1e-9
        assert back == pytest.approx((-d, -high, -low))
    # Newcombe (1998): 36 both, 12 and 2 one of them, none neither.
    assert paired_difference(*answers(36, 2, 12, 0)) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)
    # Agreement makes it narrower than two independent samples would be.
    alike, other = paired_difference(*answers(40, 2, 8, 50)), paired_difference(*answers(21, 21, 27, 31))
    assert alike[0] == pytest.approx(other[0]) and alike[2] - alike[1] < 0.7 * (other[2] - other[1])


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    n, cells = 24, (0.4, 0.1, 0.25, 0.25)
    found = 0.0
    for counts in itertools.product(range(n + 1), repeat=3):
        if (rest := n - sum(counts)) >= 0:
            whole = (*counts, rest)
            chance = math.factorial(n) * math.prod(p**k / math.factorial(k) for p, k in zip(cells, whole, strict=True))
            if chance > 1e-7:
                _, low, high = paired_difference(*answers(*whole))
                found += chance * (low <= cells[2] - cells[1] <= high)
    assert 0.94 < found < 0.97


def test_wilson_intervals() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), table I
    assert interval(10, 10)[1] == pytest.approx(1.0)
