"""Blocks are numbered within each row, and a row goes on to the next one when its block is full."""

from __future__ import annotations

import torch

from lit_llada.sampling.blocks import BlockProgress, advance, number_blocks, quota
from lit_llada.sampling.plan import Plan


def test_blocks_are_numbered_by_masks_or_by_place() -> None:
    fillable = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0], [0] * 10]).bool()
    by_masks = [[-1, 0, 0, -1, 0, -1, -1, -1, 1, 1], [-1] * 4 + [0] + [-1] * 5, [-1] * 10]
    by_place = [[-1, 0, 0, -1, 1, -1, -1, -1, 2, 2], [-1] * 4 + [0] + [-1] * 5, [-1] * 10]
    assert number_blocks(fillable, Plan(block_length=3)).tolist() == by_masks
    assert number_blocks(fillable, Plan(block_length=4, aligned=True)).tolist() == by_place
    assert number_blocks(fillable, Plan()).amax(1).tolist() == [0, 0, -1]


def test_a_row_goes_on_when_its_block_is_full_and_is_done_without_open_positions() -> None:
    open_ = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    block_of = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    plan = Plan(block_length=2, steps=4)
    first = advance(BlockProgress.start(torch.zeros(2, dtype=torch.int64)), open_, block_of, plan, 1)
    assert first.block[0] == 0 and first.masks[0] == 2 and first.steps[0] == 2
    assert first.fresh.tolist() == [True, True] and first.done.tolist() == [False, True]
    half = advance(first, torch.tensor([[0, 1, 1, 0], [0] * 4]).bool(), block_of, plan, 1)
    assert half.block[0] == 0 and not half.fresh[0]
    second = advance(half, torch.tensor([[0, 0, 1, 0], [0] * 4]).bool(), block_of, plan, 1)
    assert second.block[0] == 1 and second.masks[0] == 1 and second.fresh[0]


def test_the_first_steps_of_a_block_commit_the_remainder() -> None:
    step = torch.arange(3)
    before, now = quota(torch.full((3,), 8), torch.full((3,), 3), step)
    assert before.tolist() == [0, 3, 6] and now.tolist() == [3, 3, 2]
