"""The cheapest plan that is good enough is found, said with its uncertainty, and taken up by the next command."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_llada.errors import UserError
from lit_llada.evaluation.calibration import (
    KnownAnswer,
    Point,
    choose_point,
    count_right,
    plans_to_try,
    read_known_answers,
)
from lit_llada.sampling.plan import PRESETS, Plan
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.sample import Sample


def point(right: int, forwards: float, bound: float | None = None) -> Point:
    plan = Plan() if bound is None else Plan(count="threshold", bound=bound)
    return Point(plan, right, 100, forwards, 10.0)


def test_the_fewest_forwards_within_the_tolerance() -> None:
    points = [point(80, 32), point(70, 4, 0.5), point(79, 8, 0.8), point(81, 12, 0.9)]
    assert choose_point(points, 1.0) is points[2]
    assert choose_point(points, 0.5) is points[3]
    assert choose_point(points, 10.0) is points[1]
    assert choose_point(points[:2], 1.0) is points[0]
    with pytest.raises(UserError, match="answers none of the 100 questions"):
        choose_point([point(0, 32), point(0, 1, 0.5)], 1.0)


def test_one_token_a_step_comes_first_and_keeps_the_rest_of_the_plan() -> None:
    one, *others = plans_to_try(PRESETS["fast"], ["threshold", "factor"], None)
    assert one == Plan(block_length=32, stop_at_eos=True)
    assert [(p.count, p.limit) for p in others] == [(c, b) for c in ("threshold", "factor") for b in RULES[c].sweep]
    assert [p.limit for p in plans_to_try(Plan(steps=4), ["frechet"], [0.5])[1:]] == [0.5]
    for counts, bounds in ((["threshold", "factor"], [0.5]), (["threshold"], []), ([], None)):
        with pytest.raises(UserError):
            plans_to_try(Plan(), counts, bounds)  # type: ignore[arg-type]


def test_an_answer_is_right_if_it_is_the_same_text() -> None:
    questions = [KnownAnswer("", "a b"), KnownAnswer("", " c\n"), KnownAnswer("", "d")]
    samples = [Sample("", text, len(text), True, 1, i + 1, 0.1) for i, text in enumerate((" a b", "c", "e"))]
    found = count_right(Plan(), questions, samples)
    assert (found.right, found.asked, found.forwards, found.tokens) == (2, 3, 2.0, 2.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "is empty"), ('{"prompt": "a"}', "record 1 has no text 'answer'; it needs prompt and answer")],
)
def test_wrong_questions(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=line):
        read_known_answers(str(tmp_path / "q.jsonl"))
