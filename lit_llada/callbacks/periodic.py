"""The base of callbacks that look at the net every n optimizer steps, at the end, and if wished before the first."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lit_llada.callbacks.throughput import off_the_clock


class Periodic(L.Callback):
    """Calls :meth:`look` every n optimizer steps and at the end of training, never twice at one step.

    Args:
        every_n_steps: optimizer steps between two looks.
        before: look before the first step too, as step 0, and keep what was seen in ``start``. A resumed run does not:
            the weights it began with are gone. What it had logged at step 0 is still there.
    """

    def __init__(self, every_n_steps: int, before: bool) -> None:
        self.every_n_steps, self.before = every_n_steps, before
        self.start: Any = None  # what the look before the first step saw
        self._step, self._looked = 0, False

    @abstractmethod
    def look(self, trainer: L.Trainer, pl_module: Any) -> Any:
        """Ask the net, which is in eval mode; log; return what a later look shows beside its own findings."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.start, self._step, self._looked = None, trainer.global_step, False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Look before the first step: by now every callback has refused what it cannot work with."""
        if self.before and trainer.global_step == 0 and not self._looked:
            self.start = self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step and trainer.global_step % self.every_n_steps == 0:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self._step or not self._looked:
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, pl_module: Any) -> Any:
        self._step, self._looked = trainer.global_step, True
        with off_the_clock(trainer), evaluating(pl_module.denoiser), trainer.precision_plugin.forward_context():
            return self.look(trainer, pl_module)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part is as it was, and a sharded net holds no gathered copy."""
    modes = {part: part.training for part in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
            if isinstance(part, FSDPModule):
                part.reshard()
