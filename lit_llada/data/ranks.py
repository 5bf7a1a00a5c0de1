"""Checks before the first step that all processes train on the same data, and each on its own rows."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from lit_llada.errors import UserError


def agree(mine: dict[str, Any], rank: int) -> None:
    """Compare what every process is about to do.

    Args:
        mine: what all must agree on, by name; or this process's ``problem``.
        rank: this process's share of the rows.

    Raises:
        UserError: on all processes alike, if one of them has a problem, other data, or another one's rows.
    """
    everyone: list[Any] = [(rank, mine)]
    if dist.is_available() and dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (rank, mine))
    for process, (_, theirs) in enumerate(everyone):
        if "problem" in theirs:
            raise UserError(theirs["problem"] if len(everyone) == 1 else f"rank {process}: {theirs['problem']}")
    for process, (_, theirs) in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0][1][name]:
                first = everyone[0][1][name]
                raise UserError(f"rank {process} has {name} = {value} but rank 0 has {first}: give all ranks the same")
    shares = [share for share, _ in everyone]
    if sorted(shares) != list(range(len(everyone))) or mine["world"] != len(everyone):
        raise UserError(
            f"{len(everyone)} processes would read shares {shares} of {mine['world']}, so some the same rows: give the"
            f" strategy data_parallel_size = {len(everyone)} and tensor_parallel_size = 1"
        )
