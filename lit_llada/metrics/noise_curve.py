"""The loss by noise level: mean nats of masked tokens in each decile of t, and the bound over all tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

DECILES = 10


class NoiseLevels(NamedTuple):
    """What :class:`NllByNoise` computes.

    Attributes:
        deciles: ``[10]`` float64, nats per masked token with t in 0..0.1, 0.1..0.2 and so on; NaN where there was none.
        bound: float64 scalar, nats per token: the sum of ``nll / p_mask`` over the masked tokens, over all tokens.
    """

    deciles: Tensor
    bound: Tensor


class NllByNoise(Metric):
    """Negative log-likelihood of masked tokens by noise level, and the bound that they add up to.

        curve = NllByNoise()
        curve.update(nll, t, p_mask, tokens)  # for every batch
        curve.compute().bound / math.log(2)   # bits per token

    Args:
        **options: options of ``torchmetrics.Metric``.
    """

    full_state_update = False
    sums: Tensor  # [2, 11] float64: by decile nll and masked tokens; in the last column weighted nll and all tokens

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(2, DECILES + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, t: Tensor, p_mask: Tensor, tokens: Tensor | int) -> None:
        """Add a batch with R masked tokens; the device is not waited for.

        Args:
            nll: ``[R]`` nats of each masked token.
            t: ``[R]`` noise level that each was masked at, in 0..1.
            p_mask: ``[R]`` probability of each to be masked.
            tokens: scalar, how many tokens might have been masked.
        """
        decile, nll = (t * DECILES).long().clamp(0, DECILES - 1), nll.double()
        self.sums[0].index_add_(0, decile, nll)
        self.sums[1].index_add_(0, decile, torch.ones_like(nll))
        self.sums[0, DECILES] += (nll / p_mask).sum()
        self.sums[1, DECILES] += tokens

    def compute(self) -> NoiseLevels:
        means = self.sums[0] / self.sums[1]
        return NoiseLevels(means[:DECILES], means[DECILES])
