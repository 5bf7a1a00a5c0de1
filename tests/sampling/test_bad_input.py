"""What a user can get wrong: one line for each, and it names the thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.errors import UserError
from lit_llada.sampling.canvas import State, View, lay_out, read_answers
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import PRESETS, Plan, preset
from lit_llada.sampling.predictor import Predictor
from lit_llada.text.specials import Specials

MASK, EOS = 8, 7
SPECIALS = Specials(MASK, EOS)


def refused(words: str, call: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=words) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "prompts", "new_tokens", "options"),
    [
        ("prompt 2 is empty", [[1], []], 4, {}),
        ("prompt 1 contains the mask token .id 8.", [[1, MASK]], 4, {}),
        ("prompt 2: 0 new tokens", [[1], [2]], [4, 0], {}),
        ("prompt 1: -1 new tokens", [[1]], -1, {}),
        ("block_length 3 does not divide the 4 new tokens of prompt 2", [[1], [2]], [3, 4], {"block_length": 3}),
        ("prompt 2: 3 tokens and 4 new ones exceed the context of 6", [[1], [2] * 3], 4, {"context": 6}),
    ],
)
def test_canvas(words: str, prompts: Any, new_tokens: Any, options: dict[str, int]) -> None:
    refused(words, lay_out, prompts, new_tokens, SPECIALS, **options)


def test_a_canvas_that_just_fits() -> None:
    canvas, real = lay_out([[1], [2, 3, 4]], [4, 2], SPECIALS, block_length=2, context=5)
    assert canvas.tolist() == [[1, 8, 8, 8, 8], [2, 3, 4, 8, 8]] and real.all()
    canvas, real = lay_out([[1], [2, 3, 4]], [1, 2], SPECIALS)
    assert canvas.tolist() == [[1, 8, 7, 7, 7], [2, 3, 4, 8, 8]] and canvas.dtype == torch.int64
    assert real.tolist() == [[True, True, False, False, False], [True] * 5]
    assert lay_out([[1], [2, 3]], 1, Specials(MASK))[0].tolist() == [[1, 8, 0], [2, 3, 8]]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("order is 'likely'; it is one of low_confidence, random, margin", {"order": "likely"}),
        ("count is 'all'; it is one of quota, threshold", {"count": "all"}),
        ("remask is 'wino'; it is one of none, remdm, verify", {"remask": "wino"}),
        ("eos is 'late'; it is one of free, last, never", {"eos": "late"}),
        ("length is 'auto'; it is one of fixed, rho_eos", {"length": "auto"}),
        ("steps is 0; it must be at least 1", {"steps": 0}),
        ("block_length is 0; it must be at least 1", {"block_length": 0}),
        ("temperature is -0.1; it must be at least 0", {"temperature": -0.1}),
        ("temperature is nan", {"temperature": float("nan")}),
        ("bound is -1; it must be at least 0", {"bound": -1, "count": "factor"}),
        ("remask_bound is 1.5; it must be in 0..1", {"remask_bound": 1.5, "remask": "remdm"}),
        ("remask_bound is -0.5; it must be in 0..1", {"remask_bound": -0.5, "remask": "remdm"}),
        ("grow is 0; it must be at least 1", {"grow": 0}),
        ("remask remdm needs count quota, not threshold", {"remask": "remdm", "count": "threshold"}),
        ("length rho_eos needs a count that adapts", {"length": "rho_eos"}),
        ("count factor decides the number of steps by itself", {"count": "factor", "steps": 4}),
        ("aligned needs a block_length", {"aligned": True}),
    ],
)
def test_plan(words: str, options: dict[str, Any]) -> None:
    refused(words, Plan, **options)
    refused(words, preset, "official", **options)


def test_preset() -> None:
    refused(f"unknown preset 'faster'; there are {', '.join(PRESETS)}", preset, "faster")


class Nobody(Predictor):
    """A predictor that must not be asked."""

    def __call__(self, _: View) -> torch.Tensor:
        raise AssertionError("asked before the input was checked")


class Cached(Nobody):
    cached = True


@pytest.mark.parametrize(
    "options",
    [{"stop_at_eos": True}, {"eos": "last"}, {"eos": "never"}, {"length": "rho_eos", "count": "threshold"}],
    ids=str,
)
def test_rules_about_an_end_that_is_not_known(options: dict[str, Any]) -> None:
    canvas = torch.full((1, 4), MASK)
    refused("give specials.eos", lambda: list(generate(Nobody(), canvas, Specials(MASK), Plan(**options))))


@pytest.mark.parametrize(
    "options", [{"remask": "verify"}, {"length": "rho_eos", "count": "threshold"}], ids=["verify", "rho_eos"]
)
def test_what_a_cache_cannot_serve(options: dict[str, Any]) -> None:
    canvas = torch.full((1, 4), MASK)
    refused("a cache goes neither with", lambda: list(generate(Cached(), canvas, SPECIALS, Plan(**options))))


@pytest.mark.parametrize("official", [False, True])
def test_fewer_steps_than_blocks(official: bool) -> None:
    canvas, real = lay_out([[1], [2, 2]], [2, 6], SPECIALS)
    plan = Plan(steps=2, block_length=2, official=official)
    refused("2 steps are too few for 3 blocks", lambda: list(generate(Nobody(), canvas, SPECIALS, plan, real=real)))


def test_answers_are_read_to_their_first_end() -> None:
    canvas = torch.tensor([[1, 2, 3, EOS, 4], [1, 6, 5, 3, EOS], [5, 5, 2, 2, EOS]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    zero = torch.zeros(canvas.shape)
    state = State(1, canvas, real, zero.byte(), zero, zero, canvas, zero, torch.zeros(3, dtype=torch.int64))
    answers = read_answers(state, [[1], [1], [5, 5]], Specials(MASK, EOS, 6))
    assert answers == [[2, 3], [], [2, 2]]
