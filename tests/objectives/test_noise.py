"""Keyed noise: the right distributions, and nothing but the keys in them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.objectives.noise import keyed_uniform, mask_tokens, random_length, sample_times

KEYS = torch.arange(4096)


def masks(keys: torch.Tensor, maskable: torch.Tensor, masking: str, t: float = 0.3, **options: float) -> torch.Tensor:
    times = torch.full((len(keys),), t, dtype=torch.float64)
    tokens = torch.zeros_like(maskable, dtype=torch.long)
    return mask_tokens(tokens, maskable, times, keys, 9, seed=1, masking=masking, **options).masked


def test_uniforms_are_uniform_and_streams_do_not_depend_on_each_other() -> None:
    position = torch.arange(64)
    u = keyed_uniform(1, KEYS[:, None], position)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.003
    others = [keyed_uniform(2, KEYS[:, None], position), u.roll(1, 0), u.roll(1, 1)]
    assert all(abs(torch.corrcoef(torch.stack((u.flatten(), o.flatten())))[0, 1]) < 0.01 for o in others)
    counts = torch.histc(u, bins=100, min=0, max=1)
    expected = u.numel() / 100
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi-square with 99 degrees of freedom: p = 0.0007


@pytest.mark.parametrize("sampler", ["iid", "stratified", "antithetic"])
def test_time_samplers_have_the_uniform_marginal(sampler: str) -> None:
    t = sample_times(KEYS, 1, sampler=sampler, strata=16)
    assert t.min() >= 0 and t.max() <= 1
    counts = torch.histc(t, bins=16, min=0, max=1)
    assert ((counts - 256) ** 2 / 256).sum() < 40  # 15 degrees of freedom: p = 0.0005


def test_stratified_times_cover_the_interval_evenly() -> None:
    t = sample_times(KEYS, 1, sampler="stratified", strata=16).view(-1, 16)
    gaps = torch.cat((t.sort(1).values, t.min(1, keepdim=True).values + 1), 1).diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 16))


def test_antithetic_times_come_in_pairs() -> None:
    t = sample_times(KEYS, 1, sampler="antithetic").view(-1, 2)
    torch.testing.assert_close(t.sum(1), torch.ones(len(t), dtype=torch.float64))


@pytest.mark.parametrize("masking", ["bernoulli", "fixed_count"])
@given(order=st.permutations(range(12)), cut=st.integers(1, 11))
def test_a_mask_is_a_function_of_its_key(masking: str, order: list[int], cut: int) -> None:
    maskable = torch.ones(12, 20, dtype=torch.bool)
    whole = masks(KEYS[:12], maskable, masking)
    shuffled = KEYS[:12][list(order)]
    parts = torch.cat([masks(part, maskable[: len(part)], masking) for part in (shuffled[:cut], shuffled[cut:])])
    assert torch.equal(parts, whole[list(order)])


def test_bernoulli_masks_have_probability_p_and_leave_the_rest_alone() -> None:
    maskable = torch.zeros(4096, 32, dtype=torch.bool)
    maskable[:, ::2] = True
    masked = masks(KEYS, maskable, "bernoulli", t=0.3, eps=1e-3)
    assert not masked[:, 1::2].any()
    assert abs(masked[:, ::2].double().mean() - (0.999 * 0.3 + 1e-3)) < 0.006


@given(st.integers(1, 30), st.floats(0, 1))
def test_fixed_count_masks_exactly_l_tokens(n: int, t: float) -> None:
    maskable = torch.arange(32)[None, :] < n
    result = mask_tokens(
        torch.zeros(1, 32, dtype=torch.long), maskable, torch.tensor([t], dtype=torch.float64), KEYS[:1], 9, 1,
        masking="fixed_count",
    )  # fmt: skip
    count = min(int(t * n) + 1, n)
    assert result.masked.sum() == count and not result.masked[0, n:].any()
    assert result.p_mask.item() == count / n
    assert torch.equal(result.noisy == 9, result.masked)


def test_fixed_count_masks_every_position_alike() -> None:
    share = masks(KEYS, torch.ones(4096, 10, dtype=torch.bool), "fixed_count", t=0.35).double().mean(0)
    assert ((share - 0.4).abs() < 0.03).all()


def test_a_row_without_maskable_tokens_stays_clean() -> None:
    for masking in ("bernoulli", "fixed_count"):
        assert not masks(KEYS[:2], torch.zeros(2, 8, dtype=torch.bool), masking).any()


def test_random_length_touches_the_stated_share_of_steps() -> None:
    lengths = [random_length(64, 0.1, 1, step) for step in range(4000)]
    cut = [length for length in lengths if length < 64]
    assert min(lengths) >= 1 and max(lengths) == 64
    assert abs(len(cut) / 4000 - 0.1 * 63 / 64) < 0.015
    assert abs(sum(cut) / len(cut) - 32) < 4
    assert {random_length(64, 0.0, 1, step) for step in range(100)} == {64}
