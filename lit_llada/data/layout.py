"""Where in a batch do prompts and answers stand? One to a row, or several; with EOS after them, or without.

Pure functions of the samples, but for `AnswerBatches`, which reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_llada.backbone.packed import flash_layout
from lit_llada.data.batch import AnswerBatch, best_fit
from lit_llada.data.order import AnyOrder, draw
from lit_llada.data.streaming import Batches, RecordRows

Layout = Literal["padded", "packed"]
Eos = Literal["batch", "one", "block"]
Turns = Literal["one", "all"]


class Sample(NamedTuple):
    """A conversation up to the end of its last answer."""

    ids: np.ndarray  # [N] clean ids
    answers: np.ndarray  # [M] int64, the places in it that may be masked, in order


def choose(ids: Tensor, spans: Tensor, turn: int | None) -> Sample:
    """A record's sample: all answers, or answer number `turn` with what was said before it.

    Args:
        ids: ``[N]``.
        spans: ``[2 n]``, where each answer begins and stops.
        turn: None for all.
    """
    pairs = spans.long().view(-1, 2).numpy()
    pairs = pairs if turn is None else pairs[turn : turn + 1]
    return Sample(ids.long().numpy()[: pairs[-1, 1]], np.concatenate([np.arange(a, b) for a, b in pairs]))


def extra_eos(samples: Sequence[Sample], eos: Eos, block_length: int) -> list[int]:
    """How many EOS each answer gets besides its own end, as part of it.

    ``batch``: up to the longest sample, as in LLaDA's SFT (a model learns to fill what is left of its canvas).
    ``one``: none; ``block``: up to a multiple of `block_length` tokens (of all answers of the sample together).
    """
    if eos == "batch":
        longest = max(len(sample.ids) for sample in samples)
        return [longest - len(sample.ids) for sample in samples]
    return [-len(sample.answers) % block_length if eos == "block" else 0 for sample in samples]


def lay_out(
    samples: Sequence[Sample],
    keys: np.ndarray,
    rows: np.ndarray,
    eos_id: int,
    *,
    layout: Layout = "padded",
    length: int = 0,
    eos: Eos = "batch",
    block_length: int = 32,
    real: np.ndarray | None = None,
) -> AnswerBatch:
    """Make an AnswerBatch of S samples.

    Args:
        samples: S of them.
        keys: ``[S]``, see AnswerBatch.
        rows: ``[S]``.
        eos_id: of the EOS that ends answers; padding that nobody sees holds it too.
        layout: ``padded``: a sample to a row, T is the longest; ``packed``: best fit into rows of T = `length` tokens.
        length: of a packed row; no sample may be longer.
        eos: see :func:`extra_eos`.
        block_length: for ``block``.
        real: ``[S]`` bool; the other samples only fill a batch up, and have no answer.
    """
    extra = extra_eos(samples, eos, block_length)
    sizes = [len(sample.ids) + more for sample, more in zip(samples, extra, strict=True)]
    width = length if layout == "packed" else max(sizes)
    places = best_fit(sizes, width) if layout == "packed" else [(i, 0) for i in range(len(samples))]
    shape = (max(row for row, _ in places) + 1, width)
    tokens, documents = np.full(shape, eos_id, np.int64), np.full(shape, -1, np.int64)
    counts = [len(sample.answers) + more for sample, more in zip(samples, extra, strict=True)]
    answers = np.full((len(samples), max(counts)), -1, np.int64)
    # A row's documents are numbered from left to right.
    for i in sorted(range(len(samples)), key=places.__getitem__):
        (row, begin), ids = places[i], samples[i].ids
        tokens[row, begin : begin + len(ids)] = ids
        documents[row, begin : begin + sizes[i]] = documents[row, begin - 1] + 1 if begin else 0
        if real is None or real[i]:
            inside = np.append(samples[i].answers, np.arange(len(ids), sizes[i]))
            answers[i, : counts[i]] = row * width + begin + inside
    made = AnswerBatch(*map(torch.from_numpy, (tokens, documents, answers, keys, rows)))
    return made._replace(cu_seqlens=flash_layout(made.documents)[1])


class AnswerBatches(Batches):
    """Keys [P] -> AnswerBatch of P conversations, or of P pairs.

    Args:
        sources: the records of each folder.
        order: of them.
        eos_id: the end of an answer.
        length: of a packed row.
        layout: see :func:`lay_out`.
        eos: see :func:`extra_eos`.
        block_length: for ``eos`` of that name.
        turns: ``one`` answer of each dialogue, which one depends on its place in the order alone, and what follows is
            cut off; or ``all`` of them in one sample. Of a pair only the last answers count.
        seed: of the choice of turns.
    """

    def __init__(
        self,
        sources: Sequence[RecordRows],
        order: AnyOrder,
        eos_id: int,
        length: int,
        *,
        layout: Layout = "padded",
        eos: Eos = "batch",
        block_length: int = 32,
        turns: Turns = "one",
        seed: int = 1,
    ) -> None:
        self.sources, self.order, self.eos_id, self.length = sources, order, eos_id, length
        self.layout, self.eos, self.block_length, self.turns, self.seed = layout, eos, block_length, turns, seed
        self.first_row = np.cumsum([0, *map(len, sources)])  # over all folders, so that a row's number is its alone

    def __getitem__(self, keys: np.ndarray) -> AnswerBatch:
        folder, row = self.order.locate(keys)
        records = [self.sources[f][r] for f, r in zip(folder.tolist(), row.tolist(), strict=True)]
        turns: list[int | None] = [None] * len(records)
        if self.turns == "one":
            turns = [*draw(keys, np.array([len(record[1]) // 2 for record in records]), self.seed).tolist()]
        sides = len(records[0]) // 2  # a pair: all chosen, then all rejected
        samples = [
            choose(record[2 * side], record[2 * side + 1], turn)
            for side in range(sides)
            for record, turn in zip(records, turns, strict=True)
        ]
        return lay_out(
            samples,
            np.tile(keys, sides),
            np.tile(self.first_row[folder] + row, sides),
            self.eos_id,
            layout=self.layout,
            length=self.length,
            eos=self.eos,
            block_length=self.block_length,
            real=np.tile(keys < self.limit, sides),
        )
