"""A name for the weights of a net, whole or sharded."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lit_llada.backbone.adapters import without_adapters


def weight_digest(net: nn.Module) -> str:
    """A name for the weights, whole or sharded: of each tensor the sum of its bytes, which no order of adding changes.

    Adapters do not count: it is the name of what they are put on.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(without_adapters(net.named_parameters())):
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
        # Part by part: on a CPU each byte takes eight while they are added up.
        parts = local.contiguous().view(-1).view(torch.uint8).split(2**18)
        total = torch.stack([part.sum(dtype=torch.int64) for part in parts]).sum()
        if isinstance(parameter, DTensor):
            torch.distributed.all_reduce(total, group=parameter.device_mesh.get_group())
        digest.update(f"{name} {tuple(parameter.shape)} {int(total)}\n".encode())
    return digest.hexdigest()[:16]
