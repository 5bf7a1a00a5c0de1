"""Blocks of a row: which position belongs to which, where each row is, and how many tokens a step commits.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.sampling.plan import Plan

NOWHERE = 2**30  # the block of a row that has no open position left


class BlockProgress(NamedTuple):
    """Where each row is, each ``[B]``.

    Attributes:
        block: number of the row's block.
        step: number of the step within the block.
        masks: masks that the block began with.
        steps: steps that it is to take.
        fresh: bool, whether the block begins now.
        done: bool, whether the row has no open position left.
    """

    block: Tensor
    step: Tensor
    masks: Tensor
    steps: Tensor
    fresh: Tensor
    done: Tensor

    @classmethod
    def start(cls, rows: Tensor) -> BlockProgress:
        """Before the first block of every row; ``rows`` ``[B]`` int64 says how many, and on which device."""
        none = torch.zeros_like(rows)
        return cls(none - 1, none, none, none, none.bool(), none.bool())


def number_blocks(fillable: Tensor, plan: Plan) -> Tensor:
    """``[B, L]`` int64, the block that each position belongs to, counted within its row; -1 for what is not filled."""
    width = plan.block_length or fillable.shape[1]
    if plan.aligned:
        raw = torch.arange(fillable.shape[1], device=fillable.device).expand(fillable.shape) // width
    else:
        raw = (fillable.cumsum(1) - 1) // width
    seen = torch.where(fillable, raw, -1)
    before = F.pad(seen.cummax(1).values[:, :-1], (1, 0), value=-1)
    first = fillable & (seen != before)  # aligned blocks may have no mask at all: only those with one count
    return torch.where(fillable, first.cumsum(1) - 1, -1)


def advance(at: BlockProgress, open_: Tensor, block_of: Tensor, plan: Plan, least: int) -> BlockProgress:
    """Move every row whose block is full to its next block, and end those that have none.

    Args:
        at: where the rows were.
        open_: ``[B, L]`` bool, what is still masked.
        block_of: from :func:`number_blocks`.
        plan: number of steps, and how they are counted.
        least: with ``plan.official``, the forwards that the published code spends on a block even if it is full.
    """
    here = torch.where(open_, block_of, NOWHERE).amin(1)
    idle = (here != at.block) & (at.step < at.steps) & plan.official
    moved, done = (here != at.block) & ~idle, (here == NOWHERE) & ~idle
    masks = (open_ & (block_of == here[:, None])).sum(1)
    steps = masks
    if plan.count != "quota":
        steps = torch.full_like(masks, least)
    elif plan.steps is not None:
        blocks = (block_of.amax(1) + 1).clamp(min=1)
        steps = plan.steps // blocks + (here < plan.steps % blocks)
        if not plan.official:  # a step that has nothing to reveal changes nothing, so the net need not run
            steps = steps.minimum(masks)
    new = here, torch.zeros_like(here), masks, steps
    block, step, masks, steps = (torch.where(moved, a, b) for a, b in zip(new, at[:4], strict=True))
    return BlockProgress(block, step, masks, steps, moved, done)


def quota(masks: Tensor, steps: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The published even share: of ``masks`` tokens in ``steps`` steps, the first ``masks % steps`` get one more.

    Args:
        masks: int64, masks that each block began with.
        steps: int64, steps of each block, of the same shape.
        step: int64, number of each block's step from 0, of the same shape.

    Returns:
        What went before this step, and what goes in it.
    """
    steps = steps.clamp(min=1)
    least, extra = masks // steps, masks % steps
    return step * least + step.minimum(extra), least + (step < extra)
