"""Attention: one description of who sees whom, and five backends that compute the same function of it.

============ ================================================ ==========================================
eager        the definition, written out                      anywhere; the fastest on a CPU when short
sdpa         torch's fused function, masks as ``[B, T, T]``   anywhere
flash        FlashAttention-3 or -2, documents packed         GPU, half precision, package flash-attn
varlen       torch's own FlashAttention, documents packed     GPU, half precision
flex         a compiled kernel for the mask at hand           GPU (on a CPU for tests only)
============ ================================================ ==========================================

Shapes: B batch, T tokens, H query heads, K key/value heads, h width of a head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone.kv_cache import KVView
from lit_llada.backbone.packed import flash_layout, lacks, packed_kernel
from lit_llada.errors import UserError

Backend = Literal["auto", "sdpa", "eager", "flash", "varlen", "flex"]

# Up to this length softmax(QK')V written out beats the fused CPU kernel (2.8x in bfloat16 at 256 tokens); but not in
# float32, where the kernel is 1.3 to 3 times as fast from 32 tokens on.
EAGER_LENGTH = 512


class AttentionMask(NamedTuple):
    """What a row may see; nothing given means full bidirectional attention.

    Args:
        documents: ``[B, T]`` integers; positions see each other when their numbers are equal. A document is contiguous.
        padding: ``[B, T]`` booleans, True for real tokens; the others are seen by nobody.
        layout: what :func:`flash_layout` makes of both, for a mask that several forwards use. None makes it in each
            forward whose backend is flash or varlen, and each then waits for the device.
    """

    documents: Tensor | None = None
    padding: Tensor | None = None
    layout: tuple[Tensor | None, Tensor] | None = None


class AttentionPlan(NamedTuple):
    """An :class:`AttentionMask` in the form that one backend reads; made once, used by every block."""

    backend: str
    causal: bool
    allowed: Tensor | None = None  # sdpa, eager: [B or 1, 1, T, T], True where the query (row) sees the key (column)
    kernel: Callable[..., Tensor] | None = None  # flash, varlen, flex: found once, so that a compiled block need not
    real: Tensor | None = None  # flash, varlen: flat positions b*T + i of the real tokens; None where all are
    cu_seqlens: Tensor | None = None  # flash, varlen: int32 offsets of the documents among them, from 0 to their number
    block_mask: Any = None  # flex
    cache: KVView | None = None  # keys and values of whole rows, of which these tokens may be a part

    def at(self, layer: int) -> AttentionPlan:
        """The same for one block: only a cache makes a difference between them."""
        return self if self.cache is None else self._replace(cache=self.cache._replace(layer=layer))


def plan_attention(
    mask: AttentionMask | None,
    causal: bool,
    shape: torch.Size,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    cache: KVView | None = None,
) -> AttentionPlan:
    """Turn the description into what ``backend`` needs.

    Args:
        mask: who sees whom; None for everybody.
        causal: only the past is seen (the autoregressive baseline).
        shape: ``(B, T)``.
        width: h.
        dtype: what queries and keys will be computed in.
        device: where.
        backend: ``auto`` picks by device, dtype, width and length. ``varlen`` without documents and padding is
            ``sdpa``, which then has the same kernel.
        cache: where keys and values of whole rows are kept; ``mask`` is about these.

    Raises:
        UserError: ``flash`` or ``varlen`` where it cannot run; a cache where not everything that is real is seen.
    """
    documents, padding, layout = mask or AttentionMask()
    if cache is not None:
        if causal or documents is not None:
            raise UserError("attention with a key/value cache is full attention; leave out causal and documents")
        if cache.positions is not None:
            return _plan_part(padding, cache, device, backend)
        return plan_attention(mask, causal, shape, width, dtype, device, backend)._replace(cache=cache)
    if backend == "auto":
        backend = _choose(shape[1], width, dtype, device)
    elif backend in ("flash", "varlen") and (lacking := lacks(backend, width, dtype, device)):
        raise UserError(f"attention backend {backend!r} needs {lacking}; set attention: auto")
    masked = documents is not None or padding is not None
    if backend == "varlen" and not masked:
        backend = "sdpa"
    if backend in ("flash", "varlen"):
        real, cu_seqlens = (layout or flash_layout(documents, padding)) if masked else (None, None)
        kernel = packed_kernel(backend, device)
        return AttentionPlan(backend, causal, kernel=kernel, real=real, cu_seqlens=cu_seqlens)
    if backend == "flex":
        block_mask = _flex_block_mask(documents, padding, causal, shape, device)
        return AttentionPlan(backend, causal, kernel=_flex_kernel(device.type), block_mask=block_mask)
    return AttentionPlan(backend, causal, allowed=dense_mask(documents, padding, causal, shape[1], device))


def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """``softmax(q k' / sqrt(h) + mask) v``.

    Args:
        q: ``[B, T, H, h]``.
        k: ``[B, T, K, h]``; query heads ``g*H/K .. (g+1)*H/K - 1`` read key/value head g.
        v: ``[B, T, K, h]``.
        plan: from :func:`plan_attention`.

    Returns:
        ``[B, T, H, h]``.
    """
    if plan.cache is not None:
        k, v = plan.cache.update(k, v)
    if plan.backend in ("flash", "varlen"):
        return _packed(q, k, v, plan)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if plan.backend == "flex":
        assert plan.kernel is not None
        out = plan.kernel(q, k, v, block_mask=plan.block_mask, enable_gqa=gqa)
    elif plan.backend == "sdpa":
        causal = plan.causal and plan.allowed is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.allowed, is_causal=causal, enable_gqa=gqa)
    else:
        out = _eager(q, k, v, plan)
    return out.transpose(1, 2)


def dense_mask(
    documents: Tensor | None, padding: Tensor | None, causal: bool, length: int, device: torch.device
) -> Tensor | None:
    """``[B or 1, 1, T, T]``, True where the query sees the key; None when it sees everything (or all the past)."""
    if documents is None and padding is None:
        return None
    allowed = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if causal:
        allowed = allowed.tril()
    if documents is not None:
        allowed = allowed & (documents[:, :, None] == documents[:, None, :])
    if padding is not None:
        allowed = allowed & padding[:, None, :]
    return allowed[:, None]


def _plan_part(padding: Tensor | None, cache: KVView, device: torch.device, backend: Backend) -> AttentionPlan:
    """A part of each row against all of its keys; eager or sdpa, whatever the backend."""
    if backend not in ("sdpa", "eager"):
        backend = "eager" if device.type == "cpu" and cache.length <= EAGER_LENGTH else "sdpa"
    return AttentionPlan(backend, False, None if padding is None else padding[:, None, None, :], cache=cache)


def _choose(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Backend:
    if device.type == "cpu":
        return "eager" if length <= EAGER_LENGTH and dtype != torch.float32 else "sdpa"
    packed: tuple[Backend, ...] = ("flash", "varlen")
    return next((backend for backend in packed if not lacks(backend, width, dtype, device)), "sdpa")


def _eager(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-2, -1)
    allowed = plan.allowed
    if allowed is None and plan.causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        # The most negative finite value, so that a padded row without any key gives numbers and not NaN.
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v


def _packed(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """The documents of all rows one behind the other, padding left out, in one call of the kernel."""
    assert plan.kernel is not None
    length = q.shape[1]  # an upper bound of the longest document: the exact one would cost a wait for the device
    if plan.cu_seqlens is None:
        return plan.kernel(q, k, v, None, length, plan.causal)
    parts = [x.flatten(0, 1) for x in (q, k, v)]
    if plan.real is None:
        return plan.kernel(*parts, plan.cu_seqlens, length, plan.causal).view_as(q)
    parts = [x.index_select(0, plan.real) for x in parts]
    out = plan.kernel(*parts, plan.cu_seqlens, length, plan.causal)
    return torch.zeros_like(q).flatten(0, 1).index_copy(0, plan.real, out).view_as(q)


def _flex_block_mask(
    documents: Tensor | None, padding: Tensor | None, causal: bool, shape: torch.Size, device: torch.device
) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    if documents is None and padding is None and not causal:
        return None

    def visible(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key if causal else query >= 0
        if documents is not None:
            seen = seen & (documents[b, query] == documents[b, key])
        if padding is not None:
            seen = seen & padding[b, key]
        return seen

    rows, length = shape
    return create_block_mask(visible, rows, None, length, length, device=device)


@functools.cache
def _flex_kernel(device_type: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it materialises the scores; on a CPU that is what the tests want, on a GPU nobody does.
    kernel: Any = flex_attention
    return torch.compile(kernel, dynamic=False) if device_type == "cuda" else kernel
