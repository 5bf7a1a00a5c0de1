"""Two processes under DDP, two under FSDP2, and one with accumulation are one and the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Block
from lit_llada.callbacks.ema import EMA
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training.schedules import Schedule
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer

STEPS = 8
DENSE = BackboneConfig(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, ff_dim=64)
SPARSE = BackboneConfig(d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32, qk_norm="head")


class CPUFSDPStrategy(FSDPStrategy):
    """Lightning's FSDP1 on a CPU, which Lightning and torch refuse unless one says so explicitly."""

    def _setup_model(self, model: torch.nn.Module) -> FullyShardedDataParallel:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Curve(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > len(self.losses):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))
            self.norms.append(float(trainer.callback_metrics["train/grad_norm"]))


def train(_rank: int, data: Path, backbone: BackboneConfig, strategy: str, accumulate: int, **options: Any) -> dict:
    strategies = {"fsdp2": FSDP2Strategy, "fsdp1": lambda: CPUFSDPStrategy(auto_wrap_policy=ModuleWrapPolicy({Block}))}
    world = 1 if strategy == "auto" else 2
    curve = Curve()
    averaged = [] if strategy == "fsdp1" else [EMA(0.9)]
    L.seed_everything(1)
    module = PretrainingModule(
        backbone, lr=1e-2, schedule=Schedule(warmup_steps=2), random_length=0.3, **{"optimizer": "adamw", **options}
    )
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=strategies.get(strategy, lambda: strategy)(), max_steps=STEPS,
        accumulate_grad_batches=accumulate, gradient_clip_val=0.3, precision="32-true", callbacks=[curve, *averaged],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=32, batch_size=4, val_rows=12))
    return {"losses": curve.losses, "norms": curve.norms, "val": float(trainer.callback_metrics["val/loss"])}


@pytest.mark.parametrize("backbone", [DENSE, SPARSE], ids=["dense", "moe"])
def test_ddp_fsdp2_and_accumulation_give_one_curve(forked, prepared: Path, backbone: BackboneConfig) -> None:
    [one] = forked(train, 1, prepared, backbone, "auto", 2)
    assert len(one["losses"]) == STEPS and one["losses"][-1] < one["losses"][0]
    assert max(one["norms"]) > 0.3, "clipping was never on"
    for strategy in ("ddp", "fsdp2"):
        ranks = forked(train, 2, prepared, backbone, strategy, 1)
        assert ranks[0] == ranks[1]
        for key, value in one.items():
            assert ranks[0][key] == pytest.approx(value, rel=1e-5), (strategy, key)


def test_fsdp1_gives_the_same_curve(forked, prepared: Path) -> None:
    [one] = forked(train, 1, prepared, DENSE, "auto", 2)
    ranks = forked(train, 2, prepared, DENSE, "fsdp1", 1)
    assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert ranks[0]["norms"] == pytest.approx(one["norms"], rel=1e-5)


@pytest.mark.parametrize("backbone", [DENSE, SPARSE], ids=["dense", "moe"])
def test_muon_shards(forked, prepared: Path, backbone: BackboneConfig) -> None:
    """Muon's bfloat16 iterations on shards and on whole matrices round differently, so the curves agree less."""
    [one] = forked(lambda *a: train(*a, optimizer="muon"), 1, prepared, backbone, "auto", 2)
    ranks = forked(lambda *a: train(*a, optimizer="muon"), 2, prepared, backbone, "fsdp2", 1)
    assert one["losses"][-1] < one["losses"][0]
    assert ranks[0]["losses"] == pytest.approx(one["losses"], rel=1e-2)
