"""Lightning, data and callbacks around a step of 336 M parameters, over a bare loop that takes the same steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.measure import Figures, Machine, Row, attempt
from benchmarks.timing import verdict

ROOT, BAR = Path(__file__).parents[2], 1.02


def framework(machine: Machine) -> Iterator[Row]:
    """Groups of steps in turns; the device is waited for between groups only, so that it can run ahead in both."""
    import litdata  # noqa: F401  (missing: the part is skipped before it prepares data)

    config = machine.config("336m")  # its vocabulary is the data's
    length, rows, pairs, group = machine.pick((4096, 4, 8, 4), (16, 2, 2, 1))

    def side_by_side() -> tuple[Figures, str]:
        from benchmarks.framework import side_by_side

        accelerator = "gpu" if machine.device.type == "cuda" else "cpu"
        text = [ROOT / name for name in machine.pick(("lit_llada", "tests"), ("docs",))]
        found, _ = side_by_side(config, length, rows, pairs, accelerator, group, warmup=1, inputs=text)
        figures = {"ms": 1e3 * found.slow, "ms bare": 1e3 * found.fast, "over bare": found.ratio}
        return figures, f"over bare {verdict(found.ratio, BAR, at_most=True)}"

    yield attempt(f"{rows} x {length}, groups of {group}", side_by_side)
