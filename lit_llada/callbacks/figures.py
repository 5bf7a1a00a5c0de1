"""Figures of a denoising, a loss curve and a router: numbers in, matplotlib figures out; nothing is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lit_llada.sampling.frames import ORDER_STOPS, flow, frames, shown
from lit_llada.sampling.trace import Trace

MASKED_FILL, GIVEN_FILL, INK = "#eef0f3", "#c3c9d2", "#22262c"
ORDER_COLOURS = LinearSegmentedColormap.from_list("order", ORDER_STOPS)
MONO, COLUMNS = "DejaVu Sans Mono", 96


def denoising_figure(trace: Trace, piece: Callable[[int], str], title: str) -> Figure:
    """One sample's way from masks to text: step by position, the confidence of each token, and the text itself.

    Args:
        trace: the sample; of a token that was taken back one sees when it was there.
        piece: id -> text of one token.
        title: the heading.
    """
    steps, states = trace.steps, frames(trace)
    length = len(states[-1])
    order = np.array([cell.step for cell in states[-1]], dtype=int)
    confidence = np.array([cell.confidence for cell in states[-1]])
    pieces, norm = [shown(cell, piece) for cell in states[-1]], Normalize(1, max(steps, 2))
    lines = flow(pieces, COLUMNS)
    if len(lines) > 30:  # hardly anything but line ends
        lines = flow(pieces, COLUMNS, break_at_ends=False)
    heights = [min(0.4 + 0.075 * steps, 4.2), 0.7, 0.25 + 0.26 * len(lines)]
    figure = _figure(11, sum(heights) + 1.5, title)
    raster, bars, text = figure.subplots(3, 1, height_ratios=heights)

    below = math.ceil(0.05 * steps)  # some more rows, so that the last characters have room
    seen = np.full((steps + 1 + below, length), -1)  # the step of what stands there; 0: given, -1: masked
    for row in range(len(seen)):
        cells = states[min(row, steps)][:length]
        seen[row, : len(cells)] = [-1 if cell.kind in ("mask", "back") else cell.step for cell in cells]
    image = np.where(seen[..., None] > 0, ORDER_COLOURS(norm(seen)), _rgba(MASKED_FILL))
    image[seen == 0] = _rgba(GIVEN_FILL)
    raster.imshow(image, aspect="auto", interpolation="nearest", extent=(-0.5, length - 0.5, len(seen) - 0.5, -0.5))
    raster.set_ylabel("denoising step")
    raster.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    raster.tick_params(labelbottom=False)
    _characters(raster, pieces, order, norm, length)

    # Bars, not a line: neighbours are committed at different steps and have nothing to do with each other.
    made = order > 0
    bars.bar(np.arange(length)[made], confidence[made], width=0.9, color=ORDER_COLOURS(norm(order[made])))
    bars.set(xlim=(-0.5, length - 0.5), ylim=(0, 1), yticks=[0, 1], ylabel="confidence", xlabel="position")
    bars.grid(axis="y", color="#e3e6ea", linewidth=0.6)
    bars.set_axisbelow(True)
    bars.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    for axes in (raster, bars):
        axes.spines[:].set_visible(False)

    _paragraph(text, lines, order, norm)
    bar = figure.colorbar(_mappable(norm), ax=[raster, bars], pad=0.01, fraction=0.03, aspect=30)
    bar.locator = MaxNLocator(6, integer=True)
    bar.set_label("committed at step")
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    return figure


def noise_curve_figure(curve: Sequence[float], bound: float, levels: dict[str, float], unit: str, title: str) -> Figure:
    """Loss by decile of the noise level, with reference levels; the mean height of the curve is the bound.

    Args:
        curve: ten values, NaN for a decile without a masked token.
        bound: the bound on the negative log-likelihood.
        levels: reference levels by name, in the same unit.
        unit: what the vertical axis is in.
        title: the heading.
    """
    figure = _figure(8, 4.8, title)
    axes = figure.subplots()
    x = (np.arange(len(curve)) + 0.5) / len(curve)
    finite = [y for y in [*curve, *levels.values()] if math.isfinite(y)]
    top = 1.08 * max(finite, default=1.0)
    worst = max(levels.values(), default=top)
    axes.axhspan(worst, max(top, worst), color="#f7e3e1", linewidth=0)  # worse than a guess
    for (name, level), colour in zip(levels.items(), ("#b3463c", "#b9812c", "#6d7683"), strict=False):
        axes.axhline(level, color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
        _label(axes, 0.012, level, f"{name} {level:.2f}", colour)
    axes.fill_between(x, 0, curve, color="#2f6f9f", alpha=0.10, linewidth=0)
    axes.plot(x, curve, color="#2f6f9f", linewidth=2, marker="o", markersize=5.5, markeredgecolor="white")
    axes.axhline(bound, color=INK, linewidth=1.2)
    _label(axes, 0.012, bound, f"bound {bound:.3f}", INK)
    axes.set(xlim=(0, 1), ylim=(0, top), xlabel="noise level t (share of masked tokens)", ylabel=unit)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.grid(axis="y", color="#e8eaee", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def router_figure(masked: Tensor, visible_: Tensor, title: str) -> Figure:
    """Load of each expert in each layer, relative to an even spread, for masked and for visible tokens.

    Args:
        masked: ``[layers, E]`` each expert's share of the visits; rows sum to 1.
        visible_: the same, of visible tokens.
        title: the heading.
    """
    layers, experts = masked.shape
    figure = _figure(10.5, min(1.7 + 0.42 * layers, 9), title)
    panels = figure.subplots(1, 2, sharey=True)
    norm = Normalize(-2, 2)  # log2: a quarter of the even share to four times it
    for axes, load, name in zip(panels, (masked, visible_), ("masked tokens", "visible tokens"), strict=True):
        relative = load.cpu().numpy() * experts
        with np.errstate(divide="ignore"):
            image = colormaps["RdBu_r"](norm(np.log2(relative)))
        image[relative == 0] = _rgba(INK)
        axes.imshow(image, aspect="auto", interpolation="nearest")
        axes.set_title(name, fontsize=10, color=INK)
        axes.set(xlabel="expert")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(12, integer=True))
        axes.spines[:].set_visible(False)
        if layers * experts <= 200 and experts <= 16:
            for (layer, expert), value in np.ndenumerate(relative):
                ink = _contrast(image[layer, expert])
                axes.text(
                    expert,
                    layer,
                    f"{value:.1f}" if value >= 0.1 else "<.1" if value else "0",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=ink,
                )
    panels[0].set_ylabel("sparse layer")
    bar = figure.colorbar(
        _mappable(norm, colormaps["RdBu_r"]), ax=list(panels), pad=0.015, fraction=0.03, aspect=25, extend="both"
    )
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼", "½", "1", "2", "4"])
    bar.set_label("load / even share (black: none)")
    bar.outline.set_visible(False)
    return figure


def _characters(axes: Axes, pieces: Sequence[str], order: np.ndarray, norm: Normalize, length: int) -> None:
    """Write each token once, where it was committed, if it fits into its cell."""
    width = 9.6 * 72 / length  # points
    for position, piece in enumerate(pieces):
        size = min(8.5, 1.5 * width / max(len(piece), 1))
        if size >= 4.5 and piece.strip():
            colour = GIVEN_FILL if order[position] == 0 else ORDER_COLOURS(norm(order[position]))
            axes.text(
                position, order[position] - 0.4, piece, ha="center", va="top", fontsize=size, family=MONO,
                color=_contrast(_rgba(colour)), clip_on=True, parse_math=False,
            )  # fmt: skip


def _paragraph(axes: Axes, lines: list[list[tuple[int, str]]], order: np.ndarray, norm: Normalize) -> None:
    """The final text, each token on the colour of its step."""
    for row, line in enumerate(lines):
        column = 0
        for position, piece in line:
            colour = _rgba(GIVEN_FILL if order[position] == 0 else ORDER_COLOURS(norm(order[position])))
            axes.add_patch(Rectangle((column, row), len(piece), 0.92, color=colour, linewidth=0))
            for offset, character in enumerate(piece):
                axes.text(
                    column + offset + 0.5, row + 0.5, character, ha="center", va="center_baseline", fontsize=10,
                    family=MONO, color=_contrast(colour), parse_math=False,
                )  # fmt: skip
            column += len(piece)
    axes.set(xlim=(0, COLUMNS), ylim=(max(len(lines), 1), 0))
    axes.set_axis_off()


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    return figure


def _label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(text, (x, y), (0, 3), textcoords="offset points", fontsize=9, color=colour)


def _mappable(norm: Normalize, colours: Colormap = ORDER_COLOURS) -> ScalarMappable:
    return ScalarMappable(norm, colours)


def _rgba(colour: object) -> tuple[float, float, float, float]:
    return to_rgba(colour)  # type: ignore[arg-type]


def _contrast(rgba: Sequence[float]) -> str:
    return INK if 0.299 * rgba[0] + 0.587 * rgba[1] + 0.114 * rgba[2] > 0.5 else "white"
