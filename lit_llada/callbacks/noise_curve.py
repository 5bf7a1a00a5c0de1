"""Validation loss by noise level, in bits per byte, beside the levels of a guess and of token frequencies."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from lit_llada.callbacks.loggers import log_figure, writers
from lit_llada.metrics.noise_curve import NllByNoise


class NoiseCurve(L.Callback):
    """Log ``val/bits_per_byte`` and ``val/nll_decile_0`` .. ``9`` (nats per masked token), and draw the curve.

    Under ``test`` the names begin with ``test/``. The decile is that of the noise level t. Bits per byte is the bound,
    ``sum of nll / p_mask over masked tokens / tokens / (ln 2 * bytes per token)``: comparable across tokenizers. Where
    nobody counts bytes (answers) it is ``bits_per_token``. The reference levels are a uniform guess and the data's own
    token frequencies (``datamodule.unigram_nll``).

    Args:
        figure: also draw the curve for TensorBoard.
    """

    def __init__(self, figure: bool = True) -> None:
        self.figure = figure
        self._metric = NllByNoise()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._metric.update(outputs["nll"], outputs["t"], outputs["p_mask"], outputs["tokens"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        levels = self._metric.compute()
        curve, bound = levels.deciles.tolist(), float(levels.bound)
        data = getattr(trainer, "datamodule", None)
        size = getattr(data, "bytes_per_token", None)
        bits, unit = 1 / math.log(2) / (size or 1.0), "byte" if size else "token"  # of one nat per token
        stage = "test" if trainer.testing else "val"
        values = {f"{stage}/nll_decile_{i}": nll for i, nll in enumerate(curve) if not math.isnan(nll)}
        pl_module.log_dict(values, rank_zero_only=False, sync_dist=False)
        pl_module.log(f"{stage}/bits_per_{unit}", bound * bits, prog_bar=True, sync_dist=False)
        if self.figure and not trainer.sanity_checking and writers(trainer):
            from lit_llada.callbacks.figures import noise_curve_figure

            known = {"uniform": math.log(pl_module.backbone.vocabulary)}
            if unigram := getattr(data, "unigram_nll", None):
                known["unigram"] = unigram
            figure = noise_curve_figure(
                [nll * bits for nll in curve],
                bound * bits,
                {name: nll * bits for name, nll in known.items()},
                unit=f"bits per {unit}",
                title=f"{'Test' if stage == 'test' else 'Validation'} loss by noise level · step {trainer.global_step}",
            )
            log_figure(trainer, f"{stage}/noise_curve", figure)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
