"""The small parts of a block: RMSNorm, the rotary embedding, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def widen(x: Tensor) -> Tensor:
    """At least float32: where a sum or a rotation must not lose digits. float64 stays float64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class RMSNorm(nn.Module):
    """``weight * cast(x / rms(x))``: normalised in float32, cast back, and only then scaled (the published order)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(widen(x), (x.shape[-1],), None, self.eps)
        return normed.to(x.dtype) * self.weight


def rotary_table(length: int, rotary_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines, ``[2, T, rotary_dim / 2]``; angle = position * theta^(-2j / rotary_dim).

    float32 (float64 in a float64 net), whatever the working dtype: bfloat16 cannot tell position 257 from 258.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    j = torch.arange(0, rotary_dim, 2, dtype=wide, device=device)
    angle = torch.arange(length, dtype=wide, device=device)[:, None] * theta ** (-j / rotary_dim)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, table: Tensor, full_precision: bool) -> Tensor:
    """Rotate the first dimensions of each head, half-split: element j turns with element j + rotary_dim / 2.

    Args:
        x: ``[B, T, H, h]``.
        table: from :func:`rotary_table`; or its rows at the places of each token, ``[2, B, T, rotary_dim / 2]``.
        full_precision: True rotates in float32 and casts back (LLaDA); False casts the table to the working dtype
            and rotates there (LLaDA-MoE).
    """
    half = table.shape[-1]
    work = widen(x) if full_precision else x
    cos, sin = table.to(work.dtype).unsqueeze(-2)
    a, b, rest = work.split((half, half, work.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix, gate first."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
