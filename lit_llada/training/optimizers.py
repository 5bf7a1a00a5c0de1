"""Which update does a parameter get? AdamW with decay groups, or Muon for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lit_llada.errors import UserError

OptimizerName = Literal["adamw", "muon"]


def make_optimizer(
    net: nn.Module, name: OptimizerName, lr: float, weight_decay: float, betas: tuple[float, float]
) -> Optimizer:
    """The optimiser over the trainable parameters of ``net``.

    Matrices (embeddings and stacked experts too) decay; norms and biases do not.

    Args:
        net: a backbone; matrices under ``blocks`` are Muon's with ``muon``, stacked experts stay AdamW's.
        name: ``adamw`` or ``muon``.
        lr: peak learning rate; Muon's steps are scaled to AdamW's size, so the same one fits both.
        weight_decay: decoupled.
        betas: AdamW's two decay rates.

    Raises:
        UserError: ``muon`` on a net whose matrices have been flattened.
    """
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "rest": []}
    for key, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        if key.endswith("bias") or "norm." in key:  # by name: FSDP1 flattens every shape
            groups["rest"].append(parameter)
        elif name == "muon" and key.startswith("blocks.") and parameter.ndim == 2:
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


class MuonWithAdamW(Optimizer):
    """torch's Muon on the groups marked ``muon``, torch's fused AdamW on the others, behind one state dict."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        muon = torch.optim.Muon(self._groups(True), adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(self._groups(False), fused=True)
        self._inner = {True: muon, False: adamw}
        # The inner constructors copied the groups; ours take over the options that they filled in.
        for kind, inner in self._inner.items():
            for mine, filled in zip(self._groups(kind), inner.param_groups, strict=True):
                mine.update(filled)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, inner in self._inner.items():
            inner.state, inner.param_groups = self.state, self._groups(kind)  # a loaded state dict replaces both
            inner.step()
        return loss

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] is muon]
