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
CACHED_NUMBERS = 2**20  # 4 MiB in float32, which the caches of a CPU hold


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
        needed: whether the gradient of x, of W and of b is needed.
    """
    w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
    nll = torch.empty(len(x), dtype=widen(w[:0]).dtype, device=x.device)
    grad_x = torch.empty_like(x) if needed[0] else None
    # The first chunk writes the gradient of W, the others add to it: clearing it costs a CPU as much as adding does.
    start = torch.empty_like if len(x) else torch.zeros_like
    grad_w = start(weight, dtype=nll.dtype) if needed[1] else None
    grad_b = None if bias is None or not needed[2] else torch.zeros_like(bias, dtype=nll.dtype)
    size = max(CHUNK_LOGITS.get(x.device.type, 2**27) // len(weight), LEAST_POSITIONS)
    # The large buffers are made once: fresh pages for every chunk cost a CPU more than its products in bfloat16 do.
    buffer = w.new_empty(min(size, len(x)), len(w))
    product = torch.empty_like(w) if needed[1] and nll.dtype != dtype else None
    for begin in range(0, len(x), size):
        chunk = slice(begin, begin + size)
        part, wanted = x[chunk].to(dtype), targets[chunk, None]
        logits = torch.mm(part, w.T, out=buffer[: len(part)])
        if b is not None:
            logits += b
        if scale is None or not any(needed):
            nll[chunk] = _nll_in_cache(logits, targets[chunk])
            continue
        nll[chunk] = _fused_softmax()(logits, wanted) if fused else _softmax_in_cache(logits, wanted)
        slopes = logits
        # p - 1 where the target is: from the nll, for a p close to 1 has few digits left.
        slopes[torch.arange(len(part), device=x.device), targets[chunk]] = torch.expm1(-nll[chunk]).to(dtype)
        factor = scale[chunk, None].to(dtype)  # meets the narrow side of both products
        if grad_x is not None:
            grad_x[chunk] = (slopes @ w) * factor
        if grad_w is not None and product is None:
            torch.addmm(grad_w, slopes.T, part * factor, beta=float(begin > 0), out=grad_w)
        elif grad_w is not None:
            term = torch.mm(slopes.T, part * factor, out=product)
            if begin == 0:
                grad_w.copy_(term)
            else:
                _add_narrower(grad_w, term)
        if grad_b is not None:
            grad_b += (slopes.T @ factor).squeeze(1)
    grad_w, grad_b = (None if g is None else g.to(weight.dtype) for g in (grad_w, grad_b))
    return nll, grad_x, grad_w, grad_b


def nll_and_softmax_(logits: Tensor, targets: Tensor) -> Tensor:
    """The nll ``[C]`` of targets ``[C, 1]``; the logits ``[C, V]`` become their softmax in place."""
    z = widen(logits)
    right, most = z.gather(1, targets), z.amax(1, keepdim=True)
    p = z.softmax(1)
    logits.copy_(p)
    # logsumexp = most - log(p of the most likely), and that p is at least 1 / V: its log loses nothing.
    return (most - right - p.amax(1, keepdim=True).log()).squeeze(1)


def _nll_in_cache(logits: Tensor, targets: Tensor) -> Tensor:
    """The nll ``[C]`` alone; on a CPU a few positions at a time, whose logits in float32 then fit in the cache."""
    few = _at_once(logits)
    pairs = zip(logits.split(few), targets.split(few), strict=True)
    return torch.cat([F.cross_entropy(widen(part), wanted, reduction="none") for part, wanted in pairs])


def _softmax_in_cache(logits: Tensor, targets: Tensor) -> Tensor:
    """:func:`nll_and_softmax_`, on a CPU a few positions at a time: all its passes then find them in the cache."""
    few = _at_once(logits)
    return torch.cat([nll_and_softmax_(*each) for each in zip(logits.split(few), targets.split(few), strict=True)])


def _add_narrower(total: Tensor, term: Tensor) -> None:
    """``total += term`` where the term is bfloat16, in parts on a CPU, whose adding of two dtypes at once is slow."""
    few = _at_once(total)
    for to, by in zip(total.split(few), term.split(few), strict=True):
        to += widen(by) if total.device.type == "cpu" else by


def _at_once(x: Tensor) -> int:
    """How many rows of a matrix the cache of a CPU holds, at least 1; all of them on other devices."""
    return max(CACHED_NUMBERS // x.shape[1] if x.device.type == "cpu" else len(x), 1)


@functools.cache
def _fused_softmax() -> Callable[..., Tensor]:
    compiled: Any = torch.compile(nll_and_softmax_, dynamic=True)
    return compiled


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
