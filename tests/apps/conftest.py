"""Tiny checkpoints with the tokenizer of bytes: a run's file, and a published folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import Checkpoint, load_checkpoint
from lit_llada.checkpoint.runs import write_run
from lit_llada.checkpoint.source import read_files
from lit_llada.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint with random weights and 258 tokens; copy it before something is written beside it."""
    folder = tmp_path_factory.mktemp("run")
    Tokenizer.byte().save(folder)
    torch.manual_seed(3)
    net = Backbone(BackboneConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=2, ff_dim=64))
    write_run(net, 257, read_files(folder), folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


@pytest.fixture
def checkpoint(run_file: Path) -> Checkpoint:
    return load_checkpoint(run_file)
