"""What holds for every plan: given tokens stay, masks go, nobody forbidden comes, and only the seeds decide."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lit_llada.sampling.canvas import Reason, lay_out, read_answers
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import PRESETS, Count, EosRule, Order, Plan, preset
from lit_llada.text.specials import Specials

VOCABULARY, MASK, EOS, EOT, FORBIDDEN = 9, 8, 7, 6, 5
SPECIALS = Specials(MASK, EOS, EOT, (FORBIDDEN,))
many = settings(max_examples=60)

widths = st.integers(3, 9)
canvases = st.tuples(st.sampled_from([1, 3, 7]), widths).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([MASK] * 4 + [0, 1, 2, EOS]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.sampled_from(get_args(Count)))
    adapts = count != "quota"
    remask = draw(st.sampled_from(["none", "verify"] if adapts else ["none", "remdm", "verify"]))
    return Plan(
        order=draw(st.sampled_from(get_args(Order))),
        count=count,
        bound=0.6 if adapts else None,
        block_length=draw(st.sampled_from([None, 2, 3])),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        remask=remask,
        eos=draw(st.sampled_from(get_args(EosRule))),
        stop_at_eos=draw(st.booleans()),
        length=draw(st.sampled_from(["fixed", "rho_eos"])) if adapts else "fixed",
        grow=2,
        max_length=12,
        official=draw(st.booleans()),
    )


@many
@given(canvases, plans(), st.integers(0, 3))
def test_given_tokens_stay_masks_go_and_nobody_forbidden_comes(
    Table: Any, rows: list[list[int]], plan: Plan, padding: int
) -> None:
    canvas = torch.tensor(rows)
    real = torch.ones_like(canvas).bool()
    if padding and plan.length == "fixed":  # padded rows of different lengths; what is in the padding is never read
        real[::2, -padding:] = False
    states = list(
        generate(Table(VOCABULARY, favour={MASK: 3, FORBIDDEN: 3, EOS: 1}), canvas, SPECIALS, plan, real=real)
    )
    fixed = (canvas != MASK) & real
    for before, state in zip(states[:1] + states, states, strict=False):
        width = canvas.shape[1]
        assert torch.equal(state.canvas[:, :width][fixed], canvas[fixed])
        assert (state.confidence[:, :width][fixed] == 1).all() and (state.entropy[:, :width][fixed] == 0).all()
        if plan.length == "fixed":
            assert torch.equal(state.canvas[~real], canvas[~real]) and torch.equal(state.real, real)
            assert not state.reason[~real].any() and not state.confidence[~real].any()
            changed = state.canvas != before.canvas
            assert not (changed & (state.reason == Reason.NONE)).any()
        open_ = state.canvas == MASK
        ended = (state.canvas == EOS) & (state.confidence == 0)
        # The published late EOS gives its own end tokens the probability 0.
        ended |= (state.confidence == 0) & torch.isin(state.canvas, torch.tensor([EOS, EOT])) & plan.official
        assert torch.equal((state.confidence == 0) & state.real & ~ended, open_ & state.real)
        new = state.real & ~open_
        new[:, :width] &= ~fixed
        assert not (state.canvas[new] == FORBIDDEN).any()
        if plan.eos == "never" and not plan.official and not plan.stop_at_eos:
            assert not torch.isin(state.canvas[new], torch.tensor([EOS, EOT])).any()
        assert (state.forwards >= before.forwards).all()
    final = states[-1]
    assert not ((final.canvas == MASK) & final.real).any()
    assert torch.equal(final.forwards > 0, ((canvas == MASK) & real).any(1))


@many
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["free", "last"]),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(get_args(Order)),
)
def test_stopping_at_the_end_changes_no_answer(
    Table: Any, prompts: list[list[int]], block_length: int, eos: EosRule, temperature: float, order: Order
) -> None:
    canvas, real = lay_out(prompts, 12, SPECIALS, block_length=block_length)
    plan = Plan(block_length=block_length, eos=eos, temperature=temperature, order=order)
    table = Table(VOCABULARY, favour={EOS: 1.5, EOT: 0.5})
    *_, full = generate(table, canvas, SPECIALS, plan, real=real)
    *_, short = generate(table, canvas, SPECIALS, replace(plan, stop_at_eos=True), real=real)
    assert read_answers(full, prompts, SPECIALS) == read_answers(short, prompts, SPECIALS)
    assert (short.forwards <= full.forwards).all()
    ended = ((short.canvas == EOS) & (short.confidence == 0) & real).sum(1)
    assert torch.equal(full.forwards - short.forwards, ended)


def test_a_row_that_ends_leaves_the_batch(Table: Any) -> None:
    """Row 0 says EOS at once, row 1 never does: from the second block on the net sees one row."""

    class Ends(Table):  # type: ignore[misc,valid-type]
        def logits(self, row: tuple[int, ...]) -> torch.Tensor:
            out = torch.zeros(len(row), VOCABULARY, dtype=torch.float64)
            out[:, EOS if row[0] == 0 else 1] = 5.0
            return out

    canvas, real = lay_out([[0], [1]], 6, SPECIALS)
    ends = Ends(VOCABULARY)
    *_, state = generate(ends, canvas, SPECIALS, Plan(block_length=2, stop_at_eos=True), real=real)
    assert [n for n, _ in ends.shapes] == [2, 2, 1, 1, 1, 1] and state.forwards.tolist() == [2, 6]
    assert read_answers(state, [[0], [1]], SPECIALS) == [[], [1] * 6]
    given_later = torch.tensor([[0, MASK, MASK, MASK, MASK, 3, MASK]])
    *_, state = generate(ends, given_later, SPECIALS, Plan(block_length=2, stop_at_eos=True))
    assert state.forwards.tolist() == [5]  # what stands behind the end was given, so nothing is skipped before it


@many
@given(canvases, plans(), st.integers(0, 2**40))
def test_seeds_decide_and_nothing_else(Table: Any, rows: list[list[int]], plan: Plan, seed: int) -> None:
    assume(plan.length == "fixed")
    canvas, table = torch.tensor(rows), Table(VOCABULARY)
    seeds, before, copy = torch.arange(len(rows)) + seed, torch.get_rng_state(), canvas.clone()

    def run(order: torch.Tensor) -> list[Any]:
        return list(generate(table, canvas[order], SPECIALS, plan, seeds=seeds[order]))

    forth, back = torch.arange(len(rows)), torch.arange(len(rows)).flip(0)
    first, second, third = run(forth), run(forth), run(back)
    for a, b, c in zip(first, second, third, strict=True):
        for x, y, z in zip(a[1:], b[1:], c[1:], strict=True):
            assert torch.equal(x, y) and torch.equal(x, z[back])
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(canvas, copy)


def test_other_seeds_give_other_rows(Table: Any, last: Any) -> None:
    canvas, plan = torch.full((40, 6), MASK), Plan(temperature=1.0, order="random")
    rows = last(generate(Table(VOCABULARY), canvas, SPECIALS, plan)).canvas
    assert len(rows.unique(dim=0)) > 35
    same = last(generate(Table(VOCABULARY), canvas, SPECIALS, plan, seeds=torch.zeros(40, dtype=torch.int64))).canvas
    assert len(same.unique(dim=0)) == 1


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1, 2], [3, EOS], [0, 0]]], ids=["one", "three"])
@pytest.mark.parametrize(
    "plan", [Plan(), Plan(official=True, steps=4), PRESETS["fast"]], ids=["plain", "to_the_letter", "fast"]
)
def test_a_full_canvas_asks_nobody(Table: Any, rows: list[list[int]], plan: Plan) -> None:
    table = Table(VOCABULARY)
    (state,) = generate(table, torch.tensor(rows), SPECIALS, plan)
    assert state.step == 0 and state.canvas.tolist() == rows and not table.shapes


def test_no_rows_and_rows_of_which_some_are_full(Table: Any) -> None:
    table = Table(VOCABULARY)
    (state,) = generate(table, torch.zeros(0, 5, dtype=torch.int64), SPECIALS)
    assert state.canvas.shape == (0, 5)
    canvas = torch.tensor([[1, 2, 3], [1, MASK, 3], [1, 2, 3]])
    *_, state = generate(table, canvas, SPECIALS)
    assert table.shapes == [(1, 1)] and state.forwards.tolist() == [0, 1, 0]


def test_only_open_positions_of_the_block_meet_the_vocabulary(Table: Any) -> None:
    table = Table(VOCABULARY)
    canvas = torch.tensor([[0, MASK, 1, MASK, MASK], [2, 2, MASK, 0, 1]])
    states = list(generate(table, canvas, SPECIALS, Plan(block_length=2)))
    assert table.shapes == [(2, 3), (1, 1), (1, 1)]  # row 0 has blocks of two masks and of one, row 1 has one mask
    for state in states[1:]:
        looked = state.probability > 0
        assert looked.sum() == table.shapes[state.step - 1][1]
        assert torch.equal(state.predicted[~looked], states[state.step - 1].canvas[~looked])
        assert torch.equal(state.predicted[state.committed], state.canvas[state.committed])
        assert torch.equal(state.probability[state.committed], state.confidence[state.committed])


def test_steps_are_shared_evenly_among_blocks(Table: Any) -> None:
    """Seven steps for three blocks of four: 3, 2 and 2; none is run in vain unless the published code would."""
    canvas = torch.full((1, 12), MASK)

    def counts(**changes: Any) -> list[int]:
        plan = Plan(block_length=4, **changes)
        return [int(state.committed.sum()) for state in generate(Table(VOCABULARY), canvas, SPECIALS, plan)][1:]

    assert counts(steps=7) == [2, 1, 1, 2, 2, 2, 2]
    assert counts() == counts(steps=12) == counts(steps=99) == [1] * 12
    assert counts(steps=15, official=True) == [1, 1, 1, 1, 0] * 3


def test_presets_differ_as_they_say(Table: Any, last: Any) -> None:
    canvas = torch.full((1, 64), MASK)
    table = Table(VOCABULARY, spread=2.0, favour={EOS: 1.0})
    official, benchmark, fast = (last(generate(table, canvas, SPECIALS, preset(name))) for name in PRESETS)
    assert official.forwards.item() == benchmark.forwards.item() == 64 > fast.forwards.item()
    assert preset("fast", temperature=0.5) == replace(PRESETS["fast"], temperature=0.5)


@pytest.mark.parametrize(
    ("ends", "after", "lengths"),
    [
        (range(0), [], [9, 11, 13, 13, 13]),  # nobody expects the end: grow up to the limit
        (range(20), [], [9, 7, 5, 4]),  # everybody does: shrink, but not below what is written
        (range(5), [], [9, 9, 9, 9, 11]),  # 4, 3, 2, 1 of 8, 7, 6, 5 masks do, the last of which is too few
        (range(20), [2], [10] * 9),  # what ends with a given token keeps its length
        (range(0), [2], [10] * 9),
    ],
    ids=["grow", "shrink", "enough", "given_shrink", "given_grow"],
)
def test_rho_eos(Table: Any, ends: range, after: list[int], lengths: list[int]) -> None:
    class Ends(Table):  # type: ignore[misc,valid-type]
        def logits(self, row: tuple[int, ...]) -> torch.Tensor:
            place = torch.arange(len(row))
            out = torch.zeros(len(row), VOCABULARY, dtype=torch.float64) - 0.01 * place[:, None]
            out[place, [EOS if i in ends else 1 for i in range(len(row))]] = 1.0
            return out

    plan = Plan(count="threshold", bound=1.0, order="left_to_right", length="rho_eos", grow=2, max_length=13)
    canvas = torch.tensor([[1] + [MASK] * 8 + after])
    states = list(generate(Ends(VOCABULARY), canvas, SPECIALS, plan))
    assert [int(state.real.sum()) for state in states][: len(lengths)] == lengths
    assert not ((states[-1].canvas == MASK) & states[-1].real).any()
    for before, state in pairwise(states):
        grown, gone = (int((state.reason == reason).sum()) for reason in (Reason.GROWN, Reason.SHRUNK))
        assert int(state.real.sum()) == int(before.real.sum()) + grown - gone
