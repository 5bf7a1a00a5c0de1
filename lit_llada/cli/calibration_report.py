"""What ``lit-llada calibrate`` prints, and what it writes beside the checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lit_llada.evaluation.calibration import Calibration
from lit_llada.evaluation.intervals import interval
from lit_llada.files import replacing, writing


def show(found: Calibration) -> None:
    """The table, and what it can and cannot tell."""
    console = Console(soft_wrap=True)
    console.print(found.table())
    if found.uncertainty > found.tolerance:
        console.print(
            f"With so few questions an accuracy is known to {found.uncertainty:.1f} points; a difference of"
            f" {found.tolerance:g} is noise.",
            highlight=False,
        )


def write_results(generation: Path, found: Calibration) -> None:
    """The numbers and the figure, beside the generation config that holds the chosen plan."""
    numbers = generation.with_name(re.sub(r"generation(_config)?\.json$", "calibration.json", generation.name))
    points = [
        {
            "count": point.plan.count,
            "bound": point.plan.limit if point.plan.count != "quota" else None,
            "right": point.right,
            "asked": point.asked,
            "accuracy": point.accuracy,
            "interval": interval(point.right, point.asked),
            "forwards": point.forwards,
            "tokens": point.tokens,
            "chosen": point is found.chosen,
        }
        for point in found.points
    ]
    whole = {"settings": asdict(found.settings), "tolerance": found.tolerance, "points": points}
    with writing(numbers) as file:
        file.write(json.dumps(whole, indent=2) + "\n")
    with replacing(numbers.with_suffix(".png")) as part:
        found.figure().savefig(part, format="png", dpi=120)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"plan       {generation}\nnumbers    {numbers}\nfigure     {numbers.with_suffix('.png')}")
