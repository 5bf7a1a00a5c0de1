"""Visits of experts, counted by hand and added over ranks."""

from __future__ import annotations

from typing import Any

import torch

from lit_llada.metrics.router_load import ExpertVisits, balance, count_visits

# Three tokens of one layer; the first is masked. With two experts each: 01, 12, 02.
LOGITS = torch.tensor([[[5.0, 4.0, 0.0], [0.0, 5.0, 4.0], [4.0, 0.0, 5.0]]])
MASKED = torch.tensor([[True, False, False]])


def make() -> ExpertVisits:
    return ExpertVisits(layers=1, experts=3)


def test_visits_are_added_up() -> None:
    load = make()
    load.update(count_visits(LOGITS, MASKED, 2))
    load.update(count_visits(LOGITS, ~MASKED, 1))  # alone: 0, 1, 2, and only the first is visible
    assert load.compute().tolist() == [[[1, 2, 1]], [[2, 1, 2]]]
    assert balance(load.compute())["masked/peak"] == 1.5


def test_a_bias_takes_part_in_the_choice() -> None:
    bias = torch.tensor([[0.0, 0.0, 9.0]])
    assert count_visits(LOGITS, MASKED, 1, bias).tolist() == [[[0, 0, 1]], [[0, 0, 2]]]


def test_a_reset_forgets() -> None:
    load = make()
    load.update(count_visits(LOGITS, MASKED, 2))
    load.reset()
    load.update(count_visits(LOGITS, MASKED, 1))
    assert load.compute().sum() == 3


def test_two_ranks_compute_what_one_process_does(on_ranks: Any) -> None:
    batches = [(count_visits(LOGITS, MASKED, 2),), (count_visits(LOGITS, MASKED, 1),)]
    one, *two = on_ranks(make, batches)
    assert one == [[[2, 1, 0]], [[1, 2, 3]]] and two == [one, one]
