"""Makes the optimiser: AdamW with decay groups, or Muon for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, muon

from lit_llada.backbone.layers import RMSNorm
from lit_llada.backbone.moe import MoE
from lit_llada.errors import UserError

OptimizerName = Literal["adamw", "muon"]


def make_optimizer(
    net: nn.Module, name: OptimizerName, lr: float, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    """The optimiser over the trainable parameters of ``net``.

    Matrices (embeddings and stacked experts too) decay; norms and biases do not.

    Args:
        net: a backbone; with ``muon``, the matrices under ``blocks`` but the routers are Muon's, each expert its own.
        name: ``adamw`` or ``muon``.
        lr: peak learning rate; Muon's steps are scaled to AdamW's size, so the same one fits both.
        weight_decay: decoupled weight decay of matrices.
        betas: AdamW's two decay rates.

    Raises:
        UserError: ``muon`` on a net whose matrices have been flattened.
    """
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "rest": []}
    # By the module that owns them, not by shape: FSDP1 flattens every shape.
    norms = _parameters(module for module in net.modules() if isinstance(module, RMSNorm))
    routers = _parameters(module.router for module in net.modules() if isinstance(module, MoE))
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        if key.endswith("bias") or id(parameter) in norms:
            groups["rest"].append(parameter)
        elif name == "muon" and key.startswith("blocks.") and parameter.ndim > 1 and id(parameter) not in routers:
            groups["muon"].append(parameter)
        else:
            groups["decay"].append(parameter)
    common: dict[str, Any] = {"lr": lr, "betas": betas, "eps": 1e-8}
    adamw = [
        {"params": groups["decay"], "weight_decay": weight_decay, "muon": False, **common},
        {"params": groups["rest"], "weight_decay": 0.0, "muon": False, **common},
    ]
    if name == "adamw":
        return AdamW(adamw, fused=True)
    if not groups["muon"]:
        raise UserError("optimizer: muon finds no matrix inside the blocks; FSDP1 flattens them: use FSDP2 or adamw")
    return MuonWithAdamW([{"params": groups["muon"], "weight_decay": weight_decay, "muon": True, "lr": lr}, *adamw])


def _parameters(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of the parameters that these modules hold, adapters on them included."""
    return {id(parameter) for module in modules for parameter in module.parameters()}


def set_options(optimizer: Optimizer, lr: float, weight_decay: float, betas: tuple[float, float]) -> None:
    """Give every group of an optimiser from :func:`make_optimizer` these options; what did not decay still does not."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["weight_decay"] else 0.0
        if "betas" in group:
            group["betas"] = betas


class MuonWithAdamW(Optimizer):
    """torch's Muon on the groups marked ``muon``, torch's fused AdamW on the others, behind one state dict.

    A stack of experts ``[E, in, out]`` is E matrices: FSDP2 shards it along E, so each is whole on its process.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self._adamw = AdamW(self._groups(False), fused=True)
        for mine, filled in zip(self._groups(False), self._adamw.param_groups, strict=True):
            mine.update(filled)  # the options that AdamW's constructor adds

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._groups(True):
            self._muon_step(group)
        # A loaded state dict replaces both, so they are handed over anew at each step.
        self._adamw.state, self._adamw.param_groups = self.state, self._groups(False)
        self._adamw.step()
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        matrices: list[tuple[Tensor, ...]] = []
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                matrices += _matrices(parameter, parameter.grad, state["momentum_buffer"])
        if not matrices:
            return
        weights, grads, buffers = (list(part) for part in zip(*matrices, strict=True))
        muon(
            weights,
            grads,
            buffers,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=0.95,
            nesterov=True,
            ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
            ns_steps=5,
            eps=1e-7,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] is muon]


def _matrices(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Tensors of one shape, matrix by matrix; of a sharded stack those of this process."""
    if tensors[0].ndim == 2:
        return [tensors]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return list(zip(*(tensor.unbind(0) for tensor in local), strict=True))
