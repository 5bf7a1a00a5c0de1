"""What does one training batch look like, and where do documents begin and end inside a packed row?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B rows of T tokens. Nothing random is drawn here: noise is a function of `keys`."""

    tokens: Tensor  # [B, T] int64, clean ids
    maskable: Tensor  # [B, T] bool, may be masked and counts in the loss
    documents: Tensor  # [B, T] int64, number of the document inside the row: 0, 1, ...
    keys: Tensor  # [B] int64, names the row: its place in the global order (training) or in the split (validation)


def document_ids(tokens: Tensor, eos_id: int) -> Tensor:
    """Number the documents of each row: `tokens` [B, T] -> [B, T] int64. A document ends with its EOS."""
    ends = (tokens == eos_id).long()
    return ends.cumsum(dim=-1) - ends  # an EOS still belongs to the document that it ends


def collate(keys: Tensor, tokens: Tensor, eos_id: int, real: Tensor | None = None) -> Batch:
    """Make a Batch of packed rows.

    `tokens` [B, T] of any integer type, `keys` [B]; `real` [B] bool marks rows that count, the others only
    fill a batch up (all their positions are unmaskable, so they add nothing to a loss or to its count).
    """
    tokens = tokens.long()
    maskable = torch.ones_like(tokens, dtype=torch.bool)
    if real is not None:
        maskable &= real[:, None]
    return Batch(tokens, maskable, document_ids(tokens, eos_id), keys)
