"""Rows of a batch do not know each other: a ragged batch writes, token for token, what its rows write alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.sampling.canvas import State, lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Count, EosRule, Order, Plan
from lit_llada.text.specials import Specials

VOCABULARY = 16
SPECIALS = Specials(mask=15, eos=14, eot=13, forbidden=(12,))
quick = settings(max_examples=4)


class Counting:
    """Remembers the canvases of every call, and lets the net expect the end more or less often."""

    def __init__(self, net: Any, expect_end: float = 0.0) -> None:
        self.net, self.shift = net, torch.zeros(VOCABULARY)
        self.shift[SPECIALS.eos] = expect_end
        self.calls: list[Tensor] = []

    def __call__(self, tokens: Tensor, mask: AttentionMask | None, rows: Tensor) -> Tensor:
        self.calls.append(tokens)
        return self.net(tokens, mask, rows) + self.shift


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 11), min_size=1, max_size=7), st.integers(1, 3)), min_size=2, max_size=4
)


def check(
    net: Any, batch: list[tuple[list[int], int]], plan: Plan, expect_end: float = 0.0, scale: float = 0.0
) -> None:
    """``batch`` is of (prompt, new tokens / 3)."""

    def run(chosen: list[int]) -> tuple[list[State], Counting]:
        counting = Counting(net, expect_end)
        denoiser = Guided(counting, scale, SPECIALS.mask) if scale else counting
        canvas, real = lay_out([batch[i][0] for i in chosen], [3 * batch[i][1] for i in chosen], SPECIALS)
        seeds = torch.tensor(chosen) * 17 + 3
        return list(generate(denoiser, canvas, SPECIALS, plan, real=real, seeds=seeds, details=True)), counting

    together, counting = run(list(range(len(batch))))
    alone = [run([i])[0] for i in range(len(batch))]
    assert len(together) == max(map(len, alone))
    for step, state in enumerate(together):
        for i, states in enumerate(alone):
            single = states[min(step, len(states) - 1)]
            here, there = state.real[i], single.real[0]
            assert torch.equal(state.canvas[i, here], single.canvas[0, there])
            assert int(state.forwards[i]) == int(single.forwards[0])
            for name in ("confidence", "entropy"):
                torch.testing.assert_close(getattr(state, name)[i, here], getattr(single, name)[0, there])
            if step < len(states):  # padding of a longer row may be where this one has shrunk
                width = min(state.reason.shape[1], single.reason.shape[1])
                assert torch.equal(state.reason[i, :width], single.reason[0, :width])
                torch.testing.assert_close(state.probability[i, :width], single.probability[0, :width])
    if plan.remask != "verify":  # rows that are finished cost nothing
        busy = [sum(step < len(states) for states in alone) for step in range(1, len(together))]
        assert [len(tokens) for tokens in counting.calls] == [n * (2 if scale else 1) for n in busy]


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "moe"])
@pytest.mark.parametrize("count", get_args(Count))
@pytest.mark.parametrize("order", get_args(Order))
def test_orders_and_counts(tiny: Any, order: Order, count: Count, experts: int) -> None:
    @quick
    @given(prompts, st.sampled_from([0.0, 0.8]), st.booleans(), st.sampled_from([None, 3]), st.integers(1, 9))
    def examples(batch: Any, temperature: float, official: bool, block_length: int | None, steps: int) -> None:
        plan = Plan(
            order=order, count=count, temperature=temperature, official=official, block_length=block_length,
            steps=max(steps, 3) if count == "quota" else None, bound=None if count == "quota" else 0.5,
        )  # fmt: skip
        check(tiny(VOCABULARY, experts), batch, plan)

    examples()


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "moe"])
@pytest.mark.parametrize("eos", get_args(EosRule))
@pytest.mark.parametrize("remask", ["none", "remdm", "verify"])
def test_ends_and_second_thoughts(tiny: Any, remask: Any, eos: EosRule, experts: int) -> None:
    @quick
    @given(prompts, st.sampled_from([0.0, 0.8]), st.booleans(), st.booleans(), st.sampled_from([0.0, 3.0]))
    def examples(batch: Any, temperature: float, stop: bool, aligned: bool, expect_end: float) -> None:
        rule: dict[str, Any] = {"count": "factor", "bound": 2.0}
        if remask == "remdm":
            rule = {"steps": 9, "remask_bound": 0.6}
        plan = Plan(
            temperature=temperature, stop_at_eos=stop, eos=eos, aligned=aligned, remask=remask, block_length=3, **rule
        )
        check(tiny(VOCABULARY, experts), batch, plan, expect_end)

    examples()


@pytest.mark.parametrize("stop_at_eos", [False, True], ids=["all", "stop"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "moe"])
def test_rows_that_grow_and_shrink(tiny: Any, experts: int, temperature: float, stop_at_eos: bool) -> None:
    @settings(quick, max_examples=8)
    @given(prompts, st.sampled_from([None, 4]), st.sampled_from([0.0, 1.5, 3.0]), st.integers(1, 4))
    def examples(batch: Any, block_length: int | None, expect_end: float, grow: int) -> None:
        plan = Plan(
            count="threshold", bound=0.6, length="rho_eos", grow=grow, max_length=20, block_length=block_length,
            temperature=temperature, stop_at_eos=stop_at_eos,
        )  # fmt: skip
        check(tiny(VOCABULARY, experts), batch, plan, expect_end)

    examples()


@quick
@given(prompts, st.sampled_from([0.0, 0.8]))
def test_guidance(tiny: Any, batch: Any, temperature: float) -> None:
    check(tiny(VOCABULARY), batch, Plan(temperature=temperature, block_length=3), scale=1.0)


def test_a_row_left_of_padding_answers_as_in_the_middle_of_a_batch(tiny: Any) -> None:
    """Neither what stands in the padding nor how much of it there is matters."""
    net, plan = tiny(VOCABULARY), Plan(temperature=0.8, count="threshold", bound=0.4)
    canvas, real = lay_out([[1, 2, 3], [4] * 9], [6, 6], SPECIALS)
    answers = []
    for filler in (0, 7, SPECIALS.mask):
        *_, state = generate(net, canvas.masked_fill(~real, filler), SPECIALS, plan, real=real)
        assert (state.canvas[~real] == filler).all() and not state.confidence[~real].any()
        answers.append(state.canvas[real])
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_plans_of_these_tests_do_what_they_are_for(tiny: Any) -> None:
    """Takes back, ends, grows and shrinks really happen with these nets."""
    seen: set[int] = set()
    base = Plan(block_length=4, temperature=0.8)
    for expect_end in (0.0, 1.5, 3.0):
        for plan in (
            replace(base, remask="remdm", remask_bound=0.6),
            replace(base, count="threshold", bound=0.4, stop_at_eos=True),
            replace(base, count="threshold", bound=0.6, length="rho_eos", grow=2, max_length=24),
        ):
            canvas, real = lay_out([[1, 2], [3]], 12, SPECIALS)
            for state in generate(Counting(tiny(VOCABULARY), expect_end), canvas, SPECIALS, plan, real=real):
                seen |= set(state.reason.unique().tolist())
    assert seen == set(range(7))
