"""Guidance is its formula: the canvas against the same canvas with its prompt hidden, in one call of the net."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.sampling.canvas import View
from lit_llada.sampling.guided import Guided

MASK = 8


@pytest.fixture
def view() -> View:
    tokens = torch.tensor([[1, 2, MASK, MASK], [3, MASK, MASK, 0]])
    real = torch.tensor([[True] * 4, [True] * 3 + [False]])
    given = (tokens != MASK) & real
    return View(tokens, real, torch.tensor([2, 5]), torch.tensor([0, 1]), given, ~given & real, torch.ones(2).bool())


def test_logits_are_moved_away_from_those_without_the_prompt(Table: Any, view: View) -> None:
    table = Table(9)
    with_prompt = torch.stack((table.logits((1, 2, MASK, MASK))[2], table.logits((3, MASK, MASK))[1]))
    without = torch.stack((table.logits((MASK,) * 4)[2], table.logits((MASK,) * 3)[1]))
    found = Guided(table, 1.5, MASK)(view)
    torch.testing.assert_close(found, without + 2.5 * (with_prompt - without))
    assert table.shapes == [(4, 4)]  # both halves in one call


def test_a_scale_of_0_changes_nothing(Table: Any, view: View) -> None:
    table = Table(9)
    plain = torch.stack((table.logits((1, 2, MASK, MASK))[2], table.logits((3, MASK, MASK))[1]))
    torch.testing.assert_close(Guided(table, 0.0, MASK)(view), plain)
