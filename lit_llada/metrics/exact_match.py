"""Right answers by task: how many were asked, and how many of the replies were exactly right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RightByTask(Metric):
    """Right answers and questions of each task.

        match = RightByTask(["add", "reverse"])
        match.update(torch.tensor([True, False, True]), ["add", "add", "reverse"])
        match.compute()  # {"add": (1, 2), "reverse": (1, 1)}

    Args:
        tasks: names of the tasks, in the order of the result; a name that comes again counts once.
        **options: options of ``torchmetrics.Metric``; ``sync_on_compute=False`` where all processes answer the same
            questions.
    """

    full_state_update = False
    counts: Tensor  # [2 (right, asked), tasks] int64

    def __init__(self, tasks: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self.tasks = tuple(dict.fromkeys(tasks))
        self.add_state("counts", torch.zeros(2, len(self.tasks), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, right: Tensor, tasks: Sequence[str]) -> None:
        """Add replies.

        Args:
            right: ``[N]`` bool, whether each reply is exactly the answer.
            tasks: the task of each of the N questions.
        """
        task = torch.tensor([self.tasks.index(name) for name in tasks], dtype=torch.int64, device=right.device)
        counted = torch.stack([right.long(), torch.ones_like(right, dtype=torch.int64)])
        self.counts.index_add_(1, task, counted)

    def compute(self) -> dict[str, tuple[int, int]]:
        """Task -> (right answers, questions asked)."""
        right, asked = self.counts.tolist()
        return dict(zip(self.tasks, zip(right, asked, strict=True), strict=True))
