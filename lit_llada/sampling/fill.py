"""How are many canvases filled, and what is read of each? Ragged batches; an answer does not depend on its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch

from lit_llada.sampling.canvas import Denoiser, Row, State, pad_rows
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.trace import Recorder, Trace
from lit_llada.text.specials import Specials, until_end

T = TypeVar("T")


class Answer(NamedTuple):
    """What came of one row.

    Attributes:
        gaps: what was written into each gap, up to (not including) its first end token.
        ids: the whole row, its gaps read like this.
        ended: whether the last gap met an end token.
        steps, forwards: how many this row took.
        seconds: from the start of its batch until this row was complete.
        trace: how it came about, if that was recorded.
    """

    gaps: list[Row]
    ids: Row
    ended: bool
    steps: int
    forwards: int
    seconds: float
    trace: Trace | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer, none of the prompt's, and none behind an end."""
        return sum(map(len, self.gaps))


def answer_rows(
    denoiser: Callable[[], Denoiser],
    rows: Sequence[Row],
    specials: Specials,
    plan: Plan,
    *,
    seeds: Sequence[int],
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    record: bool = False,
) -> Iterator[tuple[int, Answer]]:
    """Fill every row, those of like lengths together.

    Args:
        denoiser: makes the one that a batch is asked with.
        rows: canvases of any lengths.
        specials: the mask and the ends.
        plan: the policies.
        seeds: the noise of each row.
        batch_size: rows at once.
        device: of the net.
        record: keep traces, entropies included.

    Yields:
        The row's number and its answer, batch by batch, the longest rows first: what does not fit fails at once.

    Raises:
        UserError: see :func:`generate`.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        batch, noise = [rows[i] for i in numbers], torch.tensor([seeds[i] for i in numbers])
        canvas, real = (x.to(device) for x in pad_rows(batch, specials))
        states = generate(denoiser(), canvas, specials, plan, real=real, seeds=noise, details=record)
        yield from zip(numbers, _follow(states, batch, specials, record), strict=True)


def in_order(pairs: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Numbered answers in the order of their numbers, each as soon as all before it are there."""
    held: dict[int, T] = {}
    number = 0
    for i, answer in pairs:
        held[i] = answer
        while number in held:
            yield held.pop(number)
            number += 1


def read_gaps(before: Row, after: Row, specials: Specials) -> tuple[list[Row], Row, bool]:
    """What was written into a row: each gap up to its first end, the row read like this, whether the last gap ended.

    Args:
        before: the canvas as it was given.
        after: as it is now; longer or shorter at its end where the plan let it grow.
        specials: the mask and the ends.
    """
    gaps: list[Row] = []
    ids: Row = []
    ended, at = False, 0
    for masked, run in groupby(before, lambda token: token == specials.mask):
        start, at = at, at + len(list(run))
        part = after[start : len(after) if at == len(before) else at]
        if masked:
            part, ended = until_end(part, specials.ends)
            gaps.append(part)
        ids += part
    return gaps, ids, ended


def _follow(states: Iterable[State], rows: Sequence[Row], specials: Specials, record: bool) -> list[Answer]:
    began, recorder = time.perf_counter(), Recorder(states, specials.mask) if record else None
    steps, seconds, forwards = [0] * len(rows), [0.0] * len(rows), [0] * len(rows)
    state = None
    for state in states if recorder is None else recorder:
        asked = state.forwards.tolist()  # waits for the device, so the clock is right
        for i in range(len(rows)):
            if asked[i] > forwards[i]:
                steps[i], seconds[i] = state.step, time.perf_counter() - began
        forwards = asked
    assert state is not None
    finals = [canvas[real].tolist() for canvas, real in zip(state.canvas.cpu(), state.real.cpu(), strict=True)]
    traces = [None] * len(rows) if recorder is None else recorder.traces
    parts = zip(rows, finals, steps, forwards, seconds, traces, strict=True)
    return [Answer(*read_gaps(row, final, specials), *measured) for row, final, *measured in parts]
