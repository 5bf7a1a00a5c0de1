"""Pictures can be drawn from whatever a run may hand over, also from what is empty or odd."""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.figure import Figure

from lit_llada.callbacks.figures import denoising_figure, flow, noise_curve_figure, router_figure, visible


def drawn(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_lines_break_after_line_ends_and_at_the_margin() -> None:
    assert flow(["ab", "c↵", "de", "f", "gh"], 3) == [[(0, "ab")], [(1, "c↵")], [(2, "de"), (3, "f")], [(4, "gh")]]
    assert flow([], 3) == [[]] and flow(["abcd"], 3) == [[(0, "abc")]]
    assert flow(["↵", "↵"], 3, break_at_ends=False) == [[(0, "↵"), (1, "↵")]]


def test_control_characters_take_one_visible_column() -> None:
    assert visible("a\n\tb\x00") == "a↵→b·"


def test_denoising_of_odd_texts() -> None:
    step = torch.arange(40) % 5
    for pieces in (["$", "_^", "\n", "é"] * 10, ["\n"] * 40, ["a long token "] * 40):
        height, width = drawn(denoising_figure(pieces, step, torch.rand(40), 4, "free $1")).shape[:2]
        assert height < 2500 and width < 1500
    drawn(denoising_figure(["a"], torch.tensor([0]), torch.ones(1), 0, "nothing to do"))


def test_a_curve_with_holes_and_a_router_with_dead_experts() -> None:
    drawn(noise_curve_figure([1.0, math.nan] * 5, 1.0, {}, "bits per token", "step 0"))
    drawn(noise_curve_figure([math.nan] * 10, math.nan, {"uniform": 8.0}, "bits per byte", "step 0"))
    drawn(router_figure(torch.zeros(1, 64), torch.full((1, 64), 1 / 64), "step 0"))
