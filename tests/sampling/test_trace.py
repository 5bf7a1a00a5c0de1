"""A trace, played again, gives every canvas of the run and the final ids, whatever the plan did to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.errors import UserError
from lit_llada.sampling.canvas import State
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.trace import NOTHING, Recorder, Trace
from lit_llada.text.specials import Specials

MASK, EOS, VOCABULARY = 7, 6, 8
SPECIALS = Specials(MASK, EOS)
PLANS = {
    "quota": Plan(steps=5, block_length=4, temperature=1.0),
    "threshold": Plan(count="threshold", bound=0.4, temperature=1.0),
    "factor": Plan(count="factor", bound=2.0, block_length=6),
    "entropy_bound": Plan(count="entropy_bound", bound=2.0, temperature=1.0),
    "remdm": Plan(steps=9, remask="remdm", remask_bound=0.5, temperature=1.0),
    "verify": Plan(count="threshold", bound=0.3, remask="verify", remask_bound=0.5, temperature=1.0),
    "stop_at_eos": Plan(steps=6, block_length=2, stop_at_eos=True, temperature=1.0),
    "grow": Plan(count="threshold", bound=0.5, length="rho_eos", grow=2, max_length=18, temperature=1.0),
    "shrink": Plan(count="threshold", bound=0.99, length="rho_eos", grow=2, max_length=18),
    "official": Plan(steps=12, block_length=6, official=True),
}
# Rows of 9, 12 and 7 positions with something given, in batches padded on the right and on the left.
ROWS = [
    [1, 2, MASK, MASK, MASK, 3, MASK, MASK, MASK],
    [4] + [MASK] * 11,
    [MASK, 5, MASK, MASK, MASK, MASK, MASK],
]


def run(plan: Plan, denoiser: Any, left: bool = False) -> tuple[list[State], list[Trace]]:
    width = max(map(len, ROWS))
    canvas, real = torch.full((len(ROWS), width), EOS), torch.zeros(len(ROWS), width, dtype=torch.bool)
    for i, row in enumerate(ROWS):
        place = slice(width - len(row), width) if left else slice(len(row))
        canvas[i, place], real[i, place] = torch.tensor(row), True
    recorder = Recorder(generate(denoiser, canvas, SPECIALS, plan, real=real, details=True), MASK)
    return list(recorder), recorder.traces


@pytest.mark.parametrize("left", [False, True], ids=["padded_right", "padded_left"])
@pytest.mark.parametrize("favour", [{}, {EOS: 4.0}], ids=["plain", "expects_the_end"])
@pytest.mark.parametrize("name", PLANS)
def test_replay_gives_every_state(name: str, favour: dict[int, float], left: bool, Table: Any) -> None:
    states, traces = run(PLANS[name], Table(VOCABULARY, favour=favour), left)
    for row, trace in enumerate(traces):
        canvases = trace.canvases()
        assert len(canvases) == trace.steps + 1 == len(trace.guesses) + 1
        for step, state in enumerate(states):  # a row that is done stands still
            assert canvases[min(step, trace.steps)] == state.canvas[row][state.real[row]].tolist()
        assert trace.forwards == states[-1].forwards[row] and MASK not in canvases[-1]
        assert trace.events == sorted(trace.events, key=lambda e: (e.step, e.position))
        assert Trace.from_json(trace.to_json()) == trace


def test_everything_that_can_happen_does(Table: Any) -> None:
    """Else the replay above would have been tried on less than it says."""
    seen = {}
    for name, plan in PLANS.items():
        traces = [t for f in ({}, {EOS: 4.0}) for t in run(plan, Table(VOCABULARY, favour=f))[1]]
        seen[name] = {event.reason for trace in traces for event in trace.events}
    assert seen["quota"] == {"selected"} and seen["threshold"] == {"selected", "forced"}
    assert "remasked" in seen["remdm"] & seen["verify"] and "ended" in seen["stop_at_eos"]
    assert "grown" in seen["grow"] and "shrunk" in seen["shrink"]


def test_events_say_what_the_states_say(Table: Any) -> None:
    states, traces = run(PLANS["remdm"], Table(VOCABULARY))
    for row, trace in enumerate(traces):
        for event in trace.events:
            before, state = states[event.step - 1], states[event.step]
            assert (event.old, event.new) == (before.canvas[row, event.position], state.canvas[row, event.position])
            assert event.confidence == state.confidence[row, event.position]
            assert event.entropy == state.entropy[row, event.position]
            assert (event.confidence > 0) == (event.reason != "remasked") == (event.entropy > 0)


def test_a_commit_was_guessed_in_its_own_step(Table: Any) -> None:
    for trace in run(PLANS["verify"], Table(VOCABULARY))[1]:
        for event in trace.events:
            if event.reason in ("selected", "forced"):
                guess = {g.position: g for g in trace.guesses[event.step - 1]}[event.position]
                assert (guess.token, guess.probability) == (event.new, event.confidence)


def test_guesses_are_of_masks_only(Table: Any) -> None:
    for trace in run(PLANS["quota"], Table(VOCABULARY))[1]:
        for canvas, guesses in zip(trace.canvases(), trace.guesses, strict=False):
            assert guesses and all(canvas[g.position] == MASK != g.token for g in guesses)


def test_a_row_that_grows_counts_from_its_own_beginning(Table: Any) -> None:
    grown = [e for t in run(PLANS["grow"], Table(VOCABULARY), left=True)[1] for e in t.events if e.reason == "grown"]
    assert grown and all(event.old == NOTHING and event.new == MASK for event in grown)


def test_an_event_costs_a_few_tokens(Table: Any) -> None:
    trace = run(PLANS["quota"], Table(VOCABULARY))[1][1]
    bare = Trace(trace.start, trace.mask, trace.events, [], trace.steps, trace.forwards).to_json()
    assert len(bare) < 100 + 2 * len(trace.start) + 75 * len(trace.events)


def test_a_run_with_nothing_to_do() -> None:
    canvas = torch.tensor([[1, 2]])
    (trace,) = Recorder(generate(lambda *_: torch.empty(0), canvas, SPECIALS), MASK).finish()
    assert (trace.canvases(), trace.steps, trace.forwards) == ([[1, 2]], 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "3",
        "{}",
        '{"events": [], "guesses": []}',
        '{"events": [[1]], "guesses": [], "start": [], "mask": 1}',
        '{"events": [], "guesses": [], "start": [], "mask": 1, "colour": 2}',
        '{"events": null, "guesses": [], "start": [], "mask": 1}',
    ],
)
def test_another_file_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a trace"):
        Trace.from_json(text)
