"""Norm and clipping: as torch has them, on one process and over shards."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lit_llada.training.gradients import clip_, global_norm, local_gradients

SHAPES = [(5, 3), (7,), (2, 3, 4), (1,)]


def parameters(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for p in made:
        p.grad = scale * torch.randn(p.shape, generator=generator).to(dtype)
    made.append(nn.Parameter(torch.zeros(3, dtype=dtype)))  # one that got no gradient
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_equals_torch(limit: float, dtype: torch.dtype) -> None:
    ours, theirs = parameters(2.0, dtype), parameters(2.0, dtype)
    norm = global_norm(local_gradients(ours), sharded=False)
    clip_(local_gradients(ours), norm, limit)
    expected = nn.utils.clip_grad_norm_(theirs, limit)
    tolerance = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-5, "atol": 0.0}
    assert norm.dtype == torch.float64 and ours[-1].grad is None
    torch.testing.assert_close(norm, expected.double(), **tolerance)
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(a.grad, b.grad, **tolerance)


def test_below_the_limit_nothing_moves_and_above_it_the_norm_is_the_limit() -> None:
    grads, before = local_gradients(parameters()), local_gradients(parameters())
    norm = global_norm(grads, sharded=False)
    clip_(grads, norm, norm.item() * 1.01)
    assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
    clip_(grads, norm, 0.25)
    assert global_norm(grads, sharded=False).item() == pytest.approx(0.25, rel=1e-6)


def test_zero_gradients_stay_zero() -> None:
    grads = [torch.zeros(3), torch.zeros(2, 2)]
    clip_(grads, global_norm(grads, sharded=False), 1.0)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_shows_in_the_norm(bad: float) -> None:
    made = parameters()
    assert made[1].grad is not None
    made[1].grad[2] = bad
    assert not global_norm(local_gradients(made), sharded=False).isfinite()


def test_the_norm_of_large_float32_gradients_does_not_overflow() -> None:
    norm = global_norm([torch.full((4,), 1e30)], sharded=False)
    assert norm.item() == pytest.approx(2e30)


def _shard_norm(rank: int, world: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    mesh = init_device_mesh("cpu", (world,))
    sharded = []
    for p in parameters()[:-1]:
        q = nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)]))  # uneven, and empty on the second rank
        q.grad = distribute_tensor(p.grad, mesh, [Shard(0)])
        sharded.append(q)
    grads = local_gradients(sharded)
    norm = global_norm(grads, sharded=True)
    clip_(grads, norm, 0.5)
    clipped: list[Tensor] = [q.grad.full_tensor() for q in sharded]  # type: ignore[union-attr]
    dist.destroy_process_group()
    return {"norm": norm.item(), "clipped": [g.tolist() for g in clipped]}


def test_shards_give_the_norm_of_the_whole(forked: Callable[..., list[Any]]) -> None:
    whole = local_gradients(parameters())
    norm = global_norm(whole, sharded=False)
    clip_(whole, norm, 0.5)
    for result in forked(_shard_norm, 2, 2):
        assert result["norm"] == pytest.approx(norm.item(), rel=1e-12)
        for got, want in zip(result["clipped"], whole, strict=True):
            torch.testing.assert_close(torch.tensor(got), want)
