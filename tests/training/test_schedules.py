"""Does the learning rate move as LLaDA's did, without a jump where none is meant?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llada.errors import UserError
from lit_llada.training.schedules import Schedule

PEAK, STEPS = 4e-4, 438_690  # 2.3 trillion tokens at 1,280 x 4,096 a step
LLADA = Schedule("wsd", warmup_steps=2000, drop_at=1.2 / 2.3, drop_to=0.25, decay=0.3 / 2.3, final=0.025)
ROUNDED = Schedule("wsd", warmup_steps=2000, drop_at=0.5217, drop_to=0.25, decay=0.1304, final=0.025)  # as documented


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, PEAK / 2000),
        (999, PEAK / 2),
        (1999, PEAK),
        (2000, PEAK),
        (228_881, PEAK),
        (228_883, 1e-4),
        (381_469, 1e-4),
        ((381_470 + STEPS) // 2, 5.5e-5),
        (STEPS, 1e-5),
    ],
)
def test_llada_8b(step: int, rate: float) -> None:
    assert PEAK * LLADA.factor(step, STEPS) == pytest.approx(rate, rel=1e-4)


def test_the_documented_shares_are_those_of_the_paper() -> None:
    for step in (0, 1999, 228_000, 230_000, 381_000, 400_000, STEPS):
        assert ROUNDED.factor(step, STEPS) == pytest.approx(LLADA.factor(step, STEPS), rel=2e-3)


def test_the_drop_is_the_only_jump() -> None:
    factors = [LLADA.factor(step, STEPS) for step in range(STEPS + 1)]
    jumps = [i for i, (a, b) in enumerate(pairwise(factors)) if abs(a - b) > 1.01 / 2000]
    assert jumps == [228_881]


schedules = st.builds(
    Schedule,
    kind=st.sampled_from(["wsd", "cosine", "constant"]),
    warmup_steps=st.integers(0, 50),
    decay=st.floats(0.05, 1),
    final=st.floats(0, 1),
)


@given(schedules, st.integers(51, 2000))
@settings(max_examples=100)
def test_rises_once_then_never_again_and_stays_in_bounds(schedule: Schedule, total: int) -> None:
    factors = [schedule.factor(step, total) for step in range(total + 1)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    warm, rest = factors[: schedule.warmup_steps], factors[schedule.warmup_steps :]
    assert warm == sorted(warm) and all(a > b - 1e-12 for a, b in pairwise(rest))
    if warm:
        assert warm[-1] == 1.0 and warm[0] == pytest.approx(1 / schedule.warmup_steps)
    assert factors[-1] == pytest.approx(1.0 if schedule.kind == "constant" else schedule.final)
    if schedule.kind == "cosine":
        assert rest[0] == pytest.approx(1.0)


def test_cosine_is_half_way_down_in_the_middle_and_flat_at_its_ends() -> None:
    schedule = Schedule("cosine", warmup_steps=100, final=0.1)
    assert schedule.factor(600, 1100) == pytest.approx(0.55)
    assert schedule.factor(101, 1100) == pytest.approx(1.0, abs=1e-4)
    assert schedule.factor(1099, 1100) == pytest.approx(0.1, abs=1e-4)


def test_no_decay_keeps_the_plateau_and_past_the_end_holds_the_last_rate() -> None:
    assert Schedule("wsd", warmup_steps=0, decay=0).factor(10, 10) == 1.0
    for kind in ("wsd", "cosine"):
        assert Schedule(kind, warmup_steps=2, final=0.3).factor(25, 20) == pytest.approx(0.3)


def test_a_run_shorter_than_its_warm_up_only_rises() -> None:
    schedule = Schedule("wsd", warmup_steps=100)
    assert [schedule.factor(step, 10) for step in range(10)] == [(step + 1) / 100 for step in range(10)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [({name: value}, name) for name in ("decay", "final", "drop_at", "drop_to") for value in (-0.1, 1.1)]
    + [({"warmup_steps": -1}, "warmup_steps")],
)
def test_bad_shares_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Schedule(**fields)
