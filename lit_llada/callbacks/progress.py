"""Progress of a run: a bar on a terminal, plain lines in a log. A run is counted in steps, its data begin again."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from lit_llada.errors import UserError

SECONDS = 30.0  # between two lines, where nobody says after how many steps


def shows_bars(console: Console) -> bool:
    """Whether a bar can be drawn there: a terminal that can go back in a line, or a notebook.

    Not what rich calls a terminal: with FORCE_COLOR, which CI services set, that is any log.
    """
    return console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)


def short_figures(values: dict[str, Any]) -> dict[str, Any]:
    """The loss, the last validation and the skipped steps, as far as they are there, under short names."""
    validation = {"val/bits_per_byte": "bits/byte"} if "val/bits_per_byte" in values else {"val/loss": "val loss"}
    short = {"train/loss": "loss", **validation, "train/skipped_steps": "skipped"}
    return {name: values[key] for key, name in short.items() if key in values}


class StepsBar(RichProgressBar):
    """Lightning's bar from 0 to ``max_steps``, also after a resume, with the loss and the last validation beside it."""

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return short_figures(super().get_metrics(trainer, pl_module))


class ProgressLines(ProgressBar):
    """Prints how far training is, line by line, where no bar can be drawn: a log file, SLURM, CI.

    A line has the step, the loss, the last validation, the tokens per second of all processes since the line before
    (validation is off the clock), and the time left at the pace of this start so far. A validation ends with a line of
    its own. Rank 0 prints; between two lines the device is never waited for.

    Args:
        every_n_steps: optimizer steps between two lines; None for a line at the first step, the last one, and the first
            one after every 30 seconds.
        _clock: seconds since some moment; for tests. No option in YAML: jsonargparse leaves out names with ``_``.

    Raises:
        UserError: ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int | None = None, _clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"progress.every_n_steps is {every_n_steps}; it must be at least 1, or null to go by time")
        self.every_n_steps, self._clock = every_n_steps, _clock
        self._enabled = True
        self._validation_began = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._first_step = self._step = trainer.global_step
        self._began = self._clock()
        self._start_line()

    def _start_line(self) -> None:
        self._line_began, self._off, self._tokens = self._clock(), 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._tokens += outputs["masked"].numel() * trainer.world_size
        stepped = trainer.global_step > self._step  # not so between the micro-batches of a step
        if self._enabled and stepped and self._due(trainer):
            self._print(trainer, self._training_figures(trainer))
            self._start_line()
        self._step = trainer.global_step

    def _due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        if self.every_n_steps is not None:
            return step % self.every_n_steps == 0 or step == trainer.max_steps
        first_or_last = step in (self._first_step + 1, trainer.max_steps)
        return first_or_last or self._clock() - self._line_began >= SECONDS

    def _training_figures(self, trainer: L.Trainer) -> list[str]:
        now, step = self._clock(), trainer.global_step
        rate = self._tokens / (now - self._line_began - self._off)
        figures = [*written(short_figures(trainer.progress_bar_metrics)), f"{rate:,.0f} tokens/s"]
        if trainer.max_steps > 0:
            pace = (now - self._began) / (step - self._first_step)
            figures.append(f"{timedelta(seconds=round(pace * (trainer.max_steps - step)))} left")
        return figures

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._validation_began = self._clock()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        seconds = self._clock() - self._validation_began
        self._off += seconds
        if self._enabled:
            found = {k: v for k, v in trainer.progress_bar_metrics.items() if k.startswith("val/")}
            self._print(trainer, [f"validated in {timedelta(seconds=round(seconds))}", *written(short_figures(found))])

    def _print(self, trainer: L.Trainer, figures: list[str]) -> None:
        of = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        line = " | ".join([f"step {trainer.global_step}{of}", *figures])
        print(line, flush=True)  # a file would keep it back until a page is full


def written(figures: dict[str, Any]) -> list[str]:
    """Each figure behind its name."""
    return [f"{name} {value:.4g}" for name, value in figures.items()]
