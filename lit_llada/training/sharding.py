"""From a single-device net to one that is compiled block by block and sharded over a mesh; applied from outside."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from lit_llada.checkpoint.adapters import without_adapters


def compile_blocks(net: nn.Module) -> None:
    """Compile every block on its own and the head's softmax, in place: names of parameters stay.

    Equal blocks share one compilation.
    """
    for block in net.blocks:  # type: ignore[union-attr]
        block.compile()
    net.fused = True  # type: ignore[assignment]


def shard(net: nn.Module, mesh: DeviceMesh, mixed: bool) -> None:
    """FSDP2 over a one-dimensional mesh: every block gathers its own weights, the root gathers embedding and head.

    Args:
        net: with ``blocks`` and the extra entry points ``nll`` and ``weighted_nll``.
        mesh: the data-parallel mesh.
        mixed: gather block weights in bfloat16 and reduce their gradients in float32. Embedding, last norm and head
            stay float32, and so does the residual stream, as under autocast on one device.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if mixed else None
    for block in net.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    fully_shard(net, mesh=mesh)
    for entry in ("nll", "weighted_nll"):
        register_fsdp_forward_method(net, entry)


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
