"""The batches that a module gets, and where documents begin and end inside a packed row."""

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


class AnswerBatch(NamedTuple):
    """S examples, each a prompt with its answers, in B rows of T tokens: one to a row, or packed with others.

    A preference batch holds P pairs as S = 2P examples: all chosen answers, then all rejected ones.
    """

    tokens: Tensor  # [B, T] int64, clean ids
    documents: Tensor  # [B, T] int64, number of the example in its row: 0, 1, ...; -1 for padding that nobody sees
    answers: Tensor  # [S, A] int64, flat positions b*T + i of the tokens that may be masked; -1 beyond the answer
    keys: Tensor  # [S] int64, names each draw of noise: the place in the global order (of the pair, for a preference)
    records: Tensor  # [S] int64, the number of the record, over all folders of the split: the same in every epoch
    cu_seqlens: Tensor | None = None  # int32, see flash_layout(documents); None leaves it to whoever needs it

    @property
    def lengths(self) -> Tensor:
        """``[S]`` tokens of each answer."""
        return (self.answers >= 0).sum(1)


def best_fit(lengths: list[int], capacity: int) -> list[tuple[int, int]]:
    """Where each of some pieces goes in rows of `capacity`: (row, offset), in the order of `lengths`.

    Longest first, each into the fullest row that still has room (best fit decreasing).
    """
    places, used = [(0, 0)] * len(lengths), list[int]()
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = max((r for r in range(len(used)) if used[r] + lengths[i] <= capacity), key=used.__getitem__, default=None)
        if row is None:
            row = len(used)
            used.append(0)
        places[i] = (row, used[row])
        used[row] += lengths[i]
    return places
