"""The average is the recurrence it claims to be, once per optimizer step, across a resume and across shards."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.samples import SampleLogger
from lit_llada.errors import UserError


def whole(net: Any) -> list[Tensor]:
    return [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in net.parameters()]


class Recurrence(L.Callback):
    """The plain average, from whole tensors, after every optimizer step."""

    def __init__(self, decay: float) -> None:
        self.decay, self.n, self.step = decay, 0, 0
        self.average: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.average = whole(pl_module.net)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > self.step:
            d = min(self.decay, (1 + self.n) / (10 + self.n))
            self.average = [d * a + (1 - d) * p for a, p in zip(self.average, whole(pl_module.net), strict=True)]
            self.step, self.n = trainer.global_step, self.n + 1


def test_it_is_the_recurrence_once_per_optimizer_step(toy: Any) -> None:
    ema, plain = EMA(decay=0.3), Recurrence(0.3)
    module, _ = toy.fit([ema, plain], accumulate_grad_batches=3, max_steps=5)
    assert ema.updates == 5 and module.denoiser is module.ema
    for mine, theirs, net in zip(whole(module.ema), plain.average, whole(module.net), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
        assert not torch.equal(mine, net)


def test_a_resumed_run_has_the_same_average_bit_for_bit(toy: Any) -> None:
    straight, _ = toy.fit([EMA()], max_steps=6)
    _, trainer = toy.fit([EMA()], max_steps=3)
    trainer.save_checkpoint(toy.folder / "half.ckpt", weights_only=False)
    ema = EMA()
    resumed, _ = toy.fit([ema], max_steps=6, ckpt=str(toy.folder / "half.ckpt"))
    assert ema.updates == 6
    for a, b in zip(whole(straight.ema), whole(resumed.ema), strict=True):
        assert torch.equal(a, b)


def sharded(rank: int, toy: Any, fsdp2: Any) -> tuple[bool, float]:
    plain = Recurrence(0.9)
    # Sampling from the twin leaves the gathered copy of it behind; the next update must not write into that.
    callbacks = [EMA(0.9), plain, SampleLogger(1, [], 1, [], length=8, steps=2)]
    module, _ = toy.fit(callbacks, devices=2, strategy=fsdp2(), limit_val_batches=2, val_check_interval=1)
    pairs = list(zip(whole(module.ema), plain.average, strict=True))
    return all(a.shape == b.shape for a, b in pairs), max(float((a - b).abs().max()) for a, b in pairs)


def test_shards_are_averaged_like_the_whole(toy: Any, fsdp2: Any, forked: Any) -> None:
    for shapes, distance in forked(sharded, 2, toy, fsdp2):
        assert shapes and distance < 1e-6


def test_a_wrong_decay_and_half_precision_are_refused(toy: Any) -> None:
    with pytest.raises(UserError, match=r"decay is 1\.0"):
        EMA(decay=1.0)
    with pytest.raises(UserError, match="half precision"):
        toy.trainer([EMA()], precision="bf16-true").fit(toy.module().to(torch.bfloat16), toy.data())
