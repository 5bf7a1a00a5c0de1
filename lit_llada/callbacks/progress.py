"""One bar for the whole run: a run is counted in steps, and the data begin again by themselves."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bar from 0 to ``max_steps``, also after a resume, with the loss and the last validation beside it."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        values = super().get_metrics(trainer, pl_module)
        validation = {"val/bits_per_byte": "bits/byte"} if "val/bits_per_byte" in values else {"val/loss": "val loss"}
        short = {"train/loss": "loss", **validation, "train/skipped_steps": "skipped"}
        return {name: values[key] for key, name in short.items() if key in values}
