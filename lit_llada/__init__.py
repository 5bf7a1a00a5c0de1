"""A Lightning-based, modular experiment kit for masked diffusion language models: LLaDA, LLaDA 1.5, LLaDA-MoE.

    import lit_llada

    checkpoint = lit_llada.load_checkpoint("runs/demo/checkpoints/step=0000450.ckpt")
    for sample in lit_llada.sample(checkpoint, ["The value of ", "A list is "], new_tokens=32):
        print(sample.text, sample.forwards)
    print(lit_llada.evaluate("runs/sft/checkpoints/step=0000800.ckpt", "data/repl"))

A public name is imported when it is first asked for, so that ``import lit_llada`` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lit_llada.version import __version__ as __version__

if TYPE_CHECKING:
    from lit_llada.backbone.config import SIZES, BackboneConfig
    from lit_llada.backbone.transformer import Backbone
    from lit_llada.checkpoint.load import Checkpoint, load_checkpoint
    from lit_llada.checkpoint.published.write import export_checkpoint
    from lit_llada.data.answer_datamodule import AnswerDataModule
    from lit_llada.data.text_datamodule import DiffusionDataModule
    from lit_llada.errors import UserError
    from lit_llada.evaluation.calibration import Calibration, calibrate
    from lit_llada.evaluation.comparison import Comparison, evaluate
    from lit_llada.modules.pretraining import PretrainingModule
    from lit_llada.modules.sft import SFTModule
    from lit_llada.modules.vrpo import VRPOModule
    from lit_llada.objectives.preference import Estimator
    from lit_llada.prepare.conversations import prepare_chat, prepare_preference
    from lit_llada.prepare.documents import prepare_text
    from lit_llada.prepare.own_mistakes import prepare_own_mistakes
    from lit_llada.sampling.film import write_film
    from lit_llada.sampling.generate import generate
    from lit_llada.sampling.plan import Plan
    from lit_llada.sampling.sample import Sample, sample
    from lit_llada.text.chat_template import ChatTemplate
    from lit_llada.text.specials import Specials
    from lit_llada.text.tokenizer import Tokenizer
    from lit_llada.training.lora import LoRA
    from lit_llada.training.schedules import Schedule
    from lit_llada.training.strategies import FSDP2Strategy
    from lit_llada.training.trainer import Trainer

_HOMES = {
    "AnswerDataModule": "data.answer_datamodule",
    "Backbone": "backbone.transformer",
    "BackboneConfig": "backbone.config",
    "Calibration": "evaluation.calibration",
    "ChatTemplate": "text.chat_template",
    "Checkpoint": "checkpoint.load",
    "Comparison": "evaluation.comparison",
    "DiffusionDataModule": "data.text_datamodule",
    "Estimator": "objectives.preference",
    "FSDP2Strategy": "training.strategies",
    "LoRA": "training.lora",
    "Plan": "sampling.plan",
    "PretrainingModule": "modules.pretraining",
    "SFTModule": "modules.sft",
    "SIZES": "backbone.config",
    "Sample": "sampling.sample",
    "Schedule": "training.schedules",
    "Specials": "text.specials",
    "Tokenizer": "text.tokenizer",
    "Trainer": "training.trainer",
    "UserError": "errors",
    "VRPOModule": "modules.vrpo",
    "calibrate": "evaluation.calibration",
    "evaluate": "evaluation.comparison",
    "export_checkpoint": "checkpoint.published.write",
    "generate": "sampling.generate",
    "load_checkpoint": "checkpoint.load",
    "prepare_chat": "prepare.conversations",
    "prepare_own_mistakes": "prepare.own_mistakes",
    "prepare_preference": "prepare.conversations",
    "prepare_text": "prepare.documents",
    "sample": "sampling.sample",
    "write_film": "sampling.film",
}

__all__ = [
    "SIZES",
    "AnswerDataModule",
    "Backbone",
    "BackboneConfig",
    "Calibration",
    "ChatTemplate",
    "Checkpoint",
    "Comparison",
    "DiffusionDataModule",
    "Estimator",
    "FSDP2Strategy",
    "LoRA",
    "Plan",
    "PretrainingModule",
    "SFTModule",
    "Sample",
    "Schedule",
    "Specials",
    "Tokenizer",
    "Trainer",
    "UserError",
    "VRPOModule",
    "calibrate",
    "evaluate",
    "export_checkpoint",
    "generate",
    "load_checkpoint",
    "prepare_chat",
    "prepare_own_mistakes",
    "prepare_preference",
    "prepare_text",
    "sample",
    "write_film",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_llada' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lit_llada.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
