"""Lays prompts and answers out in a batch: one to a row, or several; with EOS after them, or without.

Pure functions of the examples, but for `AnswerBatches`, which reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_llada.backbone.packed import flash_layout
from lit_llada.data.batch import AnswerBatch, best_fit
from lit_llada.data.order import AnyOrder, draw_choice
from lit_llada.data.streaming import Batches, RecordRows

Layout = Literal["padded", "packed"]
Eos = Literal["batch", "one", "block"]
Turns = Literal["one", "all"]


class Example(NamedTuple):
    """A conversation up to the end of its last answer."""

    ids: np.ndarray  # [N] clean ids
    answers: np.ndarray  # [M] int64, the places in it that may be masked, in order


def pick_answers(ids: Tensor, spans: Tensor, turn: int | None) -> Example:
    """Make an example of a record: all answers, or answer number `turn` with what was said before it.

    Args:
        ids: ``[N]`` ids of the record.
        spans: ``[2 n]`` places where each answer begins and stops.
        turn: number of the answer; None for all.
    """
    pairs = spans.long().view(-1, 2).numpy()
    pairs = pairs if turn is None else pairs[turn : turn + 1]
    return Example(ids.long().numpy()[: pairs[-1, 1]], np.concatenate([np.arange(a, b) for a, b in pairs]))


def extra_eos(examples: Sequence[Example], eos: Eos, block_length: int) -> list[int]:
    """How many EOS each answer gets besides its own end, as part of it.

    ``batch``: up to the longest example, as in LLaDA's SFT (a model learns to fill what is left of its canvas).
    ``one``: none; ``block``: up to a multiple of `block_length` tokens (of all answers of the example together).
    """
    if eos == "batch":
        longest = max(len(example.ids) for example in examples)
        return [longest - len(example.ids) for example in examples]
    return [-len(example.answers) % block_length if eos == "block" else 0 for example in examples]


class RowLayout(NamedTuple):
    """How answers fill rows.

    Attributes:
        layout: ``padded``: an example to a row, T is the longest; ``packed``: best fit into rows of `length` tokens.
        length: tokens of a packed row; no example may be longer.
        eos: rule for the EOS after an answer, see :func:`extra_eos`.
        block_length: tokens of a block, for ``eos`` of that name.
    """

    layout: Layout = "padded"
    length: int = 0
    eos: Eos = "batch"
    block_length: int = 32


def to_batch(
    examples: Sequence[Example],
    keys: np.ndarray,
    records: np.ndarray,
    eos_id: int,
    how: RowLayout = RowLayout(),  # noqa: B008  (a tuple)
    real: np.ndarray | None = None,
) -> AnswerBatch:
    """Make an AnswerBatch of S examples.

    Args:
        examples: S examples.
        keys: ``[S]`` names of the draws of noise, see AnswerBatch.
        records: ``[S]`` numbers of the records, see AnswerBatch.
        eos_id: id of the EOS that ends answers; padding that nobody sees holds it too.
        how: how rows are filled.
        real: ``[S]`` bool, examples that count; the others only fill a batch up, and have no answer.
    """
    packed, extra = how.layout == "packed", extra_eos(examples, how.eos, how.block_length)
    sizes = [len(example.ids) + more for example, more in zip(examples, extra, strict=True)]
    width = how.length if packed else max(sizes)
    places = best_fit(sizes, width) if packed else [(i, 0) for i in range(len(examples))]
    shape = (max(row for row, _ in places) + 1, width)
    tokens, documents = np.full(shape, eos_id, np.int64), np.full(shape, -1, np.int64)
    counts = [len(example.answers) + more for example, more in zip(examples, extra, strict=True)]
    answers = np.full((len(examples), max(counts)), -1, np.int64)
    # A row's documents are numbered from left to right.
    for i in sorted(range(len(examples)), key=places.__getitem__):
        (row, begin), ids = places[i], examples[i].ids
        tokens[row, begin : begin + len(ids)] = ids
        documents[row, begin : begin + sizes[i]] = documents[row, begin - 1] + 1 if begin else 0
        if real is None or real[i]:
            inside = np.append(examples[i].answers, np.arange(len(ids), sizes[i]))
            answers[i, : counts[i]] = row * width + begin + inside
    made = AnswerBatch(*map(torch.from_numpy, (tokens, documents, answers, keys, records)))
    return made._replace(cu_seqlens=flash_layout(made.documents)[1])


class AnswerBatches(Batches):
    """Keys [P] -> AnswerBatch of P conversations, or of P pairs.

    Args:
        sources: records of each folder.
        order: order in which records are read.
        eos_id: id of the EOS that ends answers.
        how: how rows are filled.
        turns: ``one`` answer of each dialogue, which one depends on its place in the order alone, and what follows is
            cut off; or ``all`` of them in one example. Of a pair only the last answers count.
        seed: seed of the choice of turns.
    """

    def __init__(
        self,
        sources: Sequence[RecordRows],
        order: AnyOrder,
        eos_id: int,
        how: RowLayout = RowLayout(),  # noqa: B008  (a tuple)
        *,
        turns: Turns = "one",
        seed: int = 1,
    ) -> None:
        self.sources, self.order, self.eos_id, self.how = sources, order, eos_id, how
        self.turns, self.seed = turns, seed
        self.first_row = np.cumsum([0, *map(len, sources)])  # over all folders, so that a row's number is its alone

    def __getitem__(self, keys: np.ndarray) -> AnswerBatch:
        folder, row = self.order.locate(keys)
        records = [self.sources[f][r] for f, r in zip(folder.tolist(), row.tolist(), strict=True)]
        turns: list[int | None] = [None] * len(records)
        if self.turns == "one":
            turns = [*draw_choice(keys, np.array([len(record[1]) // 2 for record in records]), self.seed).tolist()]
        sides = len(records[0]) // 2  # a pair: all chosen, then all rejected
        examples = [
            pick_answers(record[2 * side], record[2 * side + 1], turn)
            for side in range(sides)
            for record, turn in zip(records, turns, strict=True)
        ]
        return to_batch(
            examples,
            np.tile(keys, sides),
            np.tile(self.first_row[folder] + row, sides),
            self.eos_id,
            self.how,
            real=np.tile(keys < self.limit, sides),
        )
