"""How does a canvas of masks become text? One loop: predict the open positions, commit a few of them, again.

LLaDA's sampler (2502.09992, section 2.4) and its descendants differ in small policies only, see :class:`Plan`; the loop
is the same. Every row has its own block, its own noise and its own end: a batch gives what its rows give alone. (Noise
is keyed by position, so that holds for rows padded at the right. And a row of nothing but masks has all positions tied:
there rounding decides who is first.)

Shapes: B rows, L positions, R rows of logits, V vocabulary; b <= B rows that are not finished yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Denoiser, Reason, State, View
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.revision import behind_the_end, resize, take_back, verify
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.selection import find_candidates, select
from lit_llada.text.specials import Specials

Predict = Callable[[View], Tensor]
NOWHERE = 2**30  # the block of a row that has no open position left


class Progress(NamedTuple):
    """Where each row is, each ``[B]``: its block, the step within it, the masks and steps that the block began with."""

    block: Tensor
    step: Tensor
    masks: Tensor
    steps: Tensor
    fresh: Tensor  # its block begins now
    done: Tensor


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    canvas: Tensor,
    specials: Specials,
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    *,
    real: Tensor | None = None,
    seeds: Tensor | None = None,
    details: bool = False,
) -> Iterator[State]:
    """Fill every mask of the canvas, wherever it stands: continuation, free generation and infilling are one thing.

    Args:
        denoiser: the mask predictor, in eval mode; or a wrapper of one: guided, cached.
        canvas: ``[B, L]`` int64; what is not the mask is given and stays.
        specials: the mask's id, the ends, and who is never produced.
        plan: the policies.
        real: ``[B, L]`` bool, False where a row is padded: nobody sees or fills it. None when no row is.
        seeds: ``[B]`` int64, the noise of each row; None for 0, 1, ...
        details: compute entropies even where no policy needs them.

    A step waits for the device once, in :func:`look`: how many positions and rows it computes is known there only. One
    more wait each belongs to ``remask: verify`` (how many tokens are asked about) and ``length: rho_eos`` (how wide the
    canvas becomes). A cache adds three, and more in steps that begin the blocks of only some rows. The net's own waits
    (an attention backend that packs padded rows, experts in float64) and the caller's come on top.

    Yields:
        States, the given canvas first. ``canvas`` and ``real`` grow wider where ``plan.length`` lets rows grow.

    Raises:
        UserError: fewer steps than blocks, or a policy that this denoiser or these specials cannot serve.
    """
    _refuse(denoiser, specials, plan)
    predict: Predict = getattr(denoiser, "at", None) or partial(_ask, denoiser)
    details = details or plan.order == "entropy" or (plan.count in RULES and RULES[plan.count].needs_entropy)
    real = torch.ones_like(canvas, dtype=torch.bool) if real is None else real
    seeds = torch.arange(len(canvas), device=canvas.device) if seeds is None else seeds.to(canvas.device)
    zero, given = torch.zeros(canvas.shape, device=canvas.device), (canvas != specials.mask) & real
    _refuse_few_steps(real & ~given, plan)
    state = State(0, canvas, real, zero.byte(), given.float(), zero, canvas, zero, torch.zeros_like(seeds))
    none = torch.zeros_like(seeds)
    at = Progress(none - 1, none, none, none, none.bool(), none.bool())
    while True:
        yield state
        given = _widen(given, state.canvas.shape[1])
        block_of = number_blocks(state.real & ~given, plan)
        open_ = state.real & (state.canvas == specials.mask)
        at = advance(at, open_, block_of, plan, getattr(denoiser, "least_forwards", 1))
        view = look(state, at, block_of, given, specials, plan)
        if view is None:
            return
        state, at = take_step(predict, view, state, at, given, seeds, specials, plan, details)


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


def advance(at: Progress, open_: Tensor, block_of: Tensor, plan: Plan, least: int) -> Progress:
    """Move every row whose block is full to its next block, and end those that have none.

    Args:
        at: where the rows were.
        open_: ``[B, L]`` bool, what is still masked.
        block_of: from :func:`number_blocks`.
        plan: steps.
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
    return Progress(block, step, masks, steps, moved, done)


def look(state: State, at: Progress, block_of: Tensor, given: Tensor, specials: Specials, plan: Plan) -> View | None:
    """What the next step asks the net; None when all rows are done. All that the host has to know comes in one copy."""
    alive = ~at.done
    real, window = state.real & alive[:, None], block_of == at.block[:, None]
    wanted = real & (state.canvas == specials.mask)
    if plan.length != "rho_eos":
        wanted = wanted & window
    end = (real.any(0) * torch.arange(1, real.shape[1] + 1, device=real.device)).amax()
    count, width, asked, total = torch.stack((alive.sum(), end, wanted.sum(), real.sum())).tolist()
    if not count:
        return None
    ids = _places(alive, count)
    tokens, real, wanted, known, window = (x[ids, :width] for x in (state.canvas, real, wanted, given, window))
    padding = None if total == count * width else real
    return View(tokens, padding, _places(wanted.flatten(), asked), ids, known, window, at.fresh[ids])


def take_step(
    predict: Predict,
    view: View,
    state: State,
    at: Progress,
    given: Tensor,
    seeds: Tensor,
    specials: Specials,
    plan: Plan,
    details: bool,
) -> tuple[State, Progress]:
    """One step of every row that is not done: look, commit, take back, end."""
    tokens, real, rows, ids, _, window, _ = view
    open_ = tokens == specials.mask if real is None else real & (tokens == specials.mask)
    active = open_ & window
    found = find_candidates(predict(view), view, (seeds[ids], state.step), plan, specials, details)

    so_far, share = quota(*(x[ids] for x in (at.masks, at.steps, at.step)))
    back = torch.zeros_like(active)
    if plan.remask == "remdm":
        loose, left = window & ~open_, at.masks[ids] - so_far - share
        back = take_back(loose, so_far, left, seeds[ids], state.step, plan.doubt)
    keep, forced = select(plan, found, rows, active, share + back.sum(1))
    guess, chance, spread = (grid(active.shape, rows, x) for x in (found.token, found.probability, found.entropy))
    written, forwards = torch.where(keep, guess, tokens), torch.ones_like(ids)
    if plan.remask == "verify":
        wrong, asked = verify(predict, view._replace(tokens=written), keep, chance, specials.mask, plan.doubt)
        back, forwards = back | wrong, forwards + asked
    written = written.masked_fill(back, specials.mask)
    behind = behind_the_end(written, view, open_ & (written == specials.mask), specials, plan)
    written = torch.where(behind, specials.ends[0] if specials.ends else 0, written)
    reason = (keep * int(Reason.SELECTED) + forced.int()).masked_fill(back, Reason.REMASKED)
    reason = reason.masked_fill(behind, Reason.ENDED).byte()

    live = slice(None, tokens.shape[1])
    keep = keep & ~back
    confidence = torch.where(keep, chance.float(), state.confidence[ids, live]).masked_fill(back, 0.0)
    entropy = torch.where(keep, spread.float(), state.entropy[ids, live]).masked_fill(back, 0.0)
    looked = grid(active.shape, rows, torch.ones_like(rows)).bool()
    new = State(
        state.step + 1,
        _put(state.canvas, ids, written),
        state.real,
        _put(torch.zeros_like(state.reason), ids, reason),
        _put(state.confidence, ids, confidence),
        _put(state.entropy, ids, entropy),
        _put(state.canvas, ids, torch.where(looked, guess, tokens)),
        _put(torch.zeros_like(state.confidence), ids, chance.float()),
        state.forwards.index_add(0, ids, forwards),
    )
    at = at._replace(step=at.step + 1)
    if plan.length == "rho_eos":
        new = resize(new, ids, guess, looked, given, specials, plan)
    return new, at


def quota(masks: Tensor, steps: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The published even share: of ``masks`` tokens in ``steps`` steps, the first ``masks % steps`` get one more.

    Args:
        masks, steps, step: int64 of one shape; ``step`` counts from 0.

    Returns:
        What went before this step, and what goes in it.
    """
    steps = steps.clamp(min=1)
    least, extra = masks // steps, masks % steps
    return step * least + step.minimum(extra), least + (step < extra)


def _ask(denoiser: Denoiser, view: View) -> Tensor:
    """The logits of a plain denoiser, which needs to know the canvas and its padding only."""
    return denoiser(view.tokens, None if view.real is None else AttentionMask(padding=view.real), view.rows)


def _refuse(denoiser: Denoiser, specials: Specials, plan: Plan) -> None:
    if (plan.stop_at_eos or plan.eos != "free" or plan.length == "rho_eos") and not specials.ends:
        raise UserError("sampling: a rule for the end of text needs to know its token; give specials.eos")
    if getattr(denoiser, "cached", False) and (plan.remask == "verify" or plan.length == "rho_eos"):
        raise UserError("sampling: a cache goes neither with remask verify nor with length rho_eos; leave one out")


def _refuse_few_steps(fillable: Tensor, plan: Plan) -> None:
    if plan.steps is not None and (most := int(number_blocks(fillable, plan).max()) + 1) > plan.steps:
        raise UserError(f"sampling: {plan.steps} steps are too few for {most} blocks; each needs at least one")


def _places(where: Tensor, count: int) -> Tensor:
    """``[count]`` int64, where a flat ``where`` is True, ascending: ``nonzero`` without its wait, as count is known."""
    return where.long().argsort(descending=True, stable=True)[:count]


def grid(shape: torch.Size, rows: Tensor, values: Tensor) -> Tensor:
    """``[R]`` values at flat positions of a ``[b, L]`` tensor of zeros."""
    return values.new_zeros(shape.numel()).index_copy(0, rows, values).view(shape)


def _put(whole: Tensor, ids: Tensor, part: Tensor) -> Tensor:
    """``whole`` with ``part [b, w]`` in the first w columns of the rows ``ids``."""
    whole = whole.clone(memory_format=torch.contiguous_format)
    whole[ids, : part.shape[1]] = part
    return whole


def _widen(given: Tensor, width: int) -> Tensor:
    return F.pad(given, (0, width - given.shape[1])) if width > given.shape[1] else given
