"""Writes numbers to every logger, texts and pictures to TensorBoard; on rank 0 only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_scalars(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Write ``values`` to every logger at the current optimizer step; on ranks other than 0 they do nothing."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


def log_text(trainer: L.Trainer, tag: str, markdown: str) -> None:
    """A Markdown text for the TensorBoard loggers, if there are any."""
    for writer in writers(trainer):
        writer.add_text(tag, markdown, trainer.global_step)


def log_figure(trainer: L.Trainer, tag: str, figure: Figure) -> None:
    """A picture for the TensorBoard loggers, if there are any."""
    for writer in writers(trainer):
        writer.add_figure(tag, figure, trainer.global_step, close=False)


def writers(trainer: L.Trainer) -> list[Any]:
    """The ``SummaryWriter`` of each TensorBoard logger; none on ranks other than 0, so ask before drawing."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
