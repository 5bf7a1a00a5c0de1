"""A trace: every change of a canvas as an event; played again, the events give every state of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Reason, State

NOTHING = -1  # the id of a position that is not there: before it has grown, after it has shrunk


class Event(NamedTuple):
    """One position changed: in which step, where, from which id to which, how sure the net was, and why."""

    step: int
    position: int
    old: int
    new: int
    confidence: float
    entropy: float
    reason: str  # the name of a Reason, in lower case


class Guess(NamedTuple):
    """What a step would have written at a position it looked at, and how likely that was."""

    position: int
    token: int
    probability: float


@dataclass
class Trace:
    """One row of a run. Positions count from the row's own first token; padding is left out.

    Attributes:
        start: the canvas as it was given.
        mask: id of the mask.
        events: in order of step and position.
        guesses: predictions of each step before its commitment.
        steps: how many steps were taken.
        forwards: how often the net was asked for this row.
    """

    start: list[int]
    mask: int
    events: list[Event] = field(default_factory=list)
    guesses: list[list[Guess]] = field(default_factory=list)
    steps: int = 0
    forwards: int = 0

    def canvases(self) -> list[list[int]]:
        """The canvas after every step, the given one first; the last one holds the final ids."""
        canvas, found = list(self.start), [list(self.start)]
        events = iter([*self.events, None])
        event = next(events)
        for step in range(1, self.steps + 1):
            end: int | None = None  # of the row, where it shrinks
            while event is not None and event.step == step:
                if event.old == NOTHING:
                    canvas.append(event.new)
                elif event.new == NOTHING:
                    end = event.position if end is None else end
                else:
                    canvas[event.position] = event.new
                event = next(events)
            canvas = canvas[:end]
            found.append(list(canvas))
        return found

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read :meth:`to_json`'s line.

        Raises:
            UserError: it is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            events = [Event(*event) for event in fields.pop("events")]
            guesses = [[Guess(*guess) for guess in step] for step in fields.pop("guesses")]
            return cls(events=events, guesses=guesses, **fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError("this is not a trace; record one with lit-llada sample --trace FILE") from None


class Recorder:
    """Passes the states of a run on and writes down what happened in them.

    Args:
        states: from :func:`generate`; with ``details`` entropies are known.
        mask: id of the mask.

    Attributes:
        traces: one for each row of the batch, complete when the states are at their end.
    """

    def __init__(self, states: Iterable[State], mask: int) -> None:
        self.states, self.mask = states, mask
        self.traces: list[Trace] = []

    def __iter__(self) -> Iterator[State]:
        before: State | None = None
        for state in self.states:
            if before is None:
                self._starts = state.real.int().argmax(1).tolist()
                rows = zip(state.canvas.tolist(), state.real.tolist(), strict=True)
                self.traces = [Trace([i for i, r in zip(*row, strict=True) if r], self.mask) for row in rows]
            else:
                self._write(before, state)
            before = state
            yield state

    def finish(self) -> list[Trace]:
        """Run to the end and return the traces."""
        for _ in self:
            pass
        return self.traces

    def _write(self, before: State, state: State) -> None:
        for row, position in state.reason.nonzero().tolist():
            reason, trace = Reason(int(state.reason[row, position])), self.traces[row]
            old = NOTHING if reason == Reason.GROWN else int(before.canvas[row, position])
            new = NOTHING if reason == Reason.SHRUNK else int(state.canvas[row, position])
            known = float(state.confidence[row, position]), float(state.entropy[row, position])
            place = position - self._starts[row]
            trace.events.append(Event(state.step, place, old, new, *known, reason.name.lower()))
        asked = (state.forwards > before.forwards).tolist()
        for row, trace in enumerate(self.traces):
            if asked[row]:
                looked = state.probability[row].nonzero().squeeze(1)
                found = (x[row, looked].tolist() for x in (state.predicted, state.probability))
                places = (looked - self._starts[row]).tolist()
                trace.guesses.append([Guess(*guess) for guess in zip(places, *found, strict=True)])
                trace.steps, trace.forwards = state.step, int(state.forwards[row])
