"""Two processes that share the batches of one, without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torchmetrics import Metric


def share(rank: int, world: int, make: Callable[[], Metric], batches: Sequence[tuple[Any, ...]]) -> Any:
    """What a rank computes of all batches if it sees every ``world``-th."""
    if world > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    metric = make()
    for batch in batches[rank::world]:
        metric.update(*batch)
    before, found, after = plain(metric.metric_state), plain(metric.compute()), plain(metric.metric_state)
    assert before == after, "a rank goes on from what it counted itself"
    return found


def plain(values: Any) -> Any:
    """The same with numbers in place of tensors."""
    return torch.utils._pytree.tree_map(lambda x: x.tolist() if isinstance(x, torch.Tensor) else x, values)


@pytest.fixture
def on_ranks(forked: Any) -> Callable[..., list[Any]]:
    """``on_ranks(make, batches)``: what one process computes of the batches, then what each of two ranks does."""

    def run(make: Callable[[], Metric], batches: Sequence[tuple[Any, ...]]) -> list[Any]:
        two = forked(share, 2, 2, make, batches)
        return [share(0, 1, make, batches), *two]

    return run
