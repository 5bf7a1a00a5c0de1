"""What did a calibration find? The table, the figure and the numbers, and how sure they are."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lit_llada.apps.settings import Settings, writing
from lit_llada.sampling.plan import Plan


@dataclass(frozen=True)
class Point:
    """A plan, and what it achieved.

    Args:
        plan: the policies.
        right: how many answers were right.
        asked: of how many.
        forwards: mean number of forwards of an answer.
        tokens: mean number of tokens of an answer, up to its first end.
    """

    plan: Plan
    right: int
    asked: int
    forwards: float
    tokens: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.asked

    @property
    def name(self) -> str:
        """The rule and its bound."""
        return "one token a step" if self.plan.count == "quota" else f"{self.plan.count} {self.plan.limit:g}"


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.959964, right / asked
    middle, half = p + z * z / (2 * asked), z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def report(points: Sequence[Point], chosen: Point, tolerance: float) -> None:
    """The table, and what it can and cannot tell."""
    title = f"{points[0].asked} questions; * is chosen"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("plan", "right", "% right", "95 %", "forwards", "tokens each"):
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
    for point in points:
        low, high = (100 * share for share in interval(point.right, point.asked))
        shares = f"{100 * point.accuracy:.1f}", f"{low:.1f} .. {high:.1f}"
        speed = f"{point.forwards:.2f}", f"{point.tokens / point.forwards:.2f}"
        mark, style = ("*", "bold") if point is chosen else (" ", "")
        table.add_row(f"{mark} {point.name}", str(point.right), *shares, *speed, style=style)
    console = Console(soft_wrap=True)
    console.print(table)
    low, high = interval(points[0].right, points[0].asked)
    if (half := 50 * (high - low)) > tolerance:
        console.print(
            f"With so few questions an accuracy is known to {half:.1f} points; a difference of {tolerance:g} is noise.",
            highlight=False,
        )


def write_results(
    generation: Path, points: Sequence[Point], chosen: Point, tolerance: float, settings: Settings
) -> None:
    """The numbers and the figure, beside the generation config that holds the chosen plan."""
    numbers = generation.with_name(re.sub(r"generation(_config)?\.json$", "calibration.json", generation.name))
    found = [
        {
            "count": point.plan.count,
            "bound": point.plan.limit if point.plan.count != "quota" else None,
            "right": point.right,
            "asked": point.asked,
            "accuracy": point.accuracy,
            "interval": interval(point.right, point.asked),
            "forwards": point.forwards,
            "tokens": point.tokens,
            "chosen": point is chosen,
        }
        for point in points
    ]
    whole = {"settings": asdict(settings), "tolerance": tolerance, "points": found}
    with writing(numbers) as file:
        file.write(json.dumps(whole, indent=2) + "\n")
    draw(numbers.with_suffix(".png"), points, chosen, tolerance)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"plan       {generation}\nnumbers    {numbers}\nfigure     {numbers.with_suffix('.png')}")


def draw(path: Path, points: Sequence[Point], chosen: Point, tolerance: float) -> None:
    """Accuracy against forwards, a line for each rule, with 95 % intervals; what is in the band may be chosen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    one = 100 * points[0].accuracy
    axes.axhspan(one - tolerance, one, color="0.9", label=f"within {tolerance:g} points")
    for count in dict.fromkeys(point.plan.count for point in points):
        line = sorted((p for p in points if p.plan.count == count), key=lambda p: p.forwards)
        x, y = [p.forwards for p in line], [100 * p.accuracy for p in line]
        ends = [interval(p.right, p.asked) for p in line]
        below, above = zip(
            *((v - 100 * low, 100 * high - v) for v, (low, high) in zip(y, ends, strict=True)), strict=True
        )
        label = "one token a step" if count == "quota" else count.replace("_", " ")
        axes.errorbar(x, y, (below, above), marker="o", markersize=4, linewidth=1, capsize=2, label=label)
        for point, here in zip(line, zip(x, y, strict=True), strict=True):
            if count != "quota":
                axes.annotate(
                    f"{point.plan.limit:g}", here, (3, 3), textcoords="offset points", fontsize=8, rotation=45
                )
    spot = [chosen.forwards], [100 * chosen.accuracy]
    axes.scatter(*spot, s=140, facecolors="none", edgecolors="black", zorder=5, label="chosen")
    axes.set(xlabel="forwards an answer (mean)", ylabel="right answers, %", xlim=(0, None))
    axes.set_title(f"{points[0].asked} questions, exact match", loc="left", fontsize=10)
    axes.legend(fontsize=8)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=120)
    os.replace(part, path)
