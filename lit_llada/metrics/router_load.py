"""Router load: how often masked and visible tokens visit each expert, and how even that is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_llada.backbone.moe import route


class ExpertVisits(Metric):
    """Visits of each expert by masked and by visible tokens; :func:`balance` makes scalars of them.

        load = ExpertVisits(layers=2, experts=8)
        load.update(count_visits(router_logits, masked, experts_per_token=2))  # for every batch
        balance(load.compute())

    Args:
        layers: number of sparse layers.
        experts: number of experts E of a layer.
        **options: options of ``torchmetrics.Metric``.
    """

    full_state_update = False
    visits: Tensor  # [2 (masked, visible), layers, E] float64

    def __init__(self, layers: int, experts: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("visits", torch.zeros(2, layers, experts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, visits: Tensor) -> None:
        """Add a batch.

        Args:
            visits: ``[2 (masked, visible), layers, E]``, as :func:`count_visits` counts them.
        """
        self.visits += visits

    def compute(self) -> Tensor:
        """``[2 (masked, visible), layers, E]`` float64 visits of all batches and processes."""
        return self.visits


@torch.no_grad()
def count_visits(
    router_logits: Tensor, masked: Tensor, experts_per_token: int, expert_bias: Tensor | None = None
) -> Tensor:
    """How often each expert was chosen: ``[2 (masked, visible), layers, E]`` float64. No wait for the device.

    Args:
        router_logits: ``[layers, N, E]``.
        masked: ``[B, T]`` or ``[N]`` bool, with ``B * T = N``.
        experts_per_token: how many experts each token visits.
        expert_bias: ``[layers, E]``, added to the probabilities before the choice.
    """
    bias = None if expert_bias is None else expert_bias[:, None]
    chosen = route(router_logits, experts_per_token, bias).chosen  # [layers, N, k]
    groups = torch.stack([masked.flatten(), ~masked.flatten()]).double()  # [2, N]
    weight = groups[:, None, :, None].expand(-1, *chosen.shape).flatten(2)
    index = chosen.flatten(1).expand(2, -1, -1)
    layers, _, experts = router_logits.shape
    zeros = torch.zeros(2, layers, experts, dtype=torch.float64, device=router_logits.device)
    return zeros.scatter_add_(2, index, weight)


def fractions(visits: Tensor) -> Tensor:
    """Each expert's share of the visits of its group and layer; 0 where the group is empty."""
    return visits / visits.sum(-1, keepdim=True).clamp_min(1)


def balance(visits: Tensor) -> dict[str, float]:
    """How evenly experts are visited, from ``[2 (masked, visible), layers, E]`` visits.

    For ``masked``, ``visible`` and ``all`` tokens: ``*/peak`` (load of the busiest expert over the mean, worst layer; 1
    is balanced), ``*/entropy`` (of the loads, over its maximum, mean of the layers), ``*/dead`` (share of experts
    without a token). ``split`` is the part of the load that masked and visible tokens do not share.
    """
    experts = visits.shape[-1]
    values = {}
    for name, group in {"masked": visits[0], "visible": visits[1], "all": visits.sum(0)}.items():
        load = fractions(group)
        entropy = -torch.xlogy(load, load).sum(-1).mean() / torch.log(torch.tensor(float(max(experts, 2))))
        values[f"{name}/peak"] = float(load.max() * experts)
        values[f"{name}/entropy"] = float(entropy)
        values[f"{name}/dead"] = float((group == 0).double().mean())
    masked, visible = fractions(visits)
    values["split"] = float((masked - visible).abs().sum(-1).mean() / 2)
    return values
