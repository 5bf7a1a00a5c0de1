"""Builds a module's net: from its options, a checkpoint or the data, and never twice in memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_into, open_source
from lit_llada.checkpoint.source import META
from lit_llada.errors import UserError
from lit_llada.modules.compatibility import check_mask_token, check_vocabulary, check_vocabulary_size
from lit_llada.training.lora import LoRA, add_adapters, init_adapters
from lit_llada.training.sharding import parallelise


def build_net(
    config: BackboneConfig,
    *,
    attention: Backend = "auto",
    residual: torch.dtype | None = None,
    lora: LoRA | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
    mesh: DeviceMesh | None = None,
    mixed: bool = False,
    device: torch.device | None = None,
    weights: str | None = None,
) -> Backbone:
    """Build a net on the meta device, parallelise it, and only then give it memory and weights.

    Args:
        config: the architecture, its vocabulary set.
        attention: the attention backend.
        residual: dtype of the residual stream; None for that of the norms.
        lora: the adapters; None for none.
        checkpointing, compiled, mesh, mixed: see :func:`~lit_llada.training.sharding.parallelise`.
        device: where a sharded net gets its memory; None for the CPU, from where Lightning moves it.
        weights: checkpoint to read; None draws fresh weights.
    """
    with torch.device("meta"):
        net = Backbone(config, attention)
    net.residual = residual
    if lora is not None:
        add_adapters(net, lora)
    parallelise(net, checkpointing=checkpointing, compiled=compiled, mesh=mesh, mixed=mixed)
    net.to_empty(device=device or torch.device("cpu"))
    if weights is None:
        net.init_weights()
    else:
        load_into(net, weights)
    if lora is not None:
        init_adapters(net)
    return net


@torch.no_grad()
def copy_weights(source: Backbone, target: Backbone) -> None:
    """Copy the parameters of one net into another that is built and sharded the same way."""
    for to, by in zip(target.parameters(), source.parameters(), strict=True):
        to.copy_(by)


def architecture(resumed: str | Path | None, start: str, data: Any) -> tuple[BackboneConfig, int | None]:
    """Read the backbone of a run that starts from a checkpoint, and its mask token.

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


def complete(
    backbone: BackboneConfig | None, mask_id: int | None, start: tuple[BackboneConfig, int | None] | None, data: Any
) -> tuple[BackboneConfig, int]:
    """Fill in what the options leave open, first from the checkpoint, then from the data, and check that all agree.

    Args:
        backbone: ``model.backbone``; None leaves it to the checkpoint.
        mask_id: ``model.mask_id``; None leaves it to the checkpoint or the data.
        start: the checkpoint's backbone and mask token, from :func:`architecture`; None for no checkpoint.
        data: the datamodule; None for none.

    Raises:
        UserError: something is still open, or the vocabularies do not fit.
    """
    if start is not None:
        backbone = start[0] if backbone is None else _with_vocabulary(backbone, start[0].vocab_size)
        mask_id = start[1] if mask_id is None else mask_id
    if backbone is None:
        raise UserError("model.backbone is not set; add a model overlay, or give model.init_from")
    if data is not None:
        backbone = _with_vocabulary(backbone, data.vocab_size)
        mask_id = data.mask_id if mask_id is None else mask_id
        check_vocabulary_size(backbone, data.vocab_size)
    if mask_id is None:
        raise UserError("model.mask_id is not set; give it, or give data whose tokenizer tells it")
    check_mask_token(backbone, mask_id)
    return backbone, mask_id


def _with_vocabulary(backbone: BackboneConfig, size: int | None) -> BackboneConfig:
    """The same backbone with a vocabulary of this size, if it has none yet."""
    return backbone if backbone.vocab_size is not None else replace(backbone, vocab_size=size)
