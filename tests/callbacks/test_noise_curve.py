"""Bits per byte and deciles equal a plain computation over the whole validation set, on one rank and on two."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.callbacks.noise_curve import NoiseCurve

VALIDATE = {"limit_val_batches": 1.0, "val_check_interval": 4, "max_steps": 4}


class Plain(L.Callback):
    """Token by token, in Python."""

    def __init__(self) -> None:
        self.tokens, self.bound = 0, 0.0
        self.deciles: dict[int, list[float]] = {}

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.tokens += outputs["masked"].numel()
        assert len(outputs["nll"]) == int(outputs["masked"].sum())
        for nll, t, p_mask in zip(*(outputs[name].tolist() for name in ("nll", "t", "p_mask")), strict=True):
            self.bound += nll / p_mask
            self.deciles.setdefault(int(t * 10), []).append(nll)


def test_it_equals_a_plain_computation(toy: Any) -> None:
    plain = Plain()
    _, trainer = toy.fit([NoiseCurve(), plain], logger=toy.board(), **VALIDATE)
    values = trainer.callback_metrics
    assert plain.tokens == 12 * 16
    assert values["val/bits_per_byte"] == pytest.approx(plain.bound / plain.tokens / math.log(2) / 0.8, rel=1e-5)
    assert values["val/bits_per_byte"] == pytest.approx(float(values["val/loss"]) / math.log(2) / 0.8, rel=1e-5)
    logged = {int(k[-1]): float(v) for k, v in values.items() if "decile" in k}
    assert logged == pytest.approx({d: sum(x) / len(x) for d, x in plain.deciles.items()}, rel=1e-5)
    events = toy.events()
    assert len(events.Images("val/noise_curve")) == 1 and "val/bits_per_byte" in events.Tags()["scalars"]


def two_ranks(rank: int, toy: Any) -> dict[str, float]:
    torch.manual_seed(3)
    trainer = toy.trainer([NoiseCurve()], devices=2, strategy="ddp", limit_val_batches=1.0)
    return {k: float(v) for k, v in trainer.validate(toy.module(), toy.data(), verbose=False)[0].items()}


def test_two_ranks_add_up_to_one(toy: Any, forked: Any) -> None:
    torch.manual_seed(3)
    trainer = toy.trainer([NoiseCurve()], limit_val_batches=1.0)
    one = trainer.validate(toy.module(), toy.data(), verbose=False)[0]
    for values in forked(two_ranks, 2, toy):
        assert values == pytest.approx(one, rel=1e-5)


def test_it_also_runs_under_test(toy: Any) -> None:
    data = toy.data()
    data.test_dataloader = data.val_dataloader
    assert "test/bits_per_byte" in toy.trainer([NoiseCurve()]).test(toy.module(), data, verbose=False)[0]
