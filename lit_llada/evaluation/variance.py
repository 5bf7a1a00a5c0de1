"""Measures the noise in score, loss and gradient of a preference pair, and where it comes from.

Table 2 of LLaDA 1.5 (2505.19223) for any pairs, models and estimators. The variance of a score has two parts,

    V = V_t + V_y       V_t between noise levels, V_y between masks at the same noise levels       (its Lemma 5),

which are told apart by drawing several masks at each set of noise levels. Theorem 1 bounds what the loss l can suffer:

    E |l_estimated - l| <= sqrt(V)        V[l_estimated] <= 4 V
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_llada.data.batch import AnswerBatch
from lit_llada.objectives.coupling import draw_pairs
from lit_llada.objectives.preference import (
    Draws,
    Estimator,
    Role,
    estimate,
    preference_loss,
    score,
)
from lit_llada.objectives.two_pass import two_pass

# A batch of pairs and which tokens of its answers are masked, [S, A] -> [S] sums of log p over these.
Ask = Callable[[AnswerBatch, Tensor], Tensor]


class Spread(NamedTuple):
    """What one estimator does, for each of N pairs (float64); :meth:`means` is a row of the table.

    Attributes:
        between: ``[N]`` V_t, the part of the score's variance that comes from the noise levels of all draws.
        within: ``[N]`` V_y, the part that comes from the masks at these levels. Both are unbiased, so that ``between``
            may come out below zero where it is small.
        loss: ``[N]`` variance of the loss.
        bias: ``[N]`` mean of the estimated loss less the loss.
        distance: ``[N]`` mean of |estimated loss - loss|.
        gradient: ``[batches]`` trace of the covariance of the gradient of a batch's mean loss; empty if not asked for.
    """

    between: Tensor
    within: Tensor
    loss: Tensor
    bias: Tensor
    distance: Tensor
    gradient: Tensor

    @property
    def score(self) -> Tensor:
        """``[N]`` variance of the score."""
        return self.between + self.within

    def means(self) -> dict[str, float]:
        """Means over pairs, and both sides of Theorem 1 with the verdict: ``distance <= root``, ``loss <= 4 score``."""
        row = {name: float(value.mean()) for name, value in self._asdict().items()}
        row |= {"score": float(self.score.mean()), "root": float(self.score.sqrt().mean())}
        row["holds"] = row["distance"] <= row["root"] and row["loss"] <= 4 * row["score"]
        return row


def measure(
    batches: Sequence[AnswerBatch],
    policy: Ask,
    reference: Ask,
    estimator: Estimator,
    losses: Sequence[Tensor],
    *,
    repeats: int = 8,
    masks: int = 2,
    beta: float = 0.2,
    parameters: Sequence[Tensor] = (),
    seed: int = 1,
) -> Spread:
    """Estimate the same pairs again and again.

    Args:
        batches: batches of pairs.
        policy, reference: see :data:`Ask`.
        estimator: see there.
        losses: loss of each batch ``[P]``, as exactly as can be had: see :func:`well_known`.
        repeats: independent estimates, at least 2.
        masks: how often other masks are drawn at the noise levels of each, at least 2.
        beta: strength of the tie to the reference.
        parameters: parameters of the policy; the variance of their gradient (over ``repeats``) is measured too, which
            takes four times as long. Their ``grad`` is overwritten.
        seed: seed of the noise.
    """
    parts: list[list[Tensor]] = []
    traces = []
    for batch, known in zip(batches, losses, strict=True):
        ask = _Pairs(batch, policy, reference, estimator, beta)
        scores = torch.stack(
            [torch.stack([ask.scores(r, r * masks + m) for m in range(masks)]) for r in range(seed, seed + repeats)]
        )
        found = preference_loss(scores, beta)
        error = (found - known).flatten(0, 1)
        parts.append([*split(scores), sum(split(found)), error.mean(0), error.abs().mean(0)])  # type: ignore[list-item]
        if parameters:
            each = torch.stack([ask.gradient(r, r * masks, parameters) for r in range(seed, seed + repeats)])
            traces.append(each.var(0).sum())
    between, within, loss, bias, distance = (torch.cat(part) for part in zip(*parts, strict=True))
    return Spread(between, within, loss, bias, distance, gradient=torch.tensor(traces, dtype=torch.float64))


def well_known(
    batches: Sequence[AnswerBatch],
    policy: Ask,
    reference: Ask,
    budget: Estimator = Estimator(64, stratified=True),  # noqa: B008  (frozen)
    beta: float = 0.2,
    seed: int = 0,
) -> list[Tensor]:
    """``[P]`` losses of each batch from so many draws that little noise is left; the seed is not to be used again."""
    return [
        preference_loss(_Pairs(batch, policy, reference, budget, beta).scores(seed, seed), beta) for batch in batches
    ]


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """Tell apart what varies between groups and what within: the analysis of variance, without bias.

    Args:
        values: ``[R, M, ...]`` M values in each of R independent groups, both at least 2.

    Returns:
        variance of the groups' true means, mean variance within a group; ``[...]``. Their sum estimates the variance of
        a single value.
    """
    within = values.var(1).mean(0)
    return values.mean(1).var(0) - within / values.shape[1], within


class _Pairs(NamedTuple):
    """A batch, and how its scores are estimated."""

    batch: AnswerBatch
    policy: Ask
    reference: Ask
    estimator: Estimator
    beta: float

    def draw(self, seed: int, mask_seed: int, role: Role) -> Draws:
        tokens, answers, keys = self.batch.tokens, self.batch.answers, self.batch.keys.view(2, -1)[0]
        return draw_pairs(tokens, answers, keys, seed, self.estimator, role, mask_seed)

    @torch.no_grad()
    def tied(self, seed: int, mask_seed: int) -> Tensor:
        """``[2, P]`` ELBOs of the reference."""
        draws = self.draw(seed, mask_seed, role="reference")
        return _elbos(draws, torch.stack([self.reference(self.batch, masked) for masked in draws.masked]))

    @torch.no_grad()
    def scores(self, seed: int, mask_seed: int) -> Tensor:
        """``[P]`` float64."""
        draws = self.draw(seed, mask_seed, role="policy")
        own = _elbos(draws, torch.stack([self.policy(self.batch, masked) for masked in draws.masked]))
        return score(own, self.tied(seed, mask_seed), self.beta)

    def gradient(self, seed: int, mask_seed: int, parameters: Sequence[Tensor]) -> Tensor:
        """``[all parameters]`` float64, of the mean loss over the batch."""
        draws, tied = self.draw(seed, mask_seed, role="policy"), self.tied(seed, mask_seed)

        def loss(sums: Tensor) -> Tensor:
            return preference_loss(score(_elbos(draws, sums), tied, self.beta), self.beta).mean()

        for parameter in parameters:
            parameter.grad = None
        rest, _ = two_pass(lambda d: (self.policy(self.batch, draws.masked[d]), None), self.estimator.draws, loss)
        rest.backward()
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([grad.flatten().double() for grad in zero])


def _elbos(draws: Draws, sums: Tensor) -> Tensor:
    return estimate(draws, sums.double()).view(2, -1)
