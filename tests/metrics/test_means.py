"""Means divide sums by one count, whatever the size of the batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.metrics.means import Means
from lit_llada.modules.pretraining import PretrainingModule


def test_preferences_are_averaged_over_pairs_not_over_batches() -> None:
    means = Means(["accuracy", "score"])
    for scores in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-2.0])):
        means.update(len(scores), accuracy=(scores > 0).sum(), score=scores.sum())
    assert means.compute() == {"accuracy": 0.75, "score": 1.0}


def test_sums_are_float64_whatever_comes_in() -> None:
    means = Means(["loss"])
    for value in (2.0**30, 1.0):  # float32 would lose the second
        means.update(torch.tensor(1), loss=torch.tensor(value))
    assert means.compute()["loss"] == (2.0**30 + 1) / 2
    assert means.compute()["loss"].dtype == torch.float64


def test_nothing_counted_is_not_a_number() -> None:
    means = Means(["loss"])
    means.update(0, loss=torch.tensor(0.0))
    assert math.isnan(means.compute()["loss"])


def test_a_reset_forgets() -> None:
    means = Means(["loss"])
    means.update(1, loss=torch.tensor(5.0))
    assert means.compute() == {"loss": 5.0}
    means.reset()
    means.update(4, loss=torch.tensor(1.0))
    assert means.compute() == {"loss": 0.25}


def test_a_quantity_that_is_missing_or_unknown_is_refused() -> None:
    means = Means(["loss", "score"])
    for totals in ({"loss": torch.ones(())}, {name: torch.ones(()) for name in ("loss", "score", "more")}):
        with pytest.raises(ValueError, match=r"Means of \['loss', 'score'\] got"):
            means.update(1, **totals)
    assert means.sums.tolist() == [0, 0, 0]


class Pair(Means):
    """Takes its totals by place, as the batches of these tests come."""

    def __init__(self) -> None:
        super().__init__(["loss", "score"])

    def update(self, count: Any, loss: Any, score: Any) -> None:
        super().update(count, loss=loss, score=score)


def test_two_ranks_compute_what_one_process_does(on_ranks: Any) -> None:
    batches = [(3, torch.tensor(1.5), torch.tensor(-2.0)), (5, torch.tensor(6.5), torch.tensor(1.0))]
    one, *two = on_ranks(Pair, batches)
    assert one == {"loss": 1.0, "score": -0.125} and two == [one, one]


def test_a_rank_without_a_batch_takes_part(on_ranks: Any) -> None:
    one, *two = on_ranks(Pair, [(4, torch.tensor(2.0), torch.tensor(1.0))])
    assert one == {"loss": 0.5, "score": 0.25} and two == [one, one]


def test_a_module_that_has_validated_looks_as_before() -> None:
    module = PretrainingModule(
        BackboneConfig(vocab_size=258, d_model=16, n_layers=1, n_heads=2, ff_dim=32), mask_id=257
    )
    before = [*module.state_dict()], [*module.named_modules()], dict(module.hparams)
    module.on_validation_epoch_start()
    output: Any = {"count": torch.tensor(2), "loss": torch.tensor(3.0)}
    module.validated(output)
    assert ([*module.state_dict()], [*module.named_modules()], dict(module.hparams)) == before
    assert module._validation["means"].compute() == {"loss": 1.5}
