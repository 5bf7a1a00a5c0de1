"""Low-rank adapters on the linear layers of a net (LoRA, 2106.09685), by peft: a small change of a large net.

``y = W x + alpha / rank * B A x``: W is frozen, A starts at random and B at zero, so that step 0 is the net itself.
The likelihood bounds of VRPO compare two passes, so there is no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_llada.backbone.adapters import DOWN, UP, is_adapter
from lit_llada.errors import UserError
from lit_llada.seeding import mix


@dataclass(frozen=True)
class LoRA:
    """Adapters instead of whole matrices.

    Args:
        rank: rank of the change, at least 1.
        alpha: the change is scaled by ``alpha / rank``.
        targets: linear layers of the blocks by their last name, among ``qkv``, ``out``, ``gate_up``, ``down`` and
            ``router``; None takes all but the routers. Experts are stacks of matrices, not layers, and stay frozen.
        base: what the frozen matrices are kept in. ``bfloat16`` halves their memory; it needs trainer.precision
            bf16-mixed, or bf16-true, which keeps everything in bfloat16 anyway.

    Raises:
        UserError: a rank or alpha that is not positive.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: list[str] | None = None
    base: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(f"model.lora: rank {self.rank} and alpha {self.alpha} must be positive")


def add_adapters(net: nn.Module, lora: LoRA) -> None:
    """Put adapters on the layers that ``lora`` names, in place, and freeze everything else.

    They are where the weights are, on the meta device too, and hold nothing sensible until :func:`init_adapters`.

    Raises:
        UserError: peft is not installed, or a target is no linear layer of this net.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora needs peft; pip install 'lit_llada[lora]'") from None
    layers = _layers(net, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers)  # type: ignore[arg-type]
    with net.embed.weight.device:  # type: ignore[union-attr]
        inject_adapter_in_model(config, net)
    for layer in _adapted(net):
        # Autocast does it. peft would also widen what is bfloat16 already, only for autocast to round it again.
        layer.cast_input_dtype_enabled = False
    if lora.base == "bfloat16":
        _round_base(net)


def _round_base(net: nn.Module) -> None:
    """Frozen matrices become bfloat16, in place; on the meta device their float32 form never takes memory.

    Under bf16-mixed a matrix is rounded to bfloat16 wherever it multiplies, so only the embedding changes what the net
    computes. Norms and biases work in float32, and together are less than a thousandth of a net: they stay.
    """
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1 and not is_adapter(name):
            parameter.data = parameter.data.to(torch.bfloat16)


@contextmanager
def adapters_off(net: nn.Module) -> Iterator[None]:
    """Inside, ``net`` computes, without gradients, what it would without its adapters, if it has any.

    peft's own switch (``enable_adapters``) also turns ``requires_grad`` of the adapters off and on, which FSDP2, DDP
    and compiled blocks look at. Its flag alone is private, but it is all that the layer's forward reads, and without
    gradients nothing else is needed. A compiled block is compiled once for each of its two values.
    """
    for layer in _adapted(net):
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in _adapted(net):
            layer._disable_adapters = False


@torch.no_grad()
def init_adapters(net: nn.Module, seed: int | None = None) -> None:
    """``A ~ N(0, 1 / in)``, ``B = 0``; the same on one process and on any number of shards.

    Args:
        net: real, from :func:`add_adapters`.
        seed: None takes the process's initial seed (what ``seed_everything`` sets).
    """
    seed = torch.initial_seed() if seed is None else seed
    for number, (name, parameter) in enumerate(net.named_parameters()):
        if UP in name:
            parameter.zero_()
        elif DOWN in name:
            generator = torch.Generator(parameter.device).manual_seed(mix(seed, number))
            whole = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
            whole.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.copy_(whole)


def _adapted(net: nn.Module) -> list[Any]:
    """peft's layers."""
    return [module for module in net.modules() if hasattr(module, "_disable_adapters")]


def _layers(net: nn.Module, targets: list[str] | None) -> list[str]:
    """Full names of the layers; only those in the blocks, for the head is used as a matrix, not as a layer."""
    blocks = [name for name, module in net.named_modules() if name.startswith("blocks.") and type(module) is nn.Linear]
    if targets is None:
        return [name for name in blocks if not name.endswith(".router")]
    last = {name.rpartition(".")[2] for name in blocks}
    if not targets or not last.issuperset(targets):
        strange = ", ".join(target for target in targets if target not in last) or "nothing"
        raise UserError(f"model.lora.targets: {strange} is no linear layer of this net's blocks; take {sorted(last)}")
    return [name for name in blocks if name.rpartition(".")[2] in targets]
