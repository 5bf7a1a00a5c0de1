"""Intervals of shares: published values, and what must hold at their ends."""

from __future__ import annotations

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
