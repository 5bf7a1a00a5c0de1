"""``precision: auto``, and whether options that only save memory or time leave the run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.callbacks import EMA, SampleLogger
from lit_llada.data.datamodule import DiffusionDataModule
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training import trainer as trainer_module
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer, fast_bfloat16

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str) -> None:
    monkeypatch.setattr(trainer_module, "fast_bfloat16", lambda *_: fast)
    assert Trainer(accelerator="cpu", **QUIET).precision == precision
    assert Trainer(accelerator="cpu", precision="64-true", **QUIET).precision == "64-true"


def test_fast_bfloat16_on_a_cpu_is_what_torch_says_of_it() -> None:
    assert fast_bfloat16("cpu") == (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def final_loss(_rank: int, data: Path, world: int, precision: str, **options: Any) -> float:
    L.seed_everything(1)
    backbone = BackboneConfig(d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32, qk_norm="head")
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=FSDP2Strategy() if world > 1 else "auto",
        max_steps=4,
        precision=precision,
        callbacks=[EMA(0.9), SampleLogger(2, length=16, steps=4, prompts=["a"], infills=[])],
        **QUIET,
    )
    module = PretrainingModule(backbone, lr=1e-2, random_length=0.0, **options)
    trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=32, batch_size=4 // world, val_rows=4))
    return float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("world", [1, 2])
def test_recomputing_activations_changes_nothing(forked: Any, prepared: Path, world: int) -> None:
    plain, recomputed = (
        forked(lambda rank, on=on: final_loss(rank, prepared, world, "32-true", checkpointing=on), world)
        for on in (False, True)
    )
    assert recomputed == plain


def test_mixed_precision_shards_train_validate_and_sample(forked: Any, prepared: Path) -> None:
    """Blocks gathered in bfloat16; the loss stays near that of float32."""
    [exact] = forked(lambda rank: final_loss(rank, prepared, 1, "32-true"), 1)
    mixed = forked(lambda rank: final_loss(rank, prepared, 2, "bf16-mixed"), 2)
    assert mixed[0] == mixed[1] == pytest.approx(exact, rel=2e-2)
