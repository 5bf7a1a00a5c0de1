"""Means of several quantities over one count: the bound per token, the accuracy of preferences, and their margins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Sums of named quantities, all divided by one count (tokens, answers or pairs).

    Sums are added up, not means, so that batches of any size weigh what they hold:

        means = Means(["accuracy", "score"])
        for scores in batches:  # [P] preference scores of P pairs
            means.update(len(scores), accuracy=(scores > 0).sum(), score=scores.sum())
        means.compute()  # {"accuracy": ..., "score": ...}, float64 scalars; NaN where nothing was counted

    Args:
        names: names of the quantities; every update brings all of them.
        **options: options of ``torchmetrics.Metric``.
    """

    full_state_update = False
    sums: Tensor  # [1 + names] float64: the count, then a sum of each quantity

    def __init__(self, names: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(1 + len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, count: Tensor | float, **totals: Tensor) -> None:
        """Add a batch.

        Args:
            count: scalar, how many tokens, answers or pairs the batch holds.
            **totals: scalar sum of each quantity over them.

        Raises:
            ValueError: other quantities than ``names``.
        """
        if set(totals) != set(self.names):
            raise ValueError(f"Means of {sorted(self.names)} got {sorted(totals)}")
        new = [self.sums.new_full((), count) if isinstance(count, (int, float)) else count]
        new += [totals[name] for name in self.names]
        self.sums += torch.stack([value.double() for value in new])

    def compute(self) -> dict[str, Tensor]:
        """Name -> mean, float64 scalars."""
        return dict(zip(self.names, self.sums[1:] / self.sums[0], strict=True))
