"""lit_llada: a Lightning-based, modular experiment kit for masked diffusion language models.

The public names below are imported when they are first asked for, so that ``import lit_llada`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_llada.backbone.config import SIZES, BackboneConfig
    from lit_llada.backbone.transformer import Backbone
    from lit_llada.checkpoint.export import export_checkpoint
    from lit_llada.checkpoint.load import load_checkpoint
    from lit_llada.data.datamodule import DiffusionDataModule
    from lit_llada.data.prepare import prepare_text
    from lit_llada.data.tokenizer import Tokenizer
    from lit_llada.errors import UserError
    from lit_llada.modules.pretraining import PretrainingModule
    from lit_llada.sampling.generate import generate
    from lit_llada.training.strategies import FSDP2Strategy
    from lit_llada.training.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "SIZES",
    "Backbone",
    "BackboneConfig",
    "DiffusionDataModule",
    "FSDP2Strategy",
    "PretrainingModule",
    "Tokenizer",
    "Trainer",
    "UserError",
    "export_checkpoint",
    "generate",
    "load_checkpoint",
    "prepare_text",
]

_HOMES = {
    "SIZES": "backbone.config",
    "Backbone": "backbone.transformer",
    "BackboneConfig": "backbone.config",
    "DiffusionDataModule": "data.datamodule",
    "FSDP2Strategy": "training.strategies",
    "PretrainingModule": "modules.pretraining",
    "Tokenizer": "data.tokenizer",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "export_checkpoint": "checkpoint.export",
    "generate": "sampling.generate",
    "load_checkpoint": "checkpoint.load",
    "prepare_text": "data.prepare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_llada' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_llada.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
