"""Fills many canvases in ragged batches, and reads the answer of each; no answer depends on its batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch

from lit_llada.sampling.canvas import Canvas, Denoiser, State, pad_canvases
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.predictor import Predictor
from lit_llada.sampling.trace import Recorder, Trace
from lit_llada.text.specials import Specials, until_end

T = TypeVar("T")


class Answer(NamedTuple):
    """What came of one canvas.

    Attributes:
        gaps: what was written into each gap, up to (not including) its first end token.
        ids: the whole canvas, its gaps read like this.
        ended: whether the last gap met an end token.
        steps: number of steps that this canvas took.
        forwards: number of forward passes of it.
        seconds: time from the start of its batch until it was complete.
        trace: how it came about, if that was recorded.
    """

    gaps: list[Canvas]
    ids: Canvas
    ended: bool
    steps: int
    forwards: int
    seconds: float
    trace: Trace | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the answer, none of the prompt's, and none behind an end."""
        return sum(map(len, self.gaps))


def fill_canvases(
    new_predictor: Callable[[], Denoiser | Predictor],
    canvases: Sequence[Canvas],
    specials: Specials,
    plan: Plan,
    *,
    seeds: Sequence[int],
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    record: bool = False,
) -> Iterator[tuple[int, Answer]]:
    """Fill every canvas, those of like lengths together.

    Args:
        new_predictor: makes the predictor that a batch is asked with, or gives the bare net.
        canvases: canvases of any lengths.
        specials: the mask and the ends.
        plan: the policies.
        seeds: seed of each canvas's noise.
        batch_size: canvases at once.
        device: device of the net.
        record: keep traces, entropies included.

    Yields:
        The canvas's number and its answer, batch by batch, the longest first: what does not fit fails at once.

    Raises:
        UserError: see :func:`generate`.
    """
    order = sorted(range(len(canvases)), key=lambda i: -len(canvases[i]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        batch, noise = [canvases[i] for i in numbers], torch.tensor([seeds[i] for i in numbers])
        canvas, real = (x.to(device) for x in pad_canvases(batch, specials))
        states = generate(new_predictor(), canvas, specials, plan, real=real, seeds=noise, details=record)
        yield from zip(numbers, _follow(states, batch, specials, record), strict=True)


def in_number_order(pairs: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Numbered answers in the order of their numbers, each as soon as all before it are there."""
    held: dict[int, T] = {}
    number = 0
    for i, answer in pairs:
        held[i] = answer
        while number in held:
            yield held.pop(number)
            number += 1


def read_gaps(before: Canvas, after: Canvas, specials: Specials) -> tuple[list[Canvas], Canvas, bool]:
    """Each gap of a canvas up to its first end, the canvas read like this, and whether the last gap ended.

    Args:
        before: the canvas as it was given.
        after: as it is now; longer or shorter at its end where the plan let it grow.
        specials: the mask and the ends.
    """
    gaps: list[Canvas] = []
    ids: Canvas = []
    ended, at = False, 0
    for masked, run in groupby(before, lambda token: token == specials.mask):
        start, at = at, at + len(list(run))
        part = after[start : len(after) if at == len(before) else at]
        if masked:
            part, ended = until_end(part, specials.ends)
            gaps.append(part)
        ids += part
    return gaps, ids, ended


def _follow(states: Iterable[State], canvases: Sequence[Canvas], specials: Specials, record: bool) -> list[Answer]:
    began, recorder = time.perf_counter(), Recorder(states, specials.mask) if record else None
    count = len(canvases)
    steps, seconds, forwards = [0] * count, [0.0] * count, [0] * count
    state = None
    for state in states if recorder is None else recorder:
        asked = state.forwards.tolist()  # waits for the device, so the clock is right
        for i in range(count):
            if asked[i] > forwards[i]:
                steps[i], seconds[i] = state.step, time.perf_counter() - began
        forwards = asked
    assert state is not None
    finals = [canvas[real].tolist() for canvas, real in zip(state.canvas.cpu(), state.real.cpu(), strict=True)]
    traces = [None] * count if recorder is None else recorder.traces
    parts = zip(canvases, finals, steps, forwards, seconds, traces, strict=True)
    return [Answer(*read_gaps(before, after, specials), *measured) for before, after, *measured in parts]
