"""Measures and clips gradients, of plain and of sharded parameters alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of every gradient that there is."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return [g.to_local() if isinstance(g, DTensor) else g for g in grads]


def global_norm(grads: list[Tensor], sharded: bool) -> Tensor:
    """Euclidean norm over all gradients, float64: a float32 sum depends on how the shards are cut.

    Args:
        grads: this process's gradients, from :func:`local_gradients`.
        sharded: whether the other processes hold other parts.
    """
    norms = torch._foreach_norm(grads, 2, dtype=torch.float64)
    square = torch.stack(list(norms)).square().sum()
    if sharded:
        dist.all_reduce(square)
    return square.sqrt()


def clip_(grads: list[Tensor], norm: Tensor, limit: float) -> None:
    """Scale the gradients down to the norm ``limit``, in place; without a wait for the device."""
    scale = (limit / (norm + 1e-12)).clamp(max=1.0)
    torch._foreach_mul_(grads, scale.to(grads[0].dtype))
