"""Attention over packed documents: how they are laid out, and the kernels that read that, flash and varlen.

Shapes: B batch, T tokens, H query heads, K key/value heads, h width of a head, N real tokens.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# (q, k, v, cu_seqlens, longest, causal) -> out: rows [B, T, heads, h] without cu_seqlens, else packed [N, heads, h].
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, int, bool], Tensor]


def flash_layout(documents: Tensor | None, padding: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """The variable-length layout: positions of the real tokens, and where each document begins among them.

    On a GPU this waits for the device: once for documents, twice with padding.

    Returns:
        ``index`` (int64 ``[N]``, flat positions ``b*T + i``; None without padding, when all tokens are real) and
        ``cu_seqlens`` (int32, from 0 to N).
    """
    given = documents if documents is not None else padding
    assert given is not None
    begins = torch.zeros_like(given, dtype=torch.bool)
    begins[:, :1] = True
    if documents is not None:
        begins[:, 1:] = documents.diff() != 0
    document = begins.flatten().cumsum(0)  # numbers the documents of the whole batch
    index = None if padding is None else padding.flatten().nonzero().squeeze(1)
    if index is not None:
        document = document[index]
    starts = F.pad(document.diff(), (1, 0), value=1).nonzero().squeeze(1)
    return index, F.pad(starts, (0, 1), value=len(document)).int()


def lacks(backend: str, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """What flash or varlen would need to run here; None if nothing is missing."""
    if device.type != "cuda":
        return f"a GPU, and this run is on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"a GPU of compute capability 8.0 or higher, and this one has {capability[0]}.{capability[1]}"
    if packed_kernel(backend, device) is None:
        return "the flash-attn package" if backend == "flash" else "a torch of 2.11 or newer, built with FlashAttention"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16, not {str(dtype).removeprefix('torch.')} (precision: bf16-mixed)"
    if width > 256 or width % 8:
        return f"heads whose width is a multiple of 8 and at most 256, not {width}"
    return None


def packed_kernel(backend: str, device: torch.device) -> Kernel | None:
    """The function behind ``flash`` or ``varlen`` on this device; None if it is not installed."""
    if backend == "varlen":
        return _varlen_kernel()
    return _flash_kernel(hopper=torch.cuda.get_device_capability(device)[0] == 9)


@functools.cache
def _flash_kernel(hopper: bool) -> Kernel | None:
    """FlashAttention-3 where it is installed, on the GPUs that it was made for; else 2; None without either."""
    for name in ("flash_attn_interface", "flash_attn") if hopper else ("flash_attn",):
        try:  # a half-installed package has a spec but does not import, or is empty, so try it
            module = importlib.import_module(name)
            return functools.partial(_call_flash, module.flash_attn_func, module.flash_attn_varlen_func)
        except (ImportError, AttributeError):
            continue
    return None


def _call_flash(
    dense: Callable[..., Any],
    varlen: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    longest: int,
    causal: bool,
) -> Tensor:
    if cu_seqlens is None:
        out = dense(q, k, v, causal=causal)
    else:
        out = varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=causal)
    return out[0] if isinstance(out, tuple) else out  # FlashAttention-3 gave log-sum-exps too until August 2025


@functools.cache
def _varlen_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    return functools.partial(_call_varlen, varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters)


def _call_varlen(
    varlen: Callable[..., Any],
    knows_gqa: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    causal: bool,
) -> Tensor:
    options, groups = {}, q.shape[1] // k.shape[1]
    if groups > 1 and knows_gqa:
        options["enable_gqa"] = True
    elif groups > 1:  # torch 2.11
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    window = (-1, 0) if causal else (-1, -1)
    return varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window, **options)
