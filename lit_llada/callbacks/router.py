"""Do all experts work, and do masked tokens go elsewhere than visible ones? Router load, split by what a token is."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_llada.backbone.moe import route
from lit_llada.callbacks.loggers import log_figure, log_scalars, writers
from lit_llada.callbacks.throughput import off_the_clock


class RouterLoad(L.Callback):
    """Log how the router spreads masked and visible tokens over the experts; silent for a dense net.

    Scalars, for ``masked``, ``visible`` and ``all`` tokens: ``router/*/peak`` (load of the busiest expert over the
    mean, worst layer; 1 is balanced), ``router/*/entropy`` (of the loads, over its maximum, mean of the layers),
    ``router/*/dead`` (share of experts without a token). ``router/split`` is the part of the load that masked and
    visible tokens do not share (0: same experts, 1: disjoint ones). A heat map shows every layer and expert.
    Training figures are those of one micro-batch on all ranks, under ``router/``; validation's are of the whole set,
    under ``val_router/``.

    Args:
        every_n_steps: optimizer steps between two looks at training.
        figure: also draw the heat map for TensorBoard.
    """

    def __init__(self, every_n_steps: int = 200, figure: bool = True) -> None:
        self.every_n_steps, self.figure = every_n_steps, figure
        self._step = 0
        self._validation: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step or trainer.global_step % self.every_n_steps:
            return
        self._step = trainer.global_step
        if outputs.get("router_logits") is not None:
            with off_the_clock(trainer):  # the picture takes a while
                self._report(trainer, visits(pl_module, outputs), "router")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validation = None

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs.get("router_logits") is not None and not trainer.sanity_checking:
            new = visits(pl_module, outputs)
            self._validation = new if self._validation is None else self._validation + new

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._validation is not None:
            self._report(trainer, self._validation, "val_router")

    def _report(self, trainer: L.Trainer, counts: Tensor, prefix: str) -> None:
        counts = trainer.strategy.reduce(counts, reduce_op="sum").cpu()
        log_scalars(trainer, {f"{prefix}/{name}": value for name, value in balance(counts).items()})
        if self.figure and writers(trainer):
            from lit_llada.callbacks.figures import router_figure

            load = fractions(counts)
            log_figure(
                trainer, f"{prefix}/load", router_figure(load[0], load[1], f"Router load · step {trainer.global_step}")
            )


@torch.no_grad()
def visits(module: Any, outputs: dict[str, Any]) -> Tensor:
    """How often each expert was chosen: ``[2 (masked, visible), layers, E]`` float64. No wait for the device."""
    logits, masked = outputs["router_logits"], outputs["masked"].flatten()
    biases = [bias for name, bias in module.net.named_buffers() if name.endswith("expert_bias")]
    bias = torch.stack(biases)[:, None] if biases else None
    chosen = route(logits, module.backbone.experts_per_token, bias).chosen  # [layers, N, k]
    groups = torch.stack([masked, ~masked]).double()  # [2, N]
    weight = groups[:, None, :, None].expand(-1, *chosen.shape).flatten(2)
    index = chosen.flatten(1).expand(2, -1, -1)
    zeros = torch.zeros(2, logits.shape[0], logits.shape[-1], dtype=torch.float64, device=logits.device)
    return zeros.scatter_add_(2, index, weight)


def fractions(counts: Tensor) -> Tensor:
    """Each expert's share of the visits of its group and layer; 0 where the group is empty."""
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def balance(counts: Tensor) -> dict[str, float]:
    """The scalars of :class:`RouterLoad` from ``[2 (masked, visible), layers, E]`` visits."""
    experts = counts.shape[-1]
    values = {}
    for name, group in {"masked": counts[0], "visible": counts[1], "all": counts.sum(0)}.items():
        load = fractions(group)
        entropy = -torch.xlogy(load, load).sum(-1).mean() / torch.log(torch.tensor(float(max(experts, 2))))
        values[f"{name}/peak"] = float(load.max() * experts)
        values[f"{name}/entropy"] = float(entropy)
        values[f"{name}/dead"] = float((group == 0).double().mean())
    masked, visible = fractions(counts)
    values["split"] = float((masked - visible).abs().sum(-1).mean() / 2)
    return values
