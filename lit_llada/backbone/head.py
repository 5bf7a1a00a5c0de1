"""How do hidden states meet a large vocabulary? Cross-entropy a few rows at a time: all logits never exist at once.

Like ``torch.nn.functional.linear_cross_entropy``, with three differences that its users here need: the nll of a row and
the gradient of the head are float32 also when the products are bfloat16; when the weights of the loss are known
beforehand the gradients are made in the forward pass (three products of R x D x V instead of four); and no buffer is
allocated twice, which on a CPU costs more than the arithmetic in it.

Shapes: R rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_LOGITS = 2**23  # logits that exist at once ...
CHUNK_ROWS = 128  # ... but never fewer rows than keep the matrix products efficient


class Weighted(NamedTuple):
    """Args:
    total: ``sum(weights * nll)``, a scalar; differentiable.
    nll: ``[R]`` nats; without a gradient.
    """

    total: Tensor
    nll: Tensor


def nll_of_rows(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Cross-entropy of ``x @ weight.T + bias`` against ``targets``, nats ``[R]``, float32 or wider, differentiable.

    Args:
        x: ``[R, D]``.
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        targets: ``[R]``.
    """
    return _Rows.apply(*_with_bias(x, weight, bias), targets, _product_dtype(x))


def weighted_nll(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor) -> Weighted:
    """The weighted sum of :func:`nll_of_rows`, a quarter cheaper; ``weights`` ``[R]`` are constants."""
    return Weighted(*_Sum.apply(*_with_bias(x, weight, bias), targets, weights, _product_dtype(x)))


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight, targets)
        ctx.dtype = dtype
        return _visit(x, weight, targets, None, dtype)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_visit(*ctx.saved_tensors, grads[0], ctx.dtype)[1:], None, None)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad)
        nll, *grads = _visit(x, weight, targets, weights if needed else None, dtype)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*(saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors), None, None, None)


def _visit(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The nll of all rows and, with ``weights``, the gradients of ``sum(weights * nll)`` for ``x`` and ``weight``."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    head, states = weight.to(dtype), x.to(dtype)
    step = min(max(CHUNK_ROWS, CHUNK_LOGITS // len(head)), max(len(x), 1))
    buffer = head.new_empty(step, len(head))
    nll = x.new_empty(len(x), dtype=wide)
    grad_x = x.new_empty(x.shape if weights is not None else 0, dtype=wide)
    grad_weight = _Accumulator(head, wide) if weights is not None else None
    for begin in range(0, len(x), step):
        rows = slice(begin, begin + step)
        part, target = states[rows], targets[rows, None]
        p = torch.mm(part, head.T, out=buffer[: len(part)])
        top, wanted = p.amax(-1, keepdim=True), p.gather(1, target)
        p.sub_(top).exp_()
        total = p.sum(-1, keepdim=True, dtype=wide)
        nll[rows] = (total.log() + top - wanted).squeeze(1)
        if grad_weight is not None:
            # softmax - onehot is p / total with ``total`` taken off at the target; the division, and the weight, wait
            # until the vocabulary is summed over, where they cost next to nothing.
            p.scatter_(1, target, (p.gather(1, target) - total).to(dtype))
            scale = weights[rows, None].to(wide) / total
            torch.mul(p @ head, scale, out=grad_x[rows])
            grad_weight.add(p, (part * scale).to(dtype))
    return nll, grad_x, x.new_empty(0) if grad_weight is None else grad_weight.sum


class _Accumulator:
    """A sum of products ``p.T @ x`` ``[V, D]``, kept in float32."""

    def __init__(self, head: Tensor, wide: torch.dtype) -> None:
        self.sum = torch.zeros_like(head, dtype=wide)
        self.narrow = None if head.dtype == wide else torch.empty_like(head)
        self.wide = None if head.dtype == wide else torch.empty_like(self.sum)

    def add(self, p: Tensor, x: Tensor) -> None:
        if self.narrow is None or self.wide is None:
            self.sum.addmm_(p.T, x)
        else:  # adding bfloat16 to float32 directly is ten times slower on a CPU
            self.sum += self.wide.copy_(torch.mm(p.T, x, out=self.narrow))


def _with_bias(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bias as one more column of the head, met by a one in every row."""
    if bias is None:
        return x, weight
    return torch.cat((x, torch.ones_like(x[:, :1])), dim=1), torch.cat((weight, bias[:, None]), dim=1)


def _product_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
