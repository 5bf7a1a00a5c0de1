"""How does a small change of a large net train? Low-rank adapters on its linear layers (LoRA, 2106.09685), by peft.

``y = W x + alpha / rank * B A x``: W is frozen, A starts at random and B at zero, so that step 0 is the net itself.
The likelihood bounds of VRPO compare two passes, so there is no dropout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_llada.checkpoint.adapters import DOWN, UP
from lit_llada.errors import UserError


@dataclass(frozen=True)
class LoRA:
    """Adapters instead of whole matrices.

    Args:
        rank: of the change, at least 1.
        alpha: the change is scaled by ``alpha / rank``.
        targets: linear layers of the blocks by their last name, among ``qkv``, ``out``, ``gate_up``, ``down`` and
            ``router``; None takes all but the routers. Experts are stacks of matrices, not layers, and stay frozen.

    Raises:
        UserError: a rank or alpha that is not positive.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: list[str] | None = None

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
            generator = torch.Generator(parameter.device).manual_seed((seed * 1_000_003 + number) % 2**63)
            whole = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
            whole.normal_(0.0, 1 / math.sqrt(parameter.shape[1]), generator=generator)
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.copy_(whole)


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
