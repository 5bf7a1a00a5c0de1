"""The head's cross-entropy, chunk by chunk: the logits of all positions never exist at once.

    z = x W' + b,    nll_i = logsumexp(z_i) - z_i[y_i],    d nll_i / d z_i = softmax(z_i) - onehot(y_i)

Where the weight of each nll in the loss is known beforehand, the gradients are made in the forward pass, while the
logits of a chunk are there: three matrix products a chunk. Where it is not, the backward pass makes them again: four.
Shapes: R positions, D width, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_llada.backbone.layers import widen

# Logits of a chunk, but never fewer than LEAST_POSITIONS times V. On a CPU 128 to 512 positions are about equally fast.
# On a GPU 512 MiB in float32: each chunk reads and writes the gradient of W once, which must be little beside its three
# products. The GPU's number is reasoned, not measured.
CHUNK_LOGITS = {"cpu": 2**20, "cuda": 2**27}
LEAST_POSITIONS = 256


def chunked_nll(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, fused: bool = False) -> Tensor:
    """The cross-entropy of ``x W' + b`` against ``targets``.

    Args:
        x: ``[R, D]``.
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
        targets: ``[R]`` ids.
        fused: compile softmax and its gradient into one kernel.

    Returns:
        nats ``[R]``, float32 or wider.
    """
    found: Tensor = _NLL.apply(x, weight, bias, targets, _working_dtype(x), fused)
    return found


def weighted_nll(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: Tensor, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """``sum_i scale_i nll_i``, with its gradients made at once if there is to be a backward pass.

    Between forward and backward pass the gradient of W is in memory.

    Args:
        x, weight, bias, targets, fused: see :func:`chunked_nll`.
        scale: ``[R]``; it gets no gradient.

    Returns:
        a scalar, and the nats ``[R]`` without a graph; float32 or wider.
    """
    if torch.is_grad_enabled():
        loss, found = _WeightedNLL.apply(x, weight, bias, targets, scale, _working_dtype(x), fused)
        return loss, found
    found = chunked_nll(x, weight, bias, targets, fused)
    return (found * scale.to(found.dtype)).sum(), found


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype, fused: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, targets)
        ctx.how = dtype, fused
        return _losses_and_gradients(x, weight, bias, targets, None, dtype, fused, (False, False, False))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, targets = ctx.saved_tensors
        dtype, fused = ctx.how
        needed = ctx.needs_input_grad[:3]
        _, *found = _losses_and_gradients(x, weight, bias, targets, grads[0], dtype, fused, needed)
        return *found, None, None, None


class _WeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        found, *grads = _losses_and_gradients(x, weight, bias, targets, scale, dtype, fused, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(found)
        return (found * scale.to(found.dtype)).sum(), found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for the gradient of W is as large as W. Autograd refuses a second backward pass, as it should.
        found = (None if grad is None else grad.mul_(grads[0]) for grad in ctx.saved_tensors)
        return *found, None, None, None, None


def _losses_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype,
    fused: bool,
    needed: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The nll ``[R]``, and those gradients of ``sum_i scale_i nll_i`` (after x, W and b) that are needed.

    Args:
        x, weight, bias, targets, fused: see :func:`chunked_nll`.
        scale: ``[R]``; None where no gradient is needed.
        dtype: the matrix products'. The gradient of W is added up in float32 or wider.
        needed: of x, of W, of b.
    """
    w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
    nll = torch.empty(len(x), dtype=widen(w[:0]).dtype, device=x.device)
    grad_x = torch.empty_like(x) if needed[0] else None
    grad_w = torch.zeros_like(weight, dtype=nll.dtype) if needed[1] else None
    grad_b = None if bias is None or not needed[2] else torch.zeros_like(bias, dtype=nll.dtype)
    softmax = _fused_softmax() if fused else nll_and_softmax
    size = max(CHUNK_LOGITS.get(x.device.type, 2**27) // len(weight), LEAST_POSITIONS)
    for chunk in (slice(begin, begin + size) for begin in range(0, len(x), size)):
        part, wanted = x[chunk].to(dtype), targets[chunk, None]
        if scale is None or not any(needed):
            nll[chunk] = F.cross_entropy(widen(F.linear(part, w, b)), targets[chunk], reduction="none")
            continue
        factor = scale[chunk].to(nll.dtype)
        nll[chunk], slopes = softmax(F.linear(part, w, b), wanted, factor, dtype)
        # p - 1 where the target is: from the nll, for a p close to 1 has few digits left.
        slopes.scatter_(1, wanted, (torch.expm1(-nll[chunk]) * factor).to(dtype)[:, None])
        if grad_x is not None:
            grad_x[chunk] = slopes @ w
        if grad_w is not None:
            _add_product(grad_w, slopes.T, part)
        if grad_b is not None:
            grad_b += slopes.sum(0, dtype=grad_b.dtype)
        del slopes  # before the next chunk's are made
    grad_w, grad_b = (None if g is None else g.to(weight.dtype) for g in (grad_w, grad_b))
    return nll, grad_x, grad_w, grad_b


def nll_and_softmax(logits: Tensor, targets: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nll ``[C]`` of targets ``[C, 1]``, and ``scale * softmax(logits)`` in ``dtype``, ``[C, V]``.

    It changes float32 logits in place.
    """
    z = widen(logits)
    right, most = z.gather(1, targets), z.amax(1, keepdim=True)
    z = z.sub_(most).exp_()
    total = z.sum(1, keepdim=True)
    return (total.log() + (most - right)).squeeze(1), z.mul_(scale[:, None] / total).to(dtype)


@functools.cache
def _fused_softmax() -> Callable[..., tuple[Tensor, Tensor]]:
    compiled: Any = torch.compile(nll_and_softmax, dynamic=True)
    return compiled


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, where total may be wider."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
