"""What follows a commit: tokens are taken back, a row ends, a row grows or shrinks.

Shapes: b rows that are not finished, L positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone.layers import widen
from lit_llada.objectives.noise import keyed_uniform
from lit_llada.sampling.canvas import Predict, Reason, State, View, id_tensor
from lit_llada.sampling.plan import Plan
from lit_llada.seeding import Stream
from lit_llada.text.specials import Specials

FEW, MANY = 0.3, 0.7  # rho-EOS: the share of masks that expect the end below which a row grows, above which it shrinks


def take_back(loose: Tensor, so_far: Tensor, left: Tensor, seeds: Tensor, step: int, most: float) -> Tensor:
    """ReMDM's cap rule (2503.00307): each committed token goes back with ``sigma = min(most, left / so_far)``.

    With n masks in the block, ``so_far`` = alpha_t n of them are committed now and all but ``left`` = (1 - alpha_s) n
    after the step; the caller commits as many more as go back, so the number of masks follows the same schedule.

    Args:
        loose: ``[b, L]`` bool, who may be taken back.
        so_far, left: ``[b]`` int64.
        seeds: ``[b]`` int64.
        step: number of the step.
        most: the cap.

    Returns:
        ``[b, L]`` bool, at most ``left`` in a row.
    """
    sigma = (left / so_far.clamp(min=1)).clamp(max=most)
    u = keyed_uniform(seeds[:, None], step, torch.arange(loose.shape[1], device=loose.device), Stream.BACK)
    u = u.masked_fill(~loose, 2.0)
    return (u < sigma[:, None]) & (u.argsort(1).argsort(1) < left[:, None])


def verify(
    predict: Predict, view: View, kept: Tensor, chance: Tensor, mask_id: int, bound: float
) -> tuple[Tensor, Tensor]:
    """Second thoughts on a parallel commit: is each token still likely when only it is masked again?

    The surest token of each row is not asked about, so that every step makes progress.

    Args:
        predict: view -> logits.
        view: its ``tokens`` are the canvas after the commit.
        kept: ``[b, L]`` bool, what was committed.
        chance: ``[b, L]`` the probability each token had.
        mask_id: the mask.
        bound: the least probability that stands.

    Returns:
        ``[b, L]`` bool, what goes back, and ``[b]`` int64, how many forwards it took.
    """
    surest = torch.where(kept, chance, -1.0).argmax(1)
    asked = kept.scatter(1, surest[:, None], False)
    row, position = asked.nonzero(as_tuple=True)
    if not len(row):
        return asked, asked.sum(1)
    copies = view.tokens[row].scatter(1, position[:, None], mask_id)
    flat = torch.arange(len(row), device=row.device) * copies.shape[1] + position
    asked_view = View(
        copies,
        None if view.real is None else view.real[row],
        flat,
        *(x[row] for x in (view.ids, view.given, view.window, view.fresh)),
    )
    logits = widen(predict(asked_view))
    token = view.tokens[row, position]
    p = logits.log_softmax(1).gather(1, token[:, None]).squeeze(1).exp()
    wrong = torch.zeros_like(asked)
    wrong[row, position] = p < bound
    return wrong, asked.sum(1)


def behind_the_end(written: Tensor, view: View, open_: Tensor, specials: Specials, plan: Plan) -> Tensor:
    """``[b, L]`` bool, what is open in rows whose full block holds an end token, with nothing given behind it."""
    if not plan.stop_at_eos:
        return torch.zeros_like(open_)
    ends = torch.isin(written, id_tensor(specials.ends, written.device)) & view.window
    last = torch.arange(written.shape[1], device=written.device) * view.window
    after = view.given & (torch.arange(written.shape[1], device=written.device) > last.amax(1, keepdim=True))
    over = ~(open_ & view.window).any(1) & ends.any(1) & ~after.any(1)
    return open_ & over[:, None]


def resize(
    state: State, ids: Tensor, guess: Tensor, looked: Tensor, given: Tensor, specials: Specials, plan: Plan
) -> State:
    """rho-EOS (2601.22527): rows whose masks hardly expect the end grow at their end, those that mostly do shrink.

    A row that ends with something given keeps its length, and so does one that has no mask left.

    Args:
        state: after the commit.
        ids: ``[b]`` the rows that took the step.
        guess, looked: ``[b, w]`` candidates, and where there are any.
        given: ``[B, L]`` bool.
        specials: who ends.
        plan: by how much, and how long at most.
    """
    ending = torch.isin(guess, id_tensor(specials.ends, guess.device)) & looked
    rho = ending.sum(1) / looked.sum(1).clamp(min=1)
    place = torch.arange(state.canvas.shape[1], device=state.canvas.device)
    end = torch.where(state.real, place, -1).amax(1) + 1  # [B]
    is_open = state.real & (state.canvas == specials.mask)
    solid = torch.where(state.real & ~is_open, place, -1).amax(1) + 1
    free = is_open.any(1) & ~given.gather(1, (end - 1)[:, None]).squeeze(1)
    change = torch.zeros_like(end)
    change[ids] = (rho < FEW).long() * plan.grow - (rho > MANY).long() * plan.grow
    change = torch.where(free, change, 0)
    change = torch.where((change > 0) & (end + change > plan.max_length), 0, change).maximum(solid - end)
    wider = max(int((end + change).max()) - state.canvas.shape[1], 0)

    def pad(x: Tensor) -> Tensor:
        return F.pad(x, (0, wider))

    place = torch.arange(state.canvas.shape[1] + wider, device=end.device)
    grown = (place >= end[:, None]) & (place < (end + change)[:, None])
    gone = (place < end[:, None]) & (place >= (end + change)[:, None])
    reason = pad(state.reason).masked_fill(grown, Reason.GROWN).masked_fill(gone, Reason.SHRUNK)
    canvas, predicted = (
        pad(x).masked_fill(grown, specials.mask).masked_fill(gone, specials.ends[0])
        for x in (state.canvas, state.predicted)
    )
    return state._replace(
        canvas=canvas,
        real=(pad(state.real) | grown) & ~gone,
        reason=reason,
        confidence=pad(state.confidence),
        entropy=pad(state.entropy),
        predicted=predicted,
        probability=pad(state.probability),
    )
