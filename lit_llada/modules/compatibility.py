"""Refuses what does not fit together: module and data, options and trainer, checkpoint and module."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.strategies import FSDPStrategy

from lit_llada.backbone.config import BackboneConfig
from lit_llada.checkpoint.source import Source
from lit_llada.checkpoint.vocabulary import read_tokenizer
from lit_llada.errors import UserError
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.training.lora import LoRA


def check_kind(model: str, learns_from: str, data: Any) -> None:
    """Refuse conversations where pairs are needed, and the like.

    Args:
        model: name of the module's class.
        learns_from: the kind of data that it needs.
        data: the datamodule; None for none.

    Raises:
        UserError: names both.
    """
    for folder in getattr(data, "folders", []):
        if folder.kind != learns_from:
            raise UserError(
                f"model {model} learns from {learns_from} data, and {folder.location} holds"
                f" {folder.kind}: give a folder made by `lit-llada prepare {learns_from}`, or another recipe"
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


def check_vocabulary_size(backbone: BackboneConfig, needed: int) -> None:
    """Refuse an embedding with fewer rows than the data have tokens.

    Raises:
        UserError: with what to do.
    """
    if backbone.vocabulary < needed:
        raise UserError(
            f"backbone.vocab_size is {backbone.vocabulary}, but the data's tokenizer has {needed} tokens; "
            "leave vocab_size out or prepare the data with the model's tokenizer"
        )


def check_mask_token(backbone: BackboneConfig, mask_id: int) -> None:
    """Refuse a mask token that the embedding does not have.

    Raises:
        UserError: names both.
    """
    if not 0 <= mask_id < backbone.vocabulary:
        raise UserError(f"model.mask_id {mask_id} lies outside the vocabulary 0..{backbone.vocabulary - 1}")


def check_checkpoint(checkpoint: dict[str, Any], backbone: BackboneConfig | None, lora: LoRA | None) -> None:
    """Refuse a checkpoint of another architecture, or with other adapters.

    Args:
        checkpoint: what Lightning has read; of shards, the part beside them.
        backbone: the module's; None takes any.
        lora: the module's adapters; None for none.

    Raises:
        UserError: names the fields that differ.
    """
    saved, saved_lora = checkpoint.get("backbone"), checkpoint.get("lora")
    if saved is None:
        raise UserError("this checkpoint was not written by lit_llada: it does not say what its backbone is")
    mine = saved if backbone is None else asdict(backbone)
    mine["vocab_size"] = mine["vocab_size"] or saved["vocab_size"]
    differ = [f"{key} {saved.get(key)} (now {mine[key]})" for key in mine if saved.get(key) != mine[key]]
    if differ:
        raise UserError(f"the checkpoint's backbone differs in {', '.join(differ)}; use its model overlay")
    now = asdict(lora) if lora else None
    if (saved_lora and {"base": "float32", **saved_lora}) != now:  # older checkpoints do not say it
        raise UserError(f"the checkpoint's model.lora is {saved_lora} (now {now}); leave it as it was")


def check_start(init_from: str | None, read: str | None, saved: str | None) -> None:
    """Refuse to go on when ``init_from``, just read again to be the reference, holds other weights than at the start.

    Args:
        init_from: the checkpoint that the run started from, for the message.
        read: digest of the weights that were just read; None if they were not.
        saved: digest in the run's own checkpoint.

    Raises:
        UserError: they differ.
    """
    if read not in (None, saved):
        raise UserError(f"model.init_from {init_from} does not hold the weights that this run started from")
