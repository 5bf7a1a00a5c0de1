"""A cache of keys and values: in most steps only a part of each canvas is computed again, at a price.

Most of a canvas stays as it is from step to step, but in a bidirectional net its keys and values do not: they depend on
every token. To keep them is an approximation that speeds up long canvases and costs accuracy, little on some tasks and
nearly everything on others. So it is off unless asked for, and a meter says how far the logits have drifted.

Shapes: B rows, L positions, R rows of logits, V vocabulary; b <= B rows that are not finished, n <= b of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone.kv_cache import KVCache, KVView
from lit_llada.backbone.layers import widen
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import View
from lit_llada.sampling.predictor import Predictor, padding_mask

Scheme = Literal["prefix", "dual", "vicinity"]


class Reading(NamedTuple):
    """How far cached logits were from those of the whole canvas: one step, or the summary of some.

    Attributes:
        step: which call it was, from 0; the last one in a summary.
        age: the most steps since the cache of one of the rows was filled; 0 when all are fresh.
        predictions: R, how many were compared.
        max_error: the largest difference of two logits.
        kl: mean of KL(whole || cached), nats.
        flips: share of predictions with another likeliest token.
    """

    step: int
    age: int
    predictions: int
    max_error: float
    kl: float
    flips: float


class Cached(Predictor):
    """A net that computes a whole row when its block begins, and afterwards only what is near the block.

    ========== ======================================================== ==============================
    scheme     computed again in every step                             keys and values kept of
    ========== ======================================================== ==============================
    prefix     from the block's first position to the end of the row    what is before the block
    dual       the block                                                what is before and behind it
    vicinity   the block and ``vicinity`` positions on both its sides   everything else
    ========== ======================================================== ==============================

    The first two are Fast-dLLM's (2505.22618), to the letter with ``Plan(official=True)``. Rows have windows and ages
    of their own: what a row gets does not depend on its batch mates. One run at a time; the next may be any other.

    Args:
        net: the mask predictor, in eval mode.
        scheme: see above.
        refresh_every: compute the whole row in every n-th step of a block too; 1 is no cache at all, None only at the
            beginning of a block.
        vicinity: see above.
        meter_every: in every n-th step compute the whole canvas as well and compare; 0 never does.

    Attributes:
        meter: what was compared, see :func:`summarize`.
        computed: positions that the net was given (without those for the meter).

    Raises:
        UserError: not a bidirectional backbone, or an option outside its range.
    """

    cached = True
    least_forwards = 2  # the published code asks once more even when a block was full after its first step

    def __init__(
        self,
        net: Backbone,
        scheme: Scheme,
        refresh_every: int | None = None,
        vicinity: int = 16,
        meter_every: int = 0,
    ) -> None:
        if not isinstance(net, Backbone):  # a guided one, say: it hides the prompt from half of its rows
            raise UserError(f"sampling: a cache needs the backbone itself, not {type(net).__name__}; leave one out")
        if net.config.causal:
            raise UserError("sampling: this cache is for bidirectional nets, and the net is causal; leave it out")
        if scheme not in get_args(Scheme):
            raise UserError(f"sampling: cache scheme is {scheme!r}; it is one of {', '.join(get_args(Scheme))}")
        if (refresh_every is not None and refresh_every < 1) or vicinity < 0 or meter_every < 0:
            raise UserError("sampling: refresh_every must be at least 1, vicinity and meter_every at least 0")
        self.net, self.scheme, self.refresh_every = net, scheme, refresh_every
        self.reach, self.meter_every = vicinity if scheme == "vicinity" else 0, meter_every
        self.meter: list[Reading] = []
        self.computed = self.calls = 0

    def __call__(self, view: View) -> Tensor:
        """Logits ``[R, V]``; the view's positions lie in its windows."""
        if view.fresh.all():  # a run begins, or might: nothing that was kept is needed
            self.store = KVCache(int(view.ids.max()) + 1, view.tokens.shape[1])
            self.age = torch.zeros(self.store.rows, dtype=torch.int64, device=view.ids.device)
        age = (self.age[view.ids] + 1).masked_fill(view.fresh, 0)
        if self.refresh_every is not None:
            age = age % self.refresh_every
        self.age[view.ids] = age
        logits = by_group(view, age == 0, self._ask)
        if self.meter_every and self.calls % self.meter_every == 0 and len(view.positions):
            whole = by_group(view, age == 0, self._ask_whole)
            self.meter.append(compare(whole, logits, self.calls, int(age.max())))
        self.calls += 1
        return logits

    def _ask(self, view: View, whole: bool) -> Tensor:
        """Some rows of a view, all of one kind."""
        length = view.tokens.shape[1]
        if whole:
            self.computed += view.tokens.numel()
            return self.net(view.tokens, padding_mask(view), view.positions, KVView(self.store, view.ids, length))
        near = find_near(view, self.scheme, self.reach)
        places = list_places(near)
        row, place = view.positions // length, view.positions % length
        positions = row * places.shape[1] + (near.cumsum(1) - 1)[row, place]
        self.computed += places.numel()
        cache = KVView(self.store, view.ids, length, places)
        return self.net(view.tokens.gather(1, places), padding_mask(view), positions, cache)

    def _ask_whole(self, view: View, whole: bool) -> Tensor:
        return self.net(view.tokens, padding_mask(view), view.positions)


def by_group(view: View, whole: Tensor, ask: Callable[[View, bool], Tensor]) -> Tensor:
    """Ask for the rows of two kinds apart, and put their logits together again.

    Args:
        view: all rows.
        whole: ``[b]`` bool, their kind.
        ask: view of rows of one kind, their kind -> logits.

    Returns:
        ``[R, V]``, in the order of ``view.positions``.
    """
    if len(kinds := set(whole.tolist())) == 1:
        return ask(view, kinds.pop())
    length = view.tokens.shape[1]
    parts, order = [], []
    for kind in (True, False):
        members = (whole == kind).nonzero().squeeze(1)
        number = torch.full_like(view.ids, -1).index_copy(0, members, torch.arange(len(members), device=members.device))
        row = number[view.positions // length]
        real = None if view.real is None else view.real[members]
        positions = (row * length + view.positions % length)[row >= 0]
        others = (x[members] for x in (view.ids, view.given, view.window, view.fresh))
        parts.append(ask(View(view.tokens[members], real, positions, *others), kind))
        order.append((row >= 0).nonzero().squeeze(1))
    return torch.cat(parts)[torch.cat(order).argsort()]


def find_near(view: View, scheme: Scheme, reach: int) -> Tensor:
    """``[n, L]`` bool, what is computed again: from the window on (``prefix``), or the window widened by ``reach``."""
    if scheme == "prefix":
        near = view.window.cummax(1).values
    else:
        near = F.max_pool1d(view.window[:, None].float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    return near if view.real is None else near & view.real


def list_places(where: Tensor) -> Tensor:
    """``[n, L]`` bool -> ``[n, w]`` int64, where each row is True, ascending; shorter rows repeat their last one.

    A token that is computed twice gives the same keys and values twice, so it needs no mask.
    """
    count = where.sum(1, keepdim=True)
    order = where.long().argsort(dim=1, descending=True, stable=True)
    return order.gather(1, torch.arange(int(count.max()), device=where.device).minimum(count - 1))


def compare(whole: Tensor, cached: Tensor, step: int = 0, age: int = 0) -> Reading:
    """A reading from the logits of the whole canvas and the cached ones, both ``[R, V]``, R > 0."""
    p, q = (widen(x).log_softmax(1) for x in (whole, cached))
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(1).mean()
    flips = (whole.argmax(1) != cached.argmax(1)).double().mean()
    return Reading(step, age, len(whole), float((whole - cached).abs().max()), float(kl), float(flips))


def summarize(meter: Sequence[Reading]) -> Reading | None:
    """All readings in one: the largest error, and the means over all predictions; None of an empty meter."""
    if not meter:
        return None
    total = sum(r.predictions for r in meter)
    kl, flips = (sum(r.predictions * getattr(r, name) for r in meter) / total for name in ("kl", "flips"))
    worst, age = max(r.max_error for r in meter), max(r.age for r in meter)
    return Reading(meter[-1].step, age, total, worst, kl, flips)


def agreement(ours: Tensor, theirs: Tensor, filled: Tensor) -> Tensor:
    """``[B]`` the share of a row's filled positions that two runs, with a cache and without one, filled alike.

    Args:
        ours, theirs: ``[B, L]`` the last canvas of each run.
        filled: ``[B, L]`` bool, the masks of the canvas they began with; at least one in each row.
    """
    return ((ours == theirs) & filled).sum(1) / filled.sum(1)
