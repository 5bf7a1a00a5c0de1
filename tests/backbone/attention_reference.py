"""Attention by its definition, for tests: who may see whom, one pair at a time, and kernels of packed documents."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone import attention, packed
from lit_llada.backbone.attention import AttentionMask


def may_see(mask: AttentionMask, causal: bool, rows: int, length: int) -> Tensor:
    """``[B, T, T]`` by its definition, one pair at a time."""
    documents = torch.zeros(rows, length).tolist() if mask.documents is None else mask.documents.tolist()
    real = torch.ones(rows, length).tolist() if mask.padding is None else mask.padding.tolist()

    def sees(b: int, query: int, key: int) -> bool:
        return documents[b][query] == documents[b][key] and bool(real[b][key]) and (key <= query or not causal)

    at = range(length)
    return torch.tensor([[[sees(b, query, key) for key in at] for query in at] for b in range(rows)])


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """One query of one head at a time, over the keys that it may see, in float64; zero where there is none."""
    q, k, v = q.double(), k.double(), v.double()
    out, group = torch.zeros_like(q), q.shape[2] // k.shape[2]
    for b, i, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = allowed[b, i].nonzero().squeeze(1)
        if len(keys):
            p = (k[b, keys, head // group] @ q[b, i, head] / q.shape[-1] ** 0.5).softmax(-1)
            out[b, i, head] = p @ v[b, keys, head // group]
    return out


def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """What ``flash_attn_func`` promises."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool) -> Tensor:
    """What ``flash_attn_varlen_func`` promises: one document at a time."""
    assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k) and cu_q[0] == 0 and cu_q[-1] == len(q)
    lengths = cu_q.diff()
    assert lengths.max() <= max_q == max_k
    parts = zip(*(x.split(lengths.tolist()) for x in (q, k, v)), strict=True)
    return torch.cat([dense(*(x[None] for x in part), causal)[0] for part in parts])


def torch_varlen(*args: Any, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False) -> Tensor:
    """What ``varlen_attn`` of torch promises; with grouped heads only if that is said."""
    assert window_size in [(-1, -1), (-1, 0)]
    assert enable_gqa or args[0].shape[1] == args[1].shape[1]
    return varlen(*args, causal=window_size == (-1, 0))


def old_torch_varlen(*args: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """As in torch 2.11."""
    return torch_varlen(*args, window_size=window_size)


KERNELS = {
    "flash": partial(packed._call_flash, dense, varlen),
    "varlen": partial(packed._call_varlen, torch_varlen, True),
}


def use_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of ``flash`` and ``varlen`` in plain torch, wherever the test runs."""
    monkeypatch.setattr(attention, "packed_kernel", lambda backend, device: KERNELS[backend])
    monkeypatch.setattr(attention, "lacks", lambda *_: None)
