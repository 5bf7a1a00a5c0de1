"""Writes checkpoints every n steps, at the end, on SIGTERM and before a bad step, and keeps the newest ones."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from lit_llada.files import UNFINISHED, unfinished
from lit_llada.modules.base import NonFiniteStep

PATTERN = "step=*.ckpt"


class StepCheckpoint(Checkpoint):
    """Writes ``step=0001000.ckpt`` (a file, or a folder of shards) every n steps and at the end of the run.

    A checkpoint is written under another name and renamed when every process is done: what has its final name is whole,
    and an older one is removed only after that. SIGTERM ends the run after the step that it meets, with a checkpoint.

    Args:
        every_n_steps: optimiser steps between two checkpoints.
        keep: how many of the newest ones stay.
        folder: None for ``checkpoints`` in the trainer's ``default_root_dir``.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2, folder: str | None = None) -> None:
        self.every_n_steps, self.keep, self.folder = every_n_steps, keep, folder
        self._saved_step = -1
        self._handler: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.path = Path(self.folder or Path(trainer.default_root_dir) / "checkpoints")
        if stage == "fit" and trainer.is_global_zero:
            for part in self.path.glob(f"*{UNFINISHED}"):  # of a run that was killed while it wrote
                _remove(part)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step
        # In place of Lightning's own handler, whose collective inside a handler can meet another one half-way.
        self._handler = signal.signal(signal.SIGTERM, lambda *_: setattr(pl_module, "stop_requested", True))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        stepped = not trainer.fit_loop._should_accumulate()
        if stepped and pl_module.stop_requested:
            trainer.should_stop = True
        if stepped and (due or trainer.should_stop):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        signal.signal(signal.SIGTERM, self._handler)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteStep):  # every process meets it together, so all can save together
            path = self.save(trainer, f"before-nonfinite-step={trainer.global_step:07d}.ckpt")
            remedy = "Lower model.lr, look at those rows, or set model.nonfinite: skip"
            exception.args = (f"{exception.args[0]}; the weights before it are in {path}. {remedy}",)

    def save(self, trainer: L.Trainer, name: str | None = None) -> Path:
        """Write a checkpoint of this step, unless there is one, and remove the oldest."""
        path = self.path / (name or f"step={trainer.global_step:07d}.ckpt")
        if name is None and self._saved_step == trainer.global_step:
            return path
        part = unfinished(path)
        trainer.save_checkpoint(part, weights_only=False)  # False: all of the run, not the weights alone
        trainer.strategy.barrier("checkpoint written")
        if trainer.is_global_zero:
            _remove(path)
            os.replace(part, path)
            for old in checkpoints(self.path)[: -self.keep or None] if self.keep > 0 else []:
                _remove(old)
        trainer.strategy.barrier("checkpoint renamed")
        if name is None:
            self._saved_step = trainer.global_step
        return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(Path(folder).glob(PATTERN))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
