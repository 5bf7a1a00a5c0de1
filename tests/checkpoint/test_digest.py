"""The digest names weights: one changed number is another name, adapters and buffers are not counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_llada.checkpoint.digest import weight_digest


def test_one_changed_number_is_another_name(net: Any) -> None:
    one, other = net(), net()
    assert weight_digest(one) == weight_digest(other) and len(weight_digest(one)) == 16
    with torch.no_grad():
        other.embed.weight[3, 2] += 1e-3
    assert weight_digest(one) != weight_digest(other)


def test_the_same_numbers_in_another_type_or_tensor_are_another_name(net: Any) -> None:
    assert weight_digest(net()) != weight_digest(net().bfloat16())
    swapped = net()
    norm = swapped.blocks[0].attn_norm.weight
    norm.data, swapped.norm.weight.data = swapped.norm.weight.data, norm.data
    assert weight_digest(swapped) != weight_digest(net())


def sharded(rank: int, make: Any, world: int) -> str:
    torch.distributed.init_process_group("gloo")
    whole = make()
    fully_shard(whole, mesh=init_device_mesh("cpu", (world,)))
    return weight_digest(whole)


def test_a_sharded_net_has_the_name_of_the_whole_one(net: Any, forked: Any) -> None:
    assert set(forked(sharded, 2, net, 2)) == {weight_digest(net())}
