"""An exponential moving average of the weights, in the module's frozen twin, sharded or not."""

from __future__ import annotations

from itertools import compress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_llada.errors import UserError


class EMA(L.Callback):
    """Average the weights: ``ema += (1 - d) (net - ema)`` after every optimizer step.

    ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so that the first weights are soon forgotten. The twin lives
    in the module's state dict and in its shards; validation and samples use it through ``module.denoiser``.

    Args:
        decay: the weight of the past, between 0 and 1.
        warmup: let the decay grow as above; without it, ``decay`` from the first step on.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"EMA.decay is {decay}; it must lie in [0, 1)")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._step = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("EMA: FSDP1 cuts the net and its average differently; use FSDP2 or leave the average out")
        pl_module.keep_ema = True  # configure_model builds the twin

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Start from the net, unless a checkpoint has brought an average."""
        self._step = trainer.global_step
        target, source = tensors(pl_module.ema), tensors(pl_module.net)
        # What is frozen under adapters is its own average. Buffers may move.
        trained = [p.requires_grad for p in pl_module.net.parameters()]
        self._moving = trained + [True] * (len(target) - len(trained))
        if any(t.dtype in (torch.bfloat16, torch.float16) for t in compress(target, self._moving)):
            raise UserError("EMA: weights are kept in half precision, which cannot hold an average; use bf16-mixed")
        if self.updates == 0:
            self._move(target, source, 1.0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step:
            return  # a micro-batch: the weights have not moved
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        target, source = (list(compress(tensors(net), self._moving)) for net in (pl_module.ema, pl_module.net))
        self._move(target, source, 1 - decay)
        self.updates += 1

    @staticmethod
    @torch.no_grad()
    def _move(target: list[Tensor], source: list[Tensor], weight: float) -> None:
        torch._foreach_lerp_(target, [s.to(t.dtype) for s, t in zip(source, target, strict=True)], weight)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]


@torch.no_grad()
def tensors(net: nn.Module) -> list[Tensor]:
    """The parameters and the floating-point buffers, of a sharded net this rank's part of them."""
    for part in net.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after a forward pass without backward the root still holds the gathered copy
    found = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
    return [t.to_local() if isinstance(t, DTensor) else t for t in found]
