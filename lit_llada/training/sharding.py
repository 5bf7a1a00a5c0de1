"""Prepares a net for the devices that train it, from outside: recompute, compile and shard, block by block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from lit_llada.backbone.attention import AttentionPlan


def parallelise(
    net: nn.Module, *, checkpointing: bool, compiled: bool, mesh: DeviceMesh | None = None, mixed: bool = False
) -> None:
    """Everything that is done to a net to train it in less memory, faster, or on several devices; in place.

    The order counts: adapters are there already, a block is compiled before its weights are sharded, and memory and
    weights come last, to the shards alone.

    Args:
        net: a backbone on the meta device.
        checkpointing: recompute each block in the backward pass.
        compiled: compile each block, and the softmax of the head.
        mesh: the data-parallel mesh to shard over; None leaves the net whole.
        mixed: see :func:`shard`.
    """
    net.checkpointing = checkpointing  # type: ignore[assignment]
    if compiled:
        compile_blocks(net)
    if mesh is not None:
        shard(net, mesh, mixed)


def compile_blocks(net: nn.Module) -> None:
    """Compile every block on its own and the head's softmax, in place: names of parameters stay.

    Equal blocks share one compilation, which serves every number of rows and tokens. Others are made for: the last
    block, where only some positions go on; no gradient; an input without a gradient, as the first block's over a frozen
    embedding; frozen weights; torch's inference mode. One row or one token is a case of its own.
    """
    # Of one function for all nets; beyond it torch gives up compiling. VRPO in a dense net needs 7, without an average.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 16)
    for block in net.blocks:  # type: ignore[union-attr]
        block.compile()
        block._compiled_call_impl = functools.partial(_call_with_any_size, block._compiled_call_impl)
    net.fused = True  # type: ignore[assignment]


def _call_with_any_size(
    compiled: Callable[..., Any], x: Tensor, table: Tensor, plan: AttentionPlan, positions: Tensor | None = None
) -> Any:
    """Say which sizes vary before torch sees the first ones: what it finds out by itself costs two compilations each.

    Not ``dynamic=True``: there T = D in the first batch makes T a constant.
    """
    masks = () if plan.allowed is None else ((plan.allowed, (0, 2, 3)),)
    flat = [(size, (0,)) for size in (positions, plan.real, plan.cu_seqlens) if size is not None]
    for tensor, dims in ((x, (0, 1)), (table, (1,)), *masks, *flat):
        torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return compiled(x, table, plan, positions)


def shard(net: nn.Module, mesh: DeviceMesh, mixed: bool) -> None:
    """FSDP2 over a one-dimensional mesh: every block gathers its own weights, the root gathers embedding and head.

    Args:
        net: a net with ``blocks`` and the extra entry points ``nll`` and ``weighted_nll``.
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
