"""What does a run start from, and do its data speak the same language?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lit_llada.backbone.config import BackboneConfig
from lit_llada.checkpoint.load import open_source
from lit_llada.checkpoint.source import META, Source
from lit_llada.checkpoint.vocabulary import read_tokenizer
from lit_llada.errors import UserError
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.training.lora import LoRA


def architecture(resumed: str | Path | None, start: str, data: Any) -> tuple[BackboneConfig, int | None]:
    """The backbone of a run that starts from a checkpoint, and its mask token.

    Args:
        resumed: the run's own checkpoint, if it goes on from one: then ``start`` may be gone.
        start: ``model.init_from``.
        data: the datamodule; None for none.

    Raises:
        UserError: there is no such checkpoint, or the data were prepared with another tokenizer.
    """
    if resumed is not None:
        path = Path(resumed)
        sharded = path.is_dir()
        saved = torch.load(path / META if sharded else path, map_location="cpu", mmap=not sharded, weights_only=True)
        if "backbone" not in saved:
            raise UserError(f"{path} was not written by lit_llada: it does not say what its backbone is")
        return BackboneConfig(**saved["backbone"]), saved["mask_id"]
    source = open_source(start)
    if (tokenizer := getattr(data, "tokenizer", None)) is not None:
        check_vocabulary(source, tokenizer)
    return copy.copy(source.config), source.mask_id


def check_kind(module: Any, data: Any) -> None:
    """Refuse conversations where pairs are needed, and the like.

    Raises:
        UserError: names both.
    """
    for folder in getattr(data, "folders", []):
        if folder.kind != module.learns_from:
            raise UserError(
                f"model {type(module).__name__} learns from {module.learns_from} data, and {folder.location} holds"
                f" {folder.kind}: give a folder made by `lit-llada prepare {module.learns_from}`, or another recipe"
            )


def check_base(lora: LoRA | None, trainer: L.Trainer) -> None:
    """Refuse a bfloat16 base where inputs are not cast to bfloat16, or where weights of one dtype are asked for.

    Raises:
        UserError: with what to set instead.
    """
    if lora is None or lora.base != "bfloat16":
        return
    if trainer.precision not in ("bf16-mixed", "bf16-true"):
        raise UserError(
            f"model.lora.base bfloat16 cannot be multiplied under trainer.precision {trainer.precision}: set"
            " trainer.precision to bf16-mixed, or model.lora.base to float32"
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        raise UserError(
            "model.lora.base bfloat16: FSDP1 flattens weights of one dtype only; use FSDP2"
            " (configs/cluster/fsdp2.yaml), or set model.lora.base to float32"
        )


def check_residual(residual: str, trainer: L.Trainer) -> None:
    """Refuse a bfloat16 residual stream where the blocks work in float32.

    Raises:
        UserError: with what to set instead.
    """
    if residual == "bfloat16" and not str(trainer.precision).startswith("bf16"):
        raise UserError(
            f"model.residual bfloat16 needs trainer.precision bf16-mixed, and it is {trainer.precision}: set that, or"
            " model.residual to float32"
        )


def check_vocabulary(source: Source, tokenizer: Tokenizer) -> None:
    """Refuse data in another vocabulary than the checkpoint's.

    Raises:
        UserError: with what to do.
    """
    theirs = read_tokenizer(source.files, source.mask_id)
    if source.tokenizer_digest is not None:
        alike = source.tokenizer_digest == tokenizer.digest
    elif theirs is not None:  # which token ends a document is the data's own choice
        alike = (theirs.model.to_str(), theirs.mask_id) == (tokenizer.model.to_str(), tokenizer.mask_id)
    else:
        alike = source.mask_id in (None, tokenizer.mask_id) and tokenizer.vocab_size <= source.config.vocabulary
    if not alike:
        raise UserError(
            f"model.init_from {source.path} was trained with another tokenizer than the data's: prepare the data with"
            " --tokenizer and the folder of the checkpoint's own"
        )
