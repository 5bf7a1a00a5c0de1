"""The learning rate over a run: a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lit_llada.errors import UserError


@dataclass
class Schedule:
    """The learning rate as a multiple of its peak.

    LLaDA's pre-training (2502.09992, section 2.2) is ``wsd`` with 2,000 warm-up steps, ``drop_at: 0.5217`` (1.2 of 2.3
    trillion tokens), ``drop_to: 0.25``, ``decay: 0.1304`` (the last 0.3 trillion) and ``final: 0.025``.

    Args:
        kind: ``wsd`` (warm-up, stable, linear decay), ``cosine`` (warm-up, half a cosine) or ``constant`` (warm-up).
        warmup_steps: steps from 0 to the peak, linear.
        decay: share of the run, at its end, that decays (``wsd``).
        final: the multiple at the last step (``wsd``, ``cosine``).
        drop_at: share of the run after which the rate drops and is held (``wsd``); None for no drop.
        drop_to: the multiple it drops to.
    """

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = 100
    decay: float = 0.1304
    final: float = 0.025
    drop_at: float | None = None
    drop_to: float = 0.25

    def __post_init__(self) -> None:
        """Refuse shares outside 0..1.

        Raises:
            UserError: with the name of the field.
        """
        for name in ("decay", "final", "drop_at", "drop_to"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"schedule.{name} is {value}; it must lie in 0..1")
        if self.warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps is {self.warmup_steps}; it must not be negative")

    def factor(self, step: int, total: int) -> float:
        """The multiple at ``step`` (0 is the first update) of ``total``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = min(step / max(total, 1), 1.0)
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            start = self.warmup_steps / max(total, 1)
            progress = (done - start) / max(1 - start, 1e-9)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        plateau = self.drop_to if self.drop_at is not None and done >= self.drop_at else 1.0
        left = (1 - done) / self.decay if self.decay else 1.0
        return plateau if left >= 1 else self.final + (plateau - self.final) * left
