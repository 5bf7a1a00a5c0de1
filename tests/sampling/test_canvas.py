"""Canvases of prompts: what fits, what is padded, what is refused, and what is read of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.errors import UserError
from lit_llada.sampling.canvas import State, lay_out, read_answers
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


def test_answers_are_read_to_their_first_end() -> None:
    canvas = torch.tensor([[1, 2, 3, EOS, 4], [1, 6, 5, 3, EOS], [5, 5, 2, 2, EOS]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    zero = torch.zeros(canvas.shape)
    state = State(1, canvas, real, zero.byte(), zero, zero, canvas, zero, torch.zeros(3, dtype=torch.int64))
    answers = read_answers(state, [[1], [1], [5, 5]], Specials(MASK, EOS, 6))
    assert answers == [[2, 3], [], [2, 2]]
