"""A tiny run for the callbacks: bytes in a fixed order, a net of a few thousand weights, real modules and loggers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_llada.backbone.config import BackboneConfig
from lit_llada.data.batch import Batch
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.text.tokenizer import Tokenizer

LENGTH = 16


def batch(keys: list[int]) -> Batch:
    tokens = (torch.tensor(keys)[:, None] * 7 + torch.arange(LENGTH)) % 64 + 32
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens), torch.tensor(keys))


class Data(L.LightningDataModule):
    """Every training batch has the same rows; validation has 12 rows, dealt out to the ranks."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.tokenizer = Tokenizer.byte()
        self.vocab_size, self.mask_id = self.tokenizer.vocab_size, self.tokenizer.mask_id
        self.bytes_per_token, self.unigram_nll = 0.8, 3.0
        split = {"tokens": 5, "documents": 1, "bytes": 4, "chunks": []}
        self.manifests = [{"format": 1, "tokenizer": {"digest": "abc"}, "splits": {"train": split}}]

    def train_dataloader(self) -> Any:
        return DataLoader([batch(list(range(self.size)))] * 64, batch_size=None)

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader([batch([i, i + 1]) for i in range(2 * rank, 12, 2 * world)], batch_size=None)


def make_module(experts: int = 0, **options: Any) -> PretrainingModule:
    sparse = {"n_experts": experts, "experts_per_token": 2, "expert_dim": 16} if experts else {}
    net = BackboneConfig(d_model=16, n_layers=2, n_heads=2, ff_dim=32, **sparse)  # type: ignore[arg-type]
    return PretrainingModule(net, lr=1e-2, random_length=0.0, **options)


def make_trainer(callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_steps": 4, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "limit_val_batches": 0, "use_distributed_sampler": False, "log_every_n_steps": 1,
    }  # fmt: skip
    return L.Trainer(callbacks=callbacks, **(defaults | options))


class Toy:
    """What the tests use: ``toy.module()``, ``toy.data()``, ``toy.trainer([...])``, ``toy.fit([...])``."""

    module = staticmethod(make_module)
    trainer = staticmethod(make_trainer)
    data = Data
    batch = staticmethod(batch)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fit(self, callbacks: list[L.Callback], experts: int = 0, ckpt: str | None = None, **options: Any) -> Any:
        torch.manual_seed(3)
        module, trainer = make_module(experts), make_trainer(callbacks, **options)
        trainer.fit(module, Data(), ckpt_path=ckpt)
        return module, trainer

    def board(self) -> TensorBoardLogger:
        return TensorBoardLogger(str(self.folder), name="", version="", default_hp_metric=False)

    def events(self) -> EventAccumulator:
        events = EventAccumulator(str(self.folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
        return events.Reload()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def fsdp2() -> Callable[[], Any]:
    from lit_llada.training.strategies import FSDP2Strategy

    return FSDP2Strategy
