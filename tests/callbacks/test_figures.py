"""Pictures can be drawn from whatever a run may hand over, also from what is empty or odd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lit_llada.callbacks.figures import GIVEN_FILL, MASKED_FILL, denoising_figure, noise_curve_figure, router_figure
from lit_llada.sampling.trace import Event, Trace

MASK = 9


def drawn(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.mark.parametrize("pieces", [["$", "_^", "\n", "é"], ["\n"] * 4, ["a long token "] * 4])
def test_denoising_of_odd_texts(pieces: list[str]) -> None:
    events = [Event(i % 5, i, MASK, i % 4, i / 40, 0.0, "selected") for i in range(40) if i % 5]
    trace = Trace([MASK if i % 5 else i % 4 for i in range(40)], MASK, sorted(events), steps=4)
    height, width = drawn(denoising_figure(trace, pieces.__getitem__, "free $1")).shape[:2]
    assert height < 2500 and width < 1500


def test_denoising_shows_what_was_taken_back_and_what_grew() -> None:
    events = [
        Event(1, 1, MASK, 4, 0.5, 0.0, "selected"),
        Event(2, 1, 4, MASK, 0.0, 0.0, "remasked"),
        Event(2, 2, -1, MASK, 0.0, 0.0, "grown"),
        Event(3, 1, MASK, 5, 0.9, 0.0, "forced"),
    ]
    figure = denoising_figure(Trace([3, MASK], MASK, events, steps=3), str, "three")
    image = figure.axes[0].images[0].get_array()
    assert image is not None and image.shape == (3 + 1 + 1, 3, 4)
    grey, given = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (MASKED_FILL, GIVEN_FILL))
    masked = np.isclose(image[:4, 1, :3], grey).all(1).tolist()
    assert masked == [True, False, True, False] and np.allclose(image[:, 0, :3], given)
    drawn(figure)
    drawn(denoising_figure(Trace([3], MASK), str, "nothing to do"))


def test_a_curve_with_holes_and_a_router_with_dead_experts() -> None:
    drawn(noise_curve_figure([1.0, math.nan] * 5, 1.0, {}, "bits per token", "step 0"))
    drawn(noise_curve_figure([math.nan] * 10, math.nan, {"uniform": 8.0}, "bits per byte", "step 0"))
    drawn(router_figure(torch.zeros(1, 64), torch.full((1, 64), 1 / 64), "step 0"))
