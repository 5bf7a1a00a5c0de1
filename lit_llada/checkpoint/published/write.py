"""Writes a net as a folder in the published layout: ``config.json``, safetensors by size, tokenizer, model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import Checkpoint
from lit_llada.checkpoint.published.config_json import read_config, same_net, write_config
from lit_llada.checkpoint.published.families import Family, Fields
from lit_llada.checkpoint.published.keymaps import pieces
from lit_llada.checkpoint.published.model_card import model_card
from lit_llada.checkpoint.published.read import INDEX, SINGLE
from lit_llada.checkpoint.source import read_json
from lit_llada.errors import UserError
from lit_llada.files import replacing_folder

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_checkpoint(
    checkpoint: Checkpoint,
    target: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
) -> Path:
    """Write a checkpoint as a folder that :func:`load_checkpoint` and the published code read.

    A net that came from a published folder goes back as it came: the same fields, names, shapes and files. Any other
    becomes LLaDA, LLaDA-MoE or, if it is causal, a Llama.

    Args:
        checkpoint: from :func:`load_checkpoint`.
        target: the folder; it must not exist.
        dtype: number type of the weights; None keeps that of the net.
        max_shard_size: bytes of one file at most, as a number or like ``5GB``; a single tensor may be larger.

    Returns:
        ``target``.

    Raises:
        UserError: the target exists, or the published format cannot say what this net is.
    """
    net, target = checkpoint.net, Path(target)
    if target.exists():
        raise UserError(f"{target} exists; remove it or give another name")
    dtype = dtype or net.embed.weight.dtype
    family, fields, original = published_fields(checkpoint, dtype)
    limit = byte_size(max_shard_size)
    files = {**checkpoint.files, "config.json": json.dumps(fields, indent=2) + "\n"}
    if not original or "README.md" not in files:
        files["README.md"] = model_card(checkpoint, fields)
    with replacing_folder(target) as part:
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        _write_tensors(dict(published_tensors(net, family)), part, dtype, limit)
    return target


def published_fields(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Family, Fields, bool]:
    """The family and the fields of ``config.json``, and whether they are those that it came with: if these still fit.

    Raises:
        UserError: names what the format cannot say.
    """
    config, name = checkpoint.net.config, str(dtype).removeprefix("torch.")
    text = checkpoint.files.get("config.json")
    if text is not None:
        fields = read_json(text, "config.json")
        family, said = read_config(fields)
        if same_net(config, said):
            return family, fields | {key: name for key in ("dtype", "torch_dtype") if key in fields}, True
    family, fields = write_config(config)
    ids = {"mask_token_id": checkpoint.mask_id, "eos_token_id": checkpoint.eos_id, "pad_token_id": checkpoint.pad_id}
    return family, dict(sorted((fields | ids | {"torch_dtype": name}).items())), False


def published_tensors(net: Backbone, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Published names and views of the net's own tensors; nothing is copied."""
    for name, tensor in net.state_dict().items():
        for piece in pieces(family.keys, name, tensor.shape, net.config):
            yield piece.name, piece.of(tensor)


def byte_size(text: str | int) -> int:
    """``5GB`` (decimal), ``5GiB`` or a number -> bytes.

    Raises:
        UserError: it is none of them, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(text).strip())
    if match is None or match[2].upper() not in UNITS or not (size := int(float(match[1]) * UNITS[match[2].upper()])):
        raise UserError(f"max_shard_size {text}: give bytes, or a size like 500MB, 5GB or 2GiB")
    return size


def _write_tensors(tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype, limit: int) -> None:
    """One file, or as many as the limit asks for with an index; one file's tensors are in memory at once."""
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > limit:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        whole = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(whole, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
