"""Validation loss by noise level, in bits per byte, beside the levels of a guess and of token frequencies."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_llada.callbacks.loggers import log_figure, writers

DECILES = 10


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
        self._sums: Tensor | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Per decile: nll and masked tokens; in the last column the weighted nll and all tokens.
        self._sums = torch.zeros(2, DECILES + 1, dtype=torch.float64, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        assert self._sums is not None
        decile = (outputs["t"] * DECILES).long().clamp(0, DECILES - 1)
        nll = outputs["nll"].double()
        self._sums[0].index_add_(0, decile, nll)
        self._sums[1].index_add_(0, decile, torch.ones_like(nll))
        self._sums[0, DECILES] += (nll / outputs["p_mask"]).sum()
        self._sums[1, DECILES] += outputs["tokens"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        assert self._sums is not None
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = None
        curve = [n / c if c else math.nan for n, c in zip(total, count, strict=True)]
        data = getattr(trainer, "datamodule", None)
        size = getattr(data, "bytes_per_token", None)
        bits, unit = 1 / math.log(2) / (size or 1.0), "byte" if size else "token"  # of one nat per token
        stage = "test" if trainer.testing else "val"
        values = {f"{stage}/nll_decile_{i}": nll for i, nll in enumerate(curve[:DECILES]) if not math.isnan(nll)}
        pl_module.log_dict(values, rank_zero_only=False, sync_dist=False)
        pl_module.log(f"{stage}/bits_per_{unit}", curve[DECILES] * bits, prog_bar=True, sync_dist=False)
        if self.figure and not trainer.sanity_checking and writers(trainer):
            from lit_llada.callbacks.figures import noise_curve_figure

            levels = {"uniform": math.log(pl_module.backbone.vocabulary)}
            if unigram := getattr(data, "unigram_nll", None):
                levels["unigram"] = unigram
            figure = noise_curve_figure(
                [nll * bits for nll in curve[:DECILES]],
                curve[DECILES] * bits,
                {name: nll * bits for name, nll in levels.items()},
                unit=f"bits per {unit}",
                title=f"{'Test' if stage == 'test' else 'Validation'} loss by noise level · step {trainer.global_step}",
            )
            log_figure(trainer, f"{stage}/noise_curve", figure)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
