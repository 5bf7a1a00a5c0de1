"""Preference losses on ELBO estimates with little variance (VRPO): how much likelier the chosen answer has become.

LLaDA 1.5 (2505.19223) puts estimates of the ELBO B into the DPO loss (its equations 7, 13 and 15):

    B(y | x) = E_l E_{S, |S| = l} [ (L / l) sum_{i in S} log p(y_i | y without S, x) ],      l uniform in 1..L
    s = beta (B_policy(y_w) - B_ref(y_w)) - beta (B_policy(y_l) - B_ref(y_l)),               loss = -log sigmoid(s)

What is random about an estimate is only which tokens are masked and how each mask is weighed. That is decided here,
for S answers of up to A tokens and n draws; a net is nowhere to be seen. Sums, never divided by the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.errors import UserError
from lit_llada.objectives.noise import Masking, keyed_uniform
from lit_llada.seeding import Stream


@dataclass(frozen=True)
class Estimator:
    """Which masks an ELBO is estimated from. Every choice has the same mean: the ELBO itself.

    Args:
        times: n_t, noise levels drawn for an answer.
        masks: n_y, masks drawn at each of them.
        masking: ``fixed_count`` masks exactly l tokens and weighs by L / l (what the paper does in practice);
            ``bernoulli`` masks each token with probability t and weighs by 1 / t.
        shared: policy and reference see the same masks (the paper's antithetic sampling).
        stratified: the noise levels share one uniform and divide the interval evenly: ``(u + j / n_t) mod 1``.
        complementary: draws come in pairs, a mask and all the rest of the answer.
        coupled: chosen and rejected answer draw from the same noise; ``coupling.aligned`` says which tokens share it.
        full_mask: one of the draws masks everything and has exactly the weight that the full mask has in B, 1 / L; the
            others need not meet it by chance.
    """

    times: int = 8
    masks: int = 1
    masking: Masking = "fixed_count"
    shared: bool = True
    stratified: bool = False
    complementary: bool = False
    coupled: bool = False
    full_mask: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: no draws, or options that exclude each other.
        """
        if self.times < 1 or self.masks < 1:
            raise UserError(f"estimator: times {self.times} and masks {self.masks} must be at least 1")
        if (self.complementary or self.full_mask) and (self.masking != "fixed_count" or self.masks != 1):
            raise UserError("estimator: complementary and full_mask need masking fixed_count and masks 1")
        if self.complementary and (self.times - self.full_mask) % 2:
            raise UserError(
                f"estimator: complementary draws come in pairs; {self.times} draws"
                f"{' less the full mask' if self.full_mask else ''} are odd"
            )
        if self.full_mask and self.times < 2:
            raise UserError("estimator: full_mask is one of the draws; give at least 2 times")

    @property
    def draws(self) -> int:
        """n, forward passes for each answer."""
        return self.times * self.masks


ESTIMATORS: dict[str, Estimator] = {
    "naive": Estimator(times=1, shared=False),  # plain DPO with a Monte-Carlo ELBO
    "vrpo": Estimator(),  # the paper's: all of the budget on noise levels, shared noise
    "best": Estimator(stratified=True, complementary=True, coupled=True),  # see notebooks/02_vrpo_variance.ipynb
}


Role = Literal["policy", "reference"]  # whose masks are drawn


class Draws(NamedTuple):
    """Masks and their weights.

    Attributes:
        masked: ``[n, S, A]`` bool.
        weight: ``[n, S]`` float64, so that the estimate is ``sum_d weight_d * sum_i masked_di log p_i``.
    """

    masked: Tensor
    weight: Tensor


def draw_masks(
    lengths: Tensor,
    keys: Tensor,
    seed: int,
    estimator: Estimator,
    width: int,
    role: Role = "policy",
    places: Tensor | None = None,
    mask_seed: int | None = None,
) -> Draws:
    """The masks of all draws, a pure function of the keys.

    Args:
        lengths: ``[S]`` int64 tokens L of each answer, at least 1.
        keys: ``[S]`` int64, the noise of each answer.
        seed: seed of the run.
        estimator: which masks are drawn.
        width: A, the longest answer there may be.
        role: the reference draws other noise than the policy, unless the estimator shares it.
        places: ``[S, A]`` names of the answers' tokens, see ``coupling.aligned``; None counts them from the start.
        mask_seed: draws other masks at the same noise levels; None is ``seed``.
    """
    stream = int(role == "reference" and not estimator.shared)
    count, weight, flipped = (_fixed_counts if estimator.masking == "fixed_count" else _bernoulli)(
        lengths, keys, seed, estimator, stream
    )
    draw = torch.arange(estimator.draws, device=keys.device)
    group = draw // 2 if estimator.complementary else draw  # a mask and its complement share their uniforms
    position = torch.arange(width, device=keys.device)
    inside = position < lengths[:, None]
    which = seed if mask_seed is None else mask_seed
    place = position if places is None else places
    u = keyed_uniform(which, Stream.WHICH, keys[None, :, None], group[:, None, None], stream, place)
    if estimator.masking == "fixed_count":
        u = u.masked_fill(~inside, 2.0).argsort(-1).argsort(-1).double()
    masked = (u < count[..., None]) ^ flipped[..., None]
    return Draws(masked & inside, weight)


def _levels(keys: Tensor, seed: int, number: int, stratified: bool, stream: int) -> Tensor:
    """``[number, S]`` uniforms in [0, 1)."""
    j = torch.arange(number, device=keys.device)[:, None]
    if not stratified:
        return keyed_uniform(seed, Stream.COUNT, keys[None], j, stream)
    return (keyed_uniform(seed, Stream.COUNT, keys[None], stream) + j / number) % 1.0


def _bernoulli(
    lengths: Tensor, keys: Tensor, seed: int, estimator: Estimator, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    t = 1 - _levels(keys, seed, estimator.times, estimator.stratified, stream)  # in (0, 1]
    t = t.repeat_interleave(estimator.masks, dim=0)
    return t, 1 / (t * estimator.draws), torch.zeros_like(t, dtype=torch.bool)


def _fixed_counts(
    lengths: Tensor, keys: Tensor, seed: int, estimator: Estimator, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each draw and answer ``[n, S]``: a number of tokens, the weight, and whether all others are masked instead."""
    length, n = lengths.double(), estimator.times - estimator.full_mask
    pairs = n // 2 if estimator.complementary else n
    u = _levels(keys, seed, pairs, estimator.stratified, stream)
    full, share = u < 1 / length, torch.ones_like(length)  # the full mask has the weight of one count among L
    if estimator.full_mask:  # it is taken apart, so the others draw from 1..L-1
        full, share = torch.zeros_like(full), (length - 1) / length
        rest = u
    else:
        rest = (u * length - 1) / (length - 1).clamp(min=1)
    # The lower half of 1..L-1 is enough for pairs: the complement has the upper one.
    count = ((rest / 2 if estimator.complementary else rest) * (length - 1)).floor() + 1
    count = torch.where(full, length, count.clamp(min=1).minimum((length - 1).clamp(min=1)))
    flipped = torch.zeros_like(full)
    if estimator.complementary:
        twin = torch.where(full, length, length - count)  # a full mask's twin is the full mask
        size = torch.stack((count, twin), 1).flatten(0, 1)
        flipped = torch.stack((flipped, ~full), 1).flatten(0, 1)
        count = count.repeat_interleave(2, dim=0)
    else:
        size = count.repeat_interleave(estimator.masks, dim=0)
        count, flipped = size, flipped.repeat_interleave(estimator.masks, dim=0)
    weight = share * length / size.clamp(min=1) / (n * estimator.masks)
    if estimator.full_mask:  # first or last is all the same; last keeps the pairs together
        count = torch.cat((count, length.expand(1, -1)))
        flipped = torch.cat((flipped, torch.zeros_like(flipped[:1])))
        weight = torch.cat((weight, (1 / length).expand(1, -1)))
    return count, weight, flipped


def score(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """``s = beta * ((B_policy - B_ref)(chosen) - (B_policy - B_ref)(rejected))``.

    Args:
        policy, reference: ``[2, P]`` ELBOs of chosen and rejected answers, nats.
        beta: strength of the tie to the reference.

    Returns:
        ``[P]``.
    """
    gain = policy - reference
    return beta * (gain[0] - gain[1])


def preference_loss(scores: Tensor, beta: float, kind: Literal["dpo", "ipo"] = "dpo") -> Tensor:
    """``[P]`` losses: ``-log sigmoid(s)``, or IPO's ``(s / beta - 1 / (2 beta))^2`` (2310.12036)."""
    if kind == "dpo":
        return -F.logsigmoid(scores)
    return (scores / beta - 1 / (2 * beta)).square()


def estimate(draws: Draws, log_likelihood: Tensor) -> Tensor:
    """``[S]`` ELBOs from ``[n, S]`` sums of log p over the masked tokens of each draw."""
    return (draws.weight.to(log_likelihood.dtype) * log_likelihood).sum(0)


def score_variance(draws: Draws, log_likelihood: Tensor, beta: float) -> Tensor:
    """Variance of the score's estimate, from the spread of its draws; exact in the mean if they are independent.

    Args:
        draws: masks of chosen and rejected answers, ``[n, 2P]``, n at least 2.
        log_likelihood: ``[n, 2P]`` policy minus reference: sums of log p over the masked tokens.
        beta: as in :func:`score`.

    Returns:
        ``[P]``.
    """
    n = len(draws.weight)
    each = beta * n * draws.weight.to(log_likelihood.dtype) * log_likelihood
    chosen, rejected = each.chunk(2, dim=1)
    return (chosen - rejected).var(0) / n
