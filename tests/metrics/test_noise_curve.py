"""The noise curve of a few tokens, counted by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_llada.metrics.noise_curve import NllByNoise

# nll, t, p_mask of each masked token, and the tokens of the batch
FIRST = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([0.05, 0.09, 0.5]), torch.tensor([0.25, 0.5, 0.5]), 10
SECOND = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor(2)


def test_deciles_and_bound_by_hand() -> None:
    curve = NllByNoise()
    curve.update(*FIRST)
    curve.update(*SECOND)
    deciles, bound = curve.compute()
    assert [deciles[0], deciles[5], deciles[9]] == [2.0, 4.0, 2.0]
    assert [i for i, nll in enumerate(deciles.tolist()) if math.isnan(nll)] == [1, 2, 3, 4, 6, 7, 8]
    assert bound == (4 + 6 + 8 + 2) / 12


def test_a_batch_without_a_masked_token_counts_its_tokens() -> None:
    curve, nothing = NllByNoise(), torch.zeros(0)
    curve.update(*SECOND)
    curve.update(nothing, nothing, nothing, 6)
    assert curve.compute().bound == 2 / 8


def test_a_reset_forgets() -> None:
    curve = NllByNoise()
    curve.update(*FIRST)
    curve.reset()
    curve.update(*SECOND)
    assert curve.compute().bound == 1.0 and math.isnan(curve.compute().deciles[0])


def test_two_ranks_compute_what_one_process_does(on_ranks: Any) -> None:
    one, *two = on_ranks(NllByNoise, [FIRST, SECOND])
    assert one.bound == 20 / 12
    for found in two:
        assert found.deciles == pytest.approx(one.deciles, rel=0, abs=0, nan_ok=True) and found.bound == one.bound
