"""A source: an opened checkpoint of any kind, with its configuration, its tensors and the text files beside it.

Nothing is read until a parameter asks for it, so that a net and one tensor are all that is ever in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_llada.backbone.adapters import without_adapters
from lit_llada.backbone.config import BackboneConfig
from lit_llada.errors import UserError

META = "meta.pt"  # what Lightning calls the part of a sharded checkpoint that is not sharded

# The small files of a folder that travel with the weights, as they are.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEXT_FILES = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "README.md", "LICENSE", "configuration_*.py",
    "modeling_*.py",
)  # fmt: skip


@dataclass
class Source:
    """An opened checkpoint.

    Args:
        path: where it is.
        config: the architecture of its net.
        dtype: number type that its weights are stored in; the widest where they differ.
        write: ``write(name, target)`` fills a whole tensor with our parameter or buffer of that name.
        files: the text files beside it, name -> contents.
        mask_id: the mask token, if it says so.
        tokenizer_digest: digest of the tokenizer that the weights were trained with, where that is known.
        run_card: card of the run that made it.
    """

    path: Path
    config: BackboneConfig
    dtype: torch.dtype
    write: Callable[[str, Tensor], None]
    files: dict[str, str]
    mask_id: int | None = None
    tokenizer_digest: str | None = None
    run_card: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def fill(net: nn.Module, source: Source) -> None:
    """Write all weights into a net that is real, on any device, sharded or not.

    A sharded parameter is assembled whole, of which this rank keeps its part, and gone before the next one. Adapters
    stay as they are.

    Raises:
        UserError: names the tensor that is missing, of another shape, or not finite.
    """
    for name, target in without_adapters([*net.named_parameters(), *net.named_buffers()]):
        if isinstance(target, DTensor):
            whole = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            source.write(name, whole)
            # Every rank has read the same file: nothing has to be sent.
            target.copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None))
        else:
            source.write(name, target)


def copy_checked(target: Tensor, tensor: Tensor, what: str) -> None:
    """``target.copy_(tensor)`` for weights that fit and stay finite in the target's dtype.

    Raises:
        UserError: begins with ``what``.
    """
    if target.shape != tensor.shape:
        raise UserError(f"{what} has shape {list(tensor.shape)}, and the configuration says {list(target.shape)}")
    limit = torch.finfo(target.dtype).max
    # The extremes carry NaN along, and unlike isfinite() need no memory.
    for extreme in torch.aminmax(tensor):
        if not abs(float(extreme)) <= limit:
            raise UserError(
                f"{what} holds {float(extreme)}, which is no finite {str(target.dtype).removeprefix('torch.')}"
            )
    target.copy_(tensor)


def read_files(folder: Path, patterns: Sequence[str] = TEXT_FILES) -> dict[str, str]:
    """The text files of a folder that travel with the weights, name -> contents."""
    found = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {file.name: file.read_text(encoding="utf-8", errors="surrogateescape") for file in found}


def read_json(text: str, where: str | Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object")
    return value
