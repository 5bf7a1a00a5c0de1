"""Noise: how much of a sequence is masked and which tokens, as pure functions of keys.

Nothing here has a state. Whether position i of sample s is masked in draw d depends on (seed, s, d, i) alone, so the
masks are the same on any number of processes, after a resume, and for a second net that is to see the same noise.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_llada.seeding import Stream

TimeSampler = Literal["iid", "stratified", "antithetic"]
Masking = Literal["bernoulli", "fixed_count"]


class Noised(NamedTuple):
    """Args:
    noisy: ``[B, T]`` tokens with the mask id where masked.
    masked: ``[B, T]`` booleans.
    p_mask: ``[B]`` float64, the probability (or share) of a masked token; 1 / p_mask is the loss weight.
    """

    noisy: Tensor
    masked: Tensor
    p_mask: Tensor


def keyed_uniform(*keys: int | Tensor) -> Tensor:
    """A uniform number in [0, 1) for every combination of keys: a hash (splitmix64), not a generator.

    Args:
        keys: integers and int64 tensors that broadcast together, at least one tensor.

    Returns:
        float64, of the broadcast shape, on the tensors' device.
    """
    device = next(key.device for key in keys if isinstance(key, Tensor))
    h = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        h = _mix(h ^ _mix(key if isinstance(key, Tensor) else torch.full((), key, device=device)))
    return _shift(h, 11).double() * 2.0**-53


def sample_times(
    keys: Tensor, seed: int, draw: int | Tensor = 0, sampler: TimeSampler = "iid", strata: int = 1
) -> Tensor:
    """Times t ~ U[0, 1), one a sample; every sampler has that same marginal.

    ``iid`` is the paper's. ``stratified``: the samples ``n*strata .. (n+1)*strata - 1`` share one uniform u and take
    ``(u + i / strata) mod 1``. ``antithetic``: samples ``2n`` and ``2n + 1`` take u and 1 - u.

    Args:
        keys: ``[B]`` int64 sample keys.
        seed: seed of the run.
        draw: number of the draw, for several draws of one sample.
        sampler: one of the samplers above.
        strata: how many consecutive samples share the interval (the global batch).

    Returns:
        ``[B]`` float64.
    """
    if sampler == "iid":
        return keyed_uniform(seed, Stream.TIME, keys, draw)
    if sampler == "stratified":
        u = keyed_uniform(seed, Stream.TIME, keys.div(strata, rounding_mode="floor"), draw)
        return (u + keys.remainder(strata) / strata) % 1.0
    u = keyed_uniform(seed, Stream.TIME, keys.div(2, rounding_mode="floor"), draw)
    return torch.where(keys.remainder(2) == 0, u, 1.0 - u)


def mask_tokens(
    tokens: Tensor,
    maskable: Tensor,
    t: Tensor,
    keys: Tensor,
    mask_id: int,
    seed: int,
    draw: int | Tensor = 0,
    masking: Masking = "bernoulli",
    eps: float = 1e-3,
) -> Noised:
    """Replace tokens by the mask.

    ``bernoulli``: every maskable token independently with ``p_mask = (1 - eps) t + eps`` (2502.09992, Algorithm 1; eps
    is the published code's and bounds the weight 1 / p_mask). ``fixed_count``: exactly ``l = floor(t n) + 1`` of the n
    maskable tokens, so l ~ U{1..n} and ``p_mask = l / n`` (Equation 6); the same expectation, a smaller variance.

    Args:
        tokens: ``[B, T]`` clean ids.
        maskable: ``[B, T]`` booleans.
        t: ``[B]`` times.
        keys: ``[B]`` int64 sample keys.
        mask_id: the id of the mask token.
        seed: seed of the run.
        draw: number of the draw.
        masking: one of the two ways above.
        eps: smallest masking probability of ``bernoulli``.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    u = keyed_uniform(seed, Stream.MASK, keys[:, None], draw, position)
    if masking == "bernoulli":
        p_mask = (1 - eps) * t + eps
        masked = maskable & (u < p_mask[:, None])
    else:
        n = maskable.sum(1)
        count = torch.minimum((t * n).long() + 1, n)
        rank = u.masked_fill(~maskable, 2.0).argsort(1).argsort(1)
        masked = maskable & (rank < count[:, None])
        p_mask = count.clamp(min=1) / n.clamp(min=1).double()
    return Noised(torch.where(masked, mask_id, tokens), masked, p_mask)


def random_length(length: int, share: float, seed: int, step: int) -> int:
    """The length that this step's rows are cut to: uniform in 1..length in a ``share`` of the steps, else all."""
    key = torch.tensor(step)
    if share == 0 or float(keyed_uniform(seed, Stream.LENGTH_GATE, key)) >= share:
        return length
    return 1 + int(length * float(keyed_uniform(seed, Stream.LENGTH, key)))


def _mix(x: Tensor) -> Tensor:
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed number; a new tensor, changed in place from here on
    x.bitwise_xor_(_shift(x, 30)).mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9
    x.bitwise_xor_(_shift(x, 27)).mul_(-7723592293110705685)  # 0x94D049BB133111EB
    return x.bitwise_xor_(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros (torch's ``>>`` repeats the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
