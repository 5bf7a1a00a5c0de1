"""The sampler turns a canvas of masks into text: predict the open positions, commit a few of them, again.

LLaDA's sampler (2502.09992, section 2.4) and its descendants differ in small policies only, see :class:`Plan`; the loop
is the same. Every row has its own block, its own noise and its own end: a batch gives what its rows give alone. (Noise
is keyed by position, so that holds for rows padded at the right. And a row of nothing but masks has all positions tied:
there rounding decides who is first.)

Shapes: B rows, L positions, R rows of logits, V vocabulary; b <= B rows that are not finished yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.errors import UserError
from lit_llada.sampling.blocks import BlockProgress, advance, number_blocks, quota
from lit_llada.sampling.canvas import Denoiser, Reason, State, View
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.predictor import Predictor, predictor_of
from lit_llada.sampling.revision import behind_the_end, resize, take_back, verify
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.selection import find_candidates, select
from lit_llada.text.specials import Specials


class Run(NamedTuple):
    """What stays the same in all steps of a run.

    Attributes:
        predictor: who is asked.
        specials: the mask's id, the ends, and who is never produced.
        plan: the policies.
        seeds: ``[B]`` int64, seed of each row's noise.
        entropy: whether entropies are computed.
    """

    predictor: Predictor
    specials: Specials
    plan: Plan
    seeds: Tensor
    entropy: bool


@torch.no_grad()
def generate(
    net: Denoiser | Predictor,
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
        net: the mask predictor, in eval mode; or what asks it in another way: guided, cached.
        canvas: ``[B, L]`` int64; what is not the mask is given and stays.
        specials: the mask's id, the ends, and who is never produced.
        plan: the policies.
        real: ``[B, L]`` bool, False where a row is padded: nobody sees or fills it. None when no row is.
        seeds: ``[B]`` int64, seed of each row's noise; None for 0, 1, ...
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
    predictor = predictor_of(net)
    _refuse(predictor, specials, plan)
    real = torch.ones_like(canvas, dtype=torch.bool) if real is None else real
    seeds = torch.arange(len(canvas), device=canvas.device) if seeds is None else seeds.to(canvas.device)
    run = Run(predictor, specials, plan, seeds, details or _needs_entropy(plan))
    given = (canvas != specials.mask) & real
    _refuse_few_steps(real & ~given, plan)
    state, at = _given_state(canvas, real, given, seeds), BlockProgress.start(seeds)
    while True:
        yield state
        given = _widen(given, state.canvas.shape[1])
        block_of = number_blocks(state.real & ~given, plan)
        open_ = state.real & (state.canvas == specials.mask)
        at = advance(at, open_, block_of, plan, predictor.least_forwards)
        view = look(state, at, block_of, given, specials, plan)
        if view is None:
            return
        state = take_step(run, view, state, at, given)
        at = at._replace(step=at.step + 1)


def look(
    state: State, at: BlockProgress, block_of: Tensor, given: Tensor, specials: Specials, plan: Plan
) -> View | None:
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
    ids = _true_places(alive, count)
    tokens, real, wanted, known, window = (x[ids, :width] for x in (state.canvas, real, wanted, given, window))
    padding = None if total == count * width else real
    return View(tokens, padding, _true_places(wanted.flatten(), asked), ids, known, window, at.fresh[ids])


def take_step(run: Run, view: View, state: State, at: BlockProgress, given: Tensor) -> State:
    """One step of every row that is not done: look, commit, take back, end.

    Args:
        run: what stays the same.
        view: what the step asks, from :func:`look`.
        state: the canvas before the step.
        at: where the rows are.
        given: ``[B, L]`` bool, the positions that were given.
    """
    specials, plan = run.specials, run.plan
    tokens, real, positions, ids, _, window, _ = view
    open_ = tokens == specials.mask if real is None else real & (tokens == specials.mask)
    active = open_ & window
    found = find_candidates(run.predictor(view), view, (run.seeds[ids], state.step), plan, specials, run.entropy)

    so_far, share = quota(*(x[ids] for x in (at.masks, at.steps, at.step)))
    back = torch.zeros_like(active)
    if plan.remask == "remdm":
        loose, left = window & ~open_, at.masks[ids] - so_far - share
        back = take_back(loose, so_far, left, run.seeds[ids], state.step, plan.doubt)
    keep, forced = select(plan, found, positions, active, share + back.sum(1))
    candidates = found.token, found.probability, found.entropy
    guess, chance, spread = (grid(active.shape, positions, x) for x in candidates)
    written, forwards = torch.where(keep, guess, tokens), torch.ones_like(ids)
    if plan.remask == "verify":
        wrong, asked = verify(run.predictor, view._replace(tokens=written), keep, chance, specials.mask, plan.doubt)
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
    looked = grid(active.shape, positions, torch.ones_like(positions)).bool()
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
    if plan.length == "rho_eos":
        new = resize(new, ids, guess, looked, given, specials, plan)
    return new


def _refuse(predictor: Predictor, specials: Specials, plan: Plan) -> None:
    if (plan.stop_at_eos or plan.eos != "free" or plan.length == "rho_eos") and not specials.ends:
        raise UserError("sampling: a rule for the end of text needs to know its token; give specials.eos")
    if predictor.cached and (plan.remask == "verify" or plan.length == "rho_eos"):
        raise UserError("sampling: a cache goes neither with remask verify nor with length rho_eos; leave one out")


def _refuse_few_steps(fillable: Tensor, plan: Plan) -> None:
    if plan.steps is not None and (most := int(number_blocks(fillable, plan).max()) + 1) > plan.steps:
        raise UserError(f"sampling: {plan.steps} steps are too few for {most} blocks; each needs at least one")


def _needs_entropy(plan: Plan) -> bool:
    return plan.order == "entropy" or (plan.count in RULES and RULES[plan.count].needs_entropy)


def _given_state(canvas: Tensor, real: Tensor, given: Tensor, seeds: Tensor) -> State:
    zero = torch.zeros(canvas.shape, device=canvas.device)
    return State(0, canvas, real, zero.byte(), given.float(), zero, canvas, zero, torch.zeros_like(seeds))


def _true_places(where: Tensor, count: int) -> Tensor:
    """``[count]`` int64, where a flat ``where`` is True, ascending: ``nonzero`` without its wait, as count is known."""
    return where.long().argsort(descending=True, stable=True)[:count]


def grid(shape: torch.Size, positions: Tensor, values: Tensor) -> Tensor:
    """``[R]`` values at flat positions of a ``[b, L]`` tensor of zeros."""
    return values.new_zeros(shape.numel()).index_copy(0, positions, values).view(shape)


def _put(whole: Tensor, ids: Tensor, part: Tensor) -> Tensor:
    """``whole`` with ``part [b, w]`` in the first w columns of the rows ``ids``."""
    whole = whole.clone(memory_format=torch.contiguous_format)
    whole[ids, : part.shape[1]] = part
    return whole


def _widen(given: Tensor, width: int) -> Tensor:
    return F.pad(given, (0, width - given.shape[1])) if width > given.shape[1] else given
