"""Lightning's Trainer, with one more word for ``precision``, and TF32 as an option."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_llada.backbone.devices import bfloat16_on_gpu, require_bfloat16, require_driver
from lit_llada.checkpoint.shards import AnyCheckpointIO


class Trainer(L.Trainer):
    """Lightning's Trainer.

    Args:
        precision: ``auto`` takes bf16-mixed where the hardware multiplies bfloat16 fast, else 32-true.
        float32_matmul_precision: how exact products stay that remain in float32 (torch.set_float32_matmul_precision):
            ``high`` takes a GPU's TF32, several times as fast, with 10 bits of mantissa; None leaves torch's setting.

    Raises:
        UserError: a GPU whose driver is too old for this torch, or that has no bfloat16 where that is asked for.
    """

    def __init__(
        self,
        *args: Any,
        precision: _PRECISION_INPUT | Literal["auto"] | None = "auto",
        float32_matmul_precision: Literal["highest", "high", "medium"] | None = None,
        **kwargs: Any,
    ) -> None:
        accelerator = kwargs.get("accelerator", "auto")
        if accelerator in ("auto", "gpu", "cuda"):
            require_driver("trainer.accelerator cpu")
        if float32_matmul_precision is not None:
            torch.set_float32_matmul_precision(float32_matmul_precision)
        if precision == "auto":
            precision = "bf16-mixed" if fast_bfloat16(accelerator) else "32-true"
        super().__init__(*args, precision=precision, **kwargs)
        require_bfloat16(self.strategy.root_device, str(self.precision))
        if isinstance(self.strategy, (SingleDeviceStrategy, DDPStrategy)):
            self.strategy.checkpoint_io = AnyCheckpointIO()


def fast_bfloat16(accelerator: str = "auto") -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on what the run will use."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bfloat16_on_gpu()
    if accelerator in ("auto", "cpu"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
