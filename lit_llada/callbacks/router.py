"""Router load: how a sparse net spreads masked and visible tokens over its experts."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_llada.callbacks.loggers import log_figure, log_scalars, writers
from lit_llada.callbacks.throughput import off_the_clock
from lit_llada.metrics.router_load import ExpertVisits, balance, count_visits, fractions


class RouterLoad(L.Callback):
    """Log how the router spreads masked and visible tokens over the experts; silent for a dense net.

    Scalars, for ``masked``, ``visible`` and ``all`` tokens: ``router/*/peak`` (load of the busiest expert over the
    mean, worst layer; 1 is balanced), ``router/*/entropy`` (of the loads, over its maximum, mean of the layers),
    ``router/*/dead`` (share of experts without a token). ``router/split`` is the part of the load that masked and
    visible tokens do not share (0: same experts, 1: disjoint ones). A heat map shows every layer and expert.
    Training figures are those of one micro-batch on all ranks, under ``router/``; validation's are of the whole set,
    under ``val_router/``, and a test's under ``test_router/``.

    Args:
        every_n_steps: optimizer steps between two looks at training.
        figure: also draw the heat map for TensorBoard.
    """

    def __init__(self, every_n_steps: int = 200, figure: bool = True) -> None:
        self.every_n_steps, self.figure = every_n_steps, figure
        self._step = 0
        self._validation: ExpertVisits | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step or trainer.global_step % self.every_n_steps:
            return
        self._step = trainer.global_step
        if outputs.get("router_logits") is not None:
            with off_the_clock(trainer):  # the picture takes a while
                self._report(trainer, counted(None, visits(pl_module, outputs)), "router")

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validation = None

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs.get("router_logits") is not None and not trainer.sanity_checking:
            self._validation = counted(self._validation, visits(pl_module, outputs))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._validation is not None:
            self._report(trainer, self._validation, "test_router" if trainer.testing else "val_router")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _report(self, trainer: L.Trainer, metric: ExpertVisits, prefix: str) -> None:
        counts = metric.compute().cpu()
        log_scalars(trainer, {f"{prefix}/{name}": value for name, value in balance(counts).items()})
        if self.figure and writers(trainer):
            from lit_llada.callbacks.figures import router_figure

            load = fractions(counts)
            log_figure(
                trainer, f"{prefix}/load", router_figure(load[0], load[1], f"Router load · step {trainer.global_step}")
            )


def visits(module: Any, outputs: dict[str, Any]) -> Tensor:
    """How often each expert of a module's net was chosen: ``[2 (masked, visible), layers, E]`` float64."""
    biases = [bias for name, bias in module.net.named_buffers() if name.endswith("expert_bias")]
    bias = torch.stack(biases) if biases else None
    return count_visits(outputs["router_logits"], outputs["masked"], module.backbone.experts_per_token, bias)


def counted(metric: ExpertVisits | None, new: Tensor) -> ExpertVisits:
    """The metric with new visits ``[2, layers, E]`` added; None makes one of that shape, on their device."""
    metric = ExpertVisits(*new.shape[1:]).to(new.device) if metric is None else metric
    metric.update(new)
    return metric
