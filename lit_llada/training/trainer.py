"""Lightning's Trainer with the defaults that our data need, ``precision: auto``, and TF32 as an option."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lit_llada.backbone.devices import bfloat16_on_gpu, require_bfloat16, require_driver
from lit_llada.checkpoint.shards import AnyCheckpointIO


class Trainer(L.Trainer):
    """Lightning's Trainer for runs that are counted in steps, on data that share themselves out.

    Args:
        max_epochs: epochs of the run; -1 leaves its end to ``max_steps``: the data start again by themselves.
        check_val_every_n_epoch: epochs between two validations; None validates every ``val_check_interval`` batches,
            whatever the epoch, or once an epoch where that is a share of an epoch.
        num_sanity_val_steps: validation batches before the first step; none, since data and model are checked by name.
        use_distributed_sampler: let Lightning share rows out; our loader does so itself, for any number of devices.
        precision: ``auto`` takes bf16-mixed where the hardware multiplies bfloat16 fast, else 32-true.
        float32_matmul_precision: how exact products stay that remain in float32 (torch.set_float32_matmul_precision):
            ``high`` takes a GPU's TF32, several times as fast, with 10 bits of mantissa; None leaves torch's setting.

    Raises:
        UserError: a GPU whose driver is too old for this torch, or that has no bfloat16 where that is asked for.
    """

    def __init__(
        self,
        *args: Any,
        max_epochs: int | None = -1,
        check_val_every_n_epoch: int | None = None,
        num_sanity_val_steps: int | None = 0,
        use_distributed_sampler: bool = False,
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
        if check_val_every_n_epoch is None and not counts_batches(kwargs.get("val_check_interval")):
            check_val_every_n_epoch = 1
        super().__init__(
            *args,
            max_epochs=max_epochs,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=num_sanity_val_steps,
            use_distributed_sampler=use_distributed_sampler,
            precision=precision,
            **kwargs,
        )
        require_bfloat16(self.strategy.root_device, str(self.precision))
        if isinstance(self.strategy, (SingleDeviceStrategy, DDPStrategy)):
            self.strategy.checkpoint_io = AnyCheckpointIO()


def counts_batches(val_check_interval: Any) -> bool:
    """Whether validation comes after a number of batches or a time; None and fractions are shares of an epoch."""
    return val_check_interval is not None and not isinstance(val_check_interval, float)


def fast_bfloat16(accelerator: str = "auto") -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 on what the run will use."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bfloat16_on_gpu()
    if accelerator in ("auto", "cpu"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
