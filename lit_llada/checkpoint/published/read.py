"""Reads a published folder: ``config.json`` and safetensors, one file or shards, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.published.config_json import read_config
from lit_llada.checkpoint.published.families import AUTOREGRESSIVE, Family
from lit_llada.checkpoint.published.keymaps import pieces
from lit_llada.checkpoint.source import Source, copy_checked, read_files, read_json
from lit_llada.checkpoint.vocabulary import first, named_mask, with_mask
from lit_llada.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
VOCABULARY = ("embed.weight", "head.weight")  # what has a row for every token


class Stored(NamedTuple):
    """Where a tensor is."""

    file: Path
    dtype: torch.dtype
    shape: list[int]


def open_published(folder: Path, mask_id: int | None = None, causal: bool = False) -> Source:
    """A published folder of LLaDA or LLaDA-MoE, or an autoregressive one of the Llama family to start from.

    Args:
        folder: with ``config.json`` and safetensors.
        mask_id: the mask token; None takes that of ``config.json``, of the tokenizer, or of the published model. An
            autoregressive net without one gets a new token, whose rows are the mean of all rows.
        causal: an autoregressive net keeps its causal attention.

    Raises:
        UserError: a file, tensor or field is missing, unknown, or not what the others say.
    """
    files = read_files(folder)
    if "config.json" not in files:
        raise UserError(f"{folder}: no config.json; give a folder in the Hugging Face layout")
    fields = read_json(files["config.json"], folder / "config.json")
    try:
        family, config = read_config(fields)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    rows, theirs = config.vocabulary, family.ids.get("mask")
    known = first(mask_id, fields.get("mask_token_id"), named_mask(files), theirs if (theirs or 0) < rows else None)
    mask_id, new = known, set[int]()
    if family is AUTOREGRESSIVE:
        if known is None:
            files, mask_id = with_mask(files, rows, first(fields.get("eos_token_id")))
            new = {mask_id}
        size = max(rows, (mask_id or 0) + 1)
        config, new = replace(config, vocab_size=size, causal=causal), new | {*range(rows, size)}
    stored = stored_tensors(folder)
    check_names(folder, stored, family, config)

    def write(name: str, target: Tensor) -> None:
        vocabulary = name in VOCABULARY
        published = target[:rows] if vocabulary else target
        for piece in pieces(family.keys, name, published.shape, config):
            with open_file(stored[piece.name].file) as file:
                tensor = file.get_tensor(piece.name)
                copy_checked(piece.of(published), tensor, f"{stored[piece.name].file}: {piece.name}")
        if vocabulary and new:
            target[sorted(new)] = published.mean(0, dtype=torch.float32).to(target.dtype)

    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in stored.values()))
    return Source(folder, config, dtype, write, files, mask_id)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, from the headers of its files alone.

    Raises:
        UserError: names the file that is missing or damaged, or the tensor that is not where the index says.
    """
    index = folder / INDEX
    if index.is_file():
        places = read_json(index.read_text(), index).get("weight_map", {})
    elif (folder / SINGLE).is_file():
        places = None
    elif shards := sorted(folder.glob("model-*.safetensors")):
        raise UserError(f"{folder}: {shards[0].name} is a part, and {INDEX} is missing")
    else:
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; weights have to be safetensors")
    stored: dict[str, Stored] = {}
    for name in sorted(set(places.values())) if places is not None else [SINGLE]:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: shard {name} is missing; {INDEX} lists it")
        with open_file(folder / name) as file:
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                part = file.get_slice(key)
                if part.get_dtype() not in DTYPES:
                    raise UserError(f"{folder / name}: {key} is stored as {part.get_dtype()}; give unquantised weights")
                if places is None or places.get(key) == name:
                    stored[key] = Stored(folder / name, DTYPES[part.get_dtype()], part.get_shape())
    if lost := sorted(set(places or ()) - stored.keys()):
        raise UserError(f"{folder}: {INDEX} says that {lost[0]} is in {places[lost[0]]}, and it is not")  # type: ignore
    return stored


def check_names(folder: Path, stored: dict[str, Stored], family: Family, config: BackboneConfig) -> None:
    """Hold the names of the stored tensors against those that the architecture has.

    Raises:
        UserError: names the first that is missing or left over, or a stored head that is not the embedding it is
            tied to.
    """
    with torch.device("meta"):
        state = Backbone(config).state_dict()
    expected = {piece.name for name, t in state.items() for piece in pieces(family.keys, name, t.shape, config)}
    [embed], [head] = family.keys["embed.weight"], family.keys["head.weight"]
    extra = {name for name in stored.keys() - expected if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings and head in extra and embed in stored:
        with open_file(stored[head].file) as one, open_file(stored[embed].file) as other:
            if not torch.equal(one.get_tensor(head), other.get_tensor(embed)):
                raise UserError(f"{folder}: the head is tied to the embedding, but {head} is not equal to {embed}")
        extra.remove(head)
    for what, names in (("is missing", expected - stored.keys()), ("is not of this architecture", extra)):
        if names:
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(
                f"{folder}: tensor {min(names)} {what}{others}; config.json and weights do not belong together"
            )


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped only while it is open: what has been read does not stay in memory.

    Raises:
        UserError: it is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is cut off or damaged ({error}); fetch it again") from None
