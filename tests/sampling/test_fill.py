"""An answer depends on its prompt, its number and the settings: not on its batch, and nothing behind its end counts."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.sampling.canvas import pad_canvases
from lit_llada.sampling.fill import Answer, fill_canvases, in_number_order, read_gaps
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials

MASK, EOS = 9, 8
IDS = Specials(MASK, EOS)


def test_each_gap_is_read_up_to_its_first_end() -> None:
    before = [1, MASK, MASK, 2, 3, MASK, MASK, MASK]
    assert read_gaps(before, [1, 5, EOS, 2, 3, 6, EOS, 7], IDS) == ([[5], [6]], [1, 5, 2, 3, 6], True)
    assert read_gaps(before, [1, EOS, 5, 2, 3, 6, 7, 7], IDS) == ([[], [6, 7, 7]], [1, 2, 3, 6, 7, 7], False)
    inner = [MASK, 1]
    assert read_gaps(inner, [EOS, 1], IDS) == ([[]], [1], True)


def test_a_last_gap_that_grew_or_shrank_is_read_to_its_end() -> None:
    assert read_gaps([1, MASK, MASK], [1, 2, 3, 4, 5], IDS)[0] == [[2, 3, 4, 5]]
    assert read_gaps([1, MASK, MASK], [1, 2], IDS)[0] == [[2]]
    assert read_gaps([1, MASK, MASK, 2], [1, 5, 6, 2], IDS)[0] == [[5, 6]]


@given(st.lists(st.lists(st.sampled_from([1, 2, MASK]), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_stands_at_the_far_right(rows: list[list[int]]) -> None:
    canvas, real = pad_canvases(rows, IDS)
    assert [row[kept].tolist() for row, kept in zip(canvas, real, strict=True)] == rows
    assert (canvas[~real] == EOS).all()


@given(st.permutations(range(6)))
@settings(max_examples=20)
def test_in_order_gives_each_answer_as_soon_as_those_before_it_are_there(order: list[int]) -> None:
    made = {i: Answer([[i]], [i], False, 1, 1, 0.0) for i in order}
    taken: list[int] = []

    def arriving():
        for i in order:
            taken.append(i)
            yield i, made[i]

    for number, answer in enumerate(in_number_order(arriving())):
        assert answer is made[number]
        assert len(taken) == max(order.index(i) for i in range(number + 1)) + 1
    assert len(taken) == 6


@pytest.mark.parametrize("plan", [Plan(temperature=1.0, steps=5), Plan(block_length=4, count="threshold", bound=0.02)])
def test_an_answer_is_the_same_in_any_batch(checkpoint: Checkpoint, plan: Plan) -> None:
    ids = Specials(checkpoint.mask_id, checkpoint.eos_id, None, checkpoint.forbidden)
    rows = [[65 + i] * (1 + 3 * i % 7) + [ids.mask] * 8 for i in range(5)]

    def answers(batch_size: int) -> list[tuple]:
        pairs = fill_canvases(lambda: checkpoint.net, rows, ids, plan, seeds=range(5), batch_size=batch_size)
        return [answer[:5] for answer in in_number_order(pairs)]  # all but seconds and trace

    alone = answers(1)
    assert answers(2) == answers(5) == alone
    assert len({tuple(gaps[0]) for gaps, *_ in alone}) > 1


class Ending:
    """Writes 1 everywhere, and an end at position 5; counts its calls."""

    calls = 0

    def __call__(self, tokens: Tensor, mask: object, rows: Tensor) -> Tensor:
        self.calls += 1
        logits = torch.zeros(len(rows), 10)
        logits[:, 1] = 20.0
        logits[rows % tokens.shape[1] == 5] = torch.nn.functional.one_hot(torch.tensor(EOS), 10) * 20.0
        return logits


def test_nothing_behind_the_end_is_a_token_and_traces_end_where_the_row_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # each step reads it once
    monkeypatch.setattr("lit_llada.sampling.fill.time", clock)
    net = Ending()
    plan = Plan(block_length=4, stop_at_eos=True)
    [(number, answer)] = fill_canvases(lambda: net, [[2, 2, *[MASK] * 12]], IDS, plan, seeds=[0], record=True)
    assert number == 0
    assert answer.gaps == [[1, 1, 1]]
    assert answer.ended and answer.tokens == 3
    assert answer.forwards == answer.steps == net.calls == 4
    assert answer.seconds == 4
    assert answer.trace is not None and answer.trace.canvases()[-1][:6] == [2, 2, 1, 1, 1, EOS]
