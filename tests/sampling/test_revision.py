"""What follows a commit: tokens are taken back within a cap, asked about again, and rows end."""

from __future__ import annotations

from typing import Any

import torch

from lit_llada.sampling.canvas import View
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.predictor import Plain
from lit_llada.sampling.revision import behind_the_end, take_back, verify
from lit_llada.text.specials import Specials

MASK, EOS = 8, 7
SPECIALS = Specials(MASK, EOS)


def view_of(tokens: list[list[int]], window: list[list[int]], given: list[list[int]]) -> View:
    rows, yes = len(tokens), torch.ones(len(tokens), dtype=torch.bool)
    return View(
        torch.tensor(tokens), None, torch.zeros(0).long(), torch.arange(rows), torch.tensor(given).bool(),
        torch.tensor(window).bool(), yes,
    )  # fmt: skip


def test_tokens_are_taken_back_as_often_as_the_cap_says_and_never_more_than_are_left() -> None:
    rows = 4000
    loose = torch.tensor([[True, True, True, True, False]]).expand(rows, -1)
    four, seeds = torch.full((rows,), 4), torch.arange(rows)
    back = take_back(loose, four, torch.full((rows,), 100), seeds, 3, 0.3)
    assert not back[:, 4].any() and abs(float(back[:, :4].double().mean()) - 0.3) < 0.02
    assert int(take_back(loose, four, torch.full((rows,), 1), seeds, 3, 1.0).sum(1).max()) == 1
    assert not take_back(loose, four, torch.zeros(rows).long(), seeds, 3, 1.0).any()


def test_an_unlikely_token_of_a_commit_goes_back_and_the_surest_is_not_asked_about(Table: Any) -> None:
    table = Table(9)
    tokens = [[1, 2, 3, 4]]
    kept = torch.tensor([[False, True, True, True]])
    chance = torch.tensor([[0.0, 0.9, 0.5, 0.4]])
    alone = [table.logits((1, 2, MASK, 4))[2], table.logits((1, 2, 3, MASK))[3]]
    p3, p4 = (float(logits.softmax(0)[token]) for logits, token in zip(alone, (3, 4), strict=True))
    view = view_of(tokens, [[0, 1, 1, 1]], [[1, 0, 0, 0]])
    wrong, forwards = verify(Plain(table), view, kept, chance, MASK, (p3 + p4) / 2)
    assert wrong.tolist() == [[False, False, p3 < p4, p4 < p3]] and forwards.tolist() == [2]


def test_what_is_open_behind_the_end_is_filled_once_the_block_is_full() -> None:
    plan, given = Plan(block_length=2, stop_at_eos=True), [[1, 0, 0, 0, 0]] * 3
    written = torch.tensor([[1, EOS, 2, MASK, MASK], [1, EOS, MASK, MASK, MASK], [1, 2, 2, MASK, MASK]])
    view = view_of(written.tolist(), [[0, 1, 1, 0, 0]] * 3, given)
    open_ = written == MASK
    assert behind_the_end(written, view, open_, SPECIALS, plan).int().tolist() == [[0, 0, 0, 1, 1], [0] * 5, [0] * 5]
    assert not behind_the_end(written, view, open_, SPECIALS, Plan(block_length=2)).any()
    kept = view_of(written.tolist(), [[0, 1, 1, 0, 0]] * 3, [[1, 0, 0, 0, 1]] * 3)  # something given stands behind
    assert not behind_the_end(written, kept, open_, SPECIALS, plan).any()
