"""Which positions see which, and how is that computed? One mask description, four backends of one function.

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

from lit_llada.backbone.cache import KVView
from lit_llada.errors import UserError

Backend = Literal["auto", "sdpa", "eager", "flash", "flex"]

# Below this length softmax(QK')V written out beats the fused CPU kernel (2.8x in bfloat16 at 256 tokens).
EAGER_LENGTH = 512


class AttentionMask(NamedTuple):
    """What a row may see; nothing given means full bidirectional attention.

    Args:
        documents: ``[B, T]`` integers; positions see each other when their numbers are equal. A document is contiguous.
        padding: ``[B, T]`` booleans, True for real tokens; the others are seen by nobody.
    """

    documents: Tensor | None = None
    padding: Tensor | None = None


class AttentionPlan(NamedTuple):
    """An :class:`AttentionMask` in the form that one backend reads; made once, used by every block."""

    backend: str
    causal: bool
    allowed: Tensor | None = None  # sdpa, eager: [B or 1, 1, T, T], True where the query (row) sees the key (column)
    real: Tensor | None = None  # flash: flat positions b*T + i of the real tokens
    cu_seqlens: Tensor | None = None  # flash: int32 offsets of the documents among them, from 0 to their number
    block_mask: Any = None  # flex
    cache: KVView | None = None  # keys and values of whole rows, of which these tokens may be a part

    def at(self, layer: int) -> AttentionPlan:
        """The same for one block: only a cache makes a difference between them."""
        return self if self.cache is None else self._replace(cache=self.cache._replace(layer=layer))


def plan_attention(
    mask: AttentionMask | None,
    causal: bool,
    shape: torch.Size,
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
        dtype: what queries and keys will be computed in.
        device: where.
        backend: ``auto`` picks by device, dtype and length.
        cache: where keys and values of whole rows are kept; ``mask`` is about these.

    Raises:
        UserError: ``flash`` without the package, without a GPU or in another dtype than float16 / bfloat16; a cache
            where not everything that is real is seen.
    """
    documents, padding = mask or AttentionMask()
    if cache is not None:
        if causal or documents is not None:
            raise UserError("attention with a key/value cache is full attention; leave out causal and documents")
        if cache.positions is not None:
            return _plan_part(padding, cache, device, backend)
        return plan_attention(mask, causal, shape, dtype, device, backend)._replace(cache=cache)
    if backend == "auto":
        backend = _choose(shape[1], dtype, device)
    if backend == "flash":
        _require_flash(dtype, device)
        if documents is None and padding is None:
            return AttentionPlan(backend, causal)
        return AttentionPlan(backend, causal, None, *flash_layout(documents, padding))
    if backend == "flex":
        return AttentionPlan(backend, causal, block_mask=_flex_block_mask(documents, padding, causal, shape, device))
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
    if plan.backend == "flash":
        return _flash(q, k, v, plan)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if plan.backend == "flex":
        out = _flex_kernel(q.device.type)(q, k, v, block_mask=plan.block_mask, enable_gqa=gqa)
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


def flash_layout(documents: Tensor | None, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """The variable-length layout: positions of the real tokens, and where each document begins among them.

    Returns:
        ``index`` (int64 ``[N]``, flat positions ``b*T + i``) and ``cu_seqlens`` (int32, from 0 to N).
    """
    given = documents if documents is not None else padding
    assert given is not None
    documents = torch.zeros_like(given, dtype=torch.long) if documents is None else documents
    real = torch.ones_like(given, dtype=torch.bool) if padding is None else padding
    index = real.flatten().nonzero().squeeze(1)
    row = index // given.shape[1]
    document = documents.flatten()[index]
    begins = (row.diff() != 0) | (document.diff() != 0)
    starts = begins.nonzero().squeeze(1) + 1
    edge = starts.new_tensor([0]), starts.new_tensor([len(index)])
    return index, torch.cat((edge[0], starts, edge[1])).int()


def _plan_part(padding: Tensor | None, cache: KVView, device: torch.device, backend: Backend) -> AttentionPlan:
    """A part of each row against all of its keys; eager or sdpa, whatever the backend."""
    if backend not in ("sdpa", "eager"):
        backend = "eager" if device.type == "cpu" and cache.length <= EAGER_LENGTH else "sdpa"
    return AttentionPlan(backend, False, None if padding is None else padding[:, None, None, :], cache=cache)


def _choose(length: int, dtype: torch.dtype, device: torch.device) -> Literal["flash", "eager", "sdpa"]:
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _flash_functions() is not None:
        return "flash"
    return "eager" if device.type == "cpu" and length <= EAGER_LENGTH else "sdpa"


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


def _flash(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    functions = _flash_functions()
    assert functions is not None
    dense, varlen = functions
    if plan.real is None:
        return dense(q, k, v, causal=plan.causal)
    packed = (x.flatten(0, 1)[plan.real] for x in (q, k, v))
    length = q.shape[1]  # an upper bound of the longest document: the exact one would cost a wait for the device
    out = varlen(*packed, plan.cu_seqlens, plan.cu_seqlens, length, length, causal=plan.causal)
    return torch.zeros_like(q).flatten(0, 1).index_copy(0, plan.real, out).view_as(q)


@functools.cache
def _flash_functions() -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    try:  # a half-installed package has a spec but does not import, so try it
        from flash_attn import flash_attn_func, flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_func, flash_attn_varlen_func


def _require_flash(dtype: torch.dtype, device: torch.device) -> None:
    if _flash_functions() is None:
        raise UserError("attention backend 'flash' needs the flash-attn package; install it or set attention: auto")
    if device.type != "cuda":
        raise UserError(f"attention backend 'flash' needs a GPU, and this run is on {device.type}; set attention: auto")
    if dtype not in (torch.float16, torch.bfloat16):
        raise UserError(f"attention backend 'flash' needs float16 or bfloat16, not {dtype}; set precision: bf16-mixed")


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
