"""Small conversations, pairs and checkpoints to start from, and what trains on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.own import write_run
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.training.schedules import Schedule
from lit_llada.training.trainer import Trainer

DENSE = BackboneConfig(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, ff_dim=64)
SPARSE = BackboneConfig(d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32, qk_norm="head")
BACKBONES = {"dense": DENSE, "moe": SPARSE}


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of conversations, bytes as tokens."""
    folder = tmp_path_factory.mktemp("chats")
    rows = [{"prompt": f"{i}?", "response": f"{i} is {'odd' if i % 2 else 'even'}" * (1 + i % 2)} for i in range(60)]
    file = write_rows(folder / "rows.jsonl", rows)
    return prepare_chat([file], out=str(folder / "data"), val_fraction=0.2, workers=1)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of preference pairs, bytes as tokens."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [{"prompt": f"{i}?", "chosen": f"{i} is {i % 7}", "rejected": "no" * (1 + i % 3)} for i in range(60)]
    file = write_rows(folder / "rows.jsonl", rows)
    return prepare_preference([file], out=str(folder / "data"), val_fraction=0.2, workers=1)


@pytest.fixture(scope="session")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of freshly drawn nets, dense and sparse."""
    tokenizer = Tokenizer.byte()
    found = {}
    for name, config in BACKBONES.items():
        config = BackboneConfig(**{**vars(config), "vocab_size": tokenizer.vocab_size})
        net = Backbone(config)
        net.init_weights(1)
        with torch.no_grad():  # a fresh net says nearly the same of everything
            for parameter in net.parameters():
                parameter.mul_(2)
        found[name] = tmp_path_factory.mktemp("start") / f"{name}.ckpt"
        write_run(net, tokenizer.mask_id, {}, found[name])
    return found


class Curve(L.Callback):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})


def trainer_of(root: Path, *callbacks: L.Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", precision="32-true", gradient_clip_val=1.0, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        num_sanity_val_steps=0, **{"max_steps": 6, **options},
    )  # fmt: skip


def module_of(start: Path, **options: Any) -> VRPOModule:
    return VRPOModule(
        **{"init_from": str(start), "lr": 3e-3, "schedule": Schedule(warmup_steps=1), "estimator": Estimator(3)}
        | options
    )


def data_of(folder: Path, **options: Any) -> AnswerDataModule:
    return AnswerDataModule(str(folder), **{"batch_size": 4, "length": 64, "eos": "one", **options})
