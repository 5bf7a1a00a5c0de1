"""Batches of answers: the same samples padded or packed, each EOS policy, one turn or all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llada.data.batch import AnswerBatch, best_fit
from lit_llada.data.layout import AnswerBatches, Example, RowLayout, pick_answers, to_batch
from lit_llada.data.order import GlobalOrder

EOS = 0


def sample(first: int, length: int, answers: list[int]) -> Example:
    return Example(np.arange(first, first + length), np.array(answers))


SAMPLES = [sample(100, 5, [3, 4]), sample(200, 8, [1, 2, 6, 7]), sample(300, 3, [2])]


def laid_out(samples: list[Example], **options: Any) -> AnswerBatch:
    keys = np.arange(len(samples)) + 50
    real = options.pop("real", None)
    return to_batch(samples, keys, keys + 1000, EOS, RowLayout(**options), real)


def pieces(batch: AnswerBatch) -> list[tuple[list[int], list[int]]]:
    """Of each sample its ids and those of its answer, read back from the batch."""
    found = []
    flat, width = batch.tokens.flatten(), batch.tokens.shape[1]
    for places in batch.answers:
        inside = places[places >= 0]
        row, document = int(inside[0]) // width, batch.documents.flatten()[inside[0]]
        found.append((batch.tokens[row][batch.documents[row] == document].tolist(), flat[inside].tolist()))
    return found


def test_eos_up_to_the_longest_is_part_of_the_answer() -> None:
    batch = laid_out(SAMPLES, eos="batch")
    assert batch.tokens.shape == (3, 8) and (batch.documents == 0).all()
    assert batch.tokens[0].tolist() == [100, 101, 102, 103, 104, EOS, EOS, EOS]
    assert batch.answers[0].tolist() == [3, 4, 5, 6, 7, -1]
    assert batch.answers[1].tolist() == [9, 10, 14, 15, -1, -1]
    assert batch.lengths.tolist() == [5, 4, 6]
    assert (batch.keys.tolist(), batch.records.tolist()) == ([50, 51, 52], [1050, 1051, 1052])
    assert {tensor.dtype for tensor in batch[:-1]} == {torch.int64}
    assert (batch.cu_seqlens.dtype, batch.cu_seqlens.tolist()) == (torch.int32, [0, 8, 16, 24])


def test_one_end_and_padding_that_nobody_sees() -> None:
    batch = laid_out(SAMPLES, eos="one")
    assert batch.tokens.shape == (3, 8) and batch.lengths.tolist() == [2, 4, 1]
    assert batch.documents[0].tolist() == [0] * 5 + [-1] * 3
    assert batch.tokens[2].tolist() == [300, 301, 302] + [EOS] * 5


def test_answers_are_rounded_up_to_whole_blocks() -> None:
    batch = laid_out(SAMPLES, eos="block", block_length=4)
    assert batch.lengths.tolist() == [4, 4, 4]
    assert batch.tokens.shape == (3, 8)
    assert pieces(batch)[0] == ([100, 101, 102, 103, 104, EOS, EOS], [103, 104, EOS, EOS])
    assert batch.documents[0].tolist() == [0] * 7 + [-1]
    assert batch.documents[2].tolist() == [0] * 6 + [-1] * 2


@st.composite
def some_samples(draw: st.DrawFn) -> list[Example]:
    found = []
    for i in range(draw(st.integers(1, 9))):
        length = draw(st.integers(1, 16))
        answers = sorted(draw(st.sets(st.integers(0, length - 1), min_size=1)))
        found.append(sample(100 * (i + 1), length, answers))
    return found


@given(some_samples(), st.sampled_from(["one", "block"]))
@settings(max_examples=80)
def test_packed_is_padded_sample_by_sample(samples: list[Example], eos: Any) -> None:
    padded = laid_out(samples, eos=eos, block_length=4)
    packed = laid_out(samples, eos=eos, block_length=4, layout="packed", length=19)
    assert pieces(padded) == pieces(packed)
    for one, (ids, answer) in zip(samples, pieces(packed), strict=True):
        assert ids[: len(one.ids)] == one.ids.tolist()
        assert answer[: len(one.answers)] == one.ids[one.answers].tolist()
        assert set(ids[len(one.ids) :] + answer[len(one.answers) :]) <= {EOS}
    assert packed.tokens.shape[1] == 19 and len(packed.tokens) <= len(padded.tokens)
    for row in packed.documents.tolist():  # contiguous, numbered from left to right, padding at the end
        numbers = list(dict.fromkeys(row))
        assert numbers in ([*range(max(row) + 1)], [*range(max(row) + 1), -1])
        assert row == sorted(row, key=lambda d: (d == -1, d))
    assert int((packed.documents >= 0).sum()) == int((padded.documents >= 0).sum())


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_best_fit_fills_rows_without_overlap(lengths: list[int]) -> None:
    places = best_fit(lengths, 20)
    taken = [(row, offset + i) for (row, offset), n in zip(places, lengths, strict=True) for i in range(n)]
    assert len(set(taken)) == len(taken) and max(offset for _, offset in taken) < 20
    rows = 1 + max(row for row, _ in places)
    assert {row for row, _ in places} == set(range(rows))
    assert rows < 2 * sum(lengths) / 20 + 1  # at most one row is not half full


def test_what_only_fills_a_batch_up_has_no_answer() -> None:
    batch = laid_out(SAMPLES, eos="one", real=np.array([True, False, True]))
    assert batch.lengths.tolist() == [2, 0, 1]
    assert torch.equal(batch.tokens, laid_out(SAMPLES, eos="one").tokens)


IDS, SPANS = torch.arange(10, dtype=torch.int32).to(torch.uint16), torch.tensor([2, 4, 6, 9], dtype=torch.int32)


def test_a_turn_is_what_was_said_before_it_and_its_answer() -> None:
    whole, first, second = (pick_answers(IDS, SPANS, turn) for turn in (None, 0, 1))
    assert whole.ids.tolist() == second.ids.tolist() == list(range(9))
    assert first.ids.tolist() == [0, 1, 2, 3] and first.answers.tolist() == [2, 3]
    assert second.answers.tolist() == [6, 7, 8] and whole.answers.tolist() == [2, 3, 6, 7, 8]


class Records(list):  # type: ignore[type-arg]
    """As many records as asked for; record r begins with the id r."""

    def __init__(self, count: int, sides: int = 1) -> None:
        ids = [torch.cat((torch.tensor([r]), IDS[1:].long())) for r in range(count)]
        super().__init__([[part for _ in range(sides) for part in (one, SPANS)] for one in ids])


def test_turns_are_drawn_anew_in_each_epoch_by_the_place_alone() -> None:
    batches = AnswerBatches([Records(40)], GlobalOrder([[40]], seed=1), EOS, RowLayout(length=16, eos="one"))  # type: ignore[list-item]
    every = batches[np.arange(80)]
    counts = every.lengths.tolist()
    assert set(counts) == {2, 3} and 20 < counts.count(2) < 60
    by_row = sorted(zip(every.records.tolist(), counts, strict=True))
    assert any(a[1] != b[1] for a, b in zip(by_row[::2], by_row[1::2], strict=True))  # of two epochs
    some = batches[np.arange(30, 34)]
    assert some.lengths.tolist() == counts[30:34] and some.keys.tolist() == [30, 31, 32, 33]
    whole = AnswerBatches([Records(40)], GlobalOrder([[40]], seed=1), EOS, RowLayout(length=16, eos="one"), turns="all")  # type: ignore[list-item]
    assert set(whole[np.arange(40)].lengths.tolist()) == {5}


def test_pairs_are_all_chosen_then_all_rejected_with_numbers_over_all_folders() -> None:
    sources: list[Any] = [Records(7, sides=2), Records(5, sides=2)]
    batches = AnswerBatches(sources, GlobalOrder([[7], [5]], seed=1), EOS, RowLayout(length=16, eos="one"), turns="all")
    batch = batches[np.arange(12)]
    assert batch.keys.tolist() == [*range(12), *range(12)]
    assert batch.records[:12].tolist() == batch.records[12:].tolist() and sorted(batch.records[:12].tolist()) == [
        *range(12)
    ]
    assert batch.tokens[:, 0].tolist() == [row if row < 7 else row - 7 for row in batch.records.tolist()]


@pytest.mark.parametrize("eos", ["batch", "one", "block"])
def test_a_batch_of_one(eos: Any) -> None:
    batch = laid_out(SAMPLES[:1], eos=eos, block_length=2)
    assert pieces(batch) == [([100, 101, 102, 103, 104], [103, 104])]
