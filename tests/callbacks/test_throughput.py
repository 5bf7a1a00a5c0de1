"""The clock: what counts as training time, what does not, and that looking at it costs the device nothing."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llada.callbacks import EMA, NoiseCurve, Provenance, RouterLoad, SampleLogger, Throughput
from lit_llada.callbacks.throughput import known_peak, measure_peak


class Sleeper(L.Callback):
    """Takes 20 ms in a step, and much longer in validation."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.02)

    def on_validation_batch_start(self, *_: Any) -> None:
        time.sleep(0.3)


def test_rates_without_validation_and_checkpoints(toy: Any) -> None:
    class Slow(L.Callback):
        def on_save_checkpoint(self, *_: Any) -> None:
            time.sleep(0.9)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(toy.folder / "x.ckpt")

    clock = Throughput(every_n_steps=8, peak_flops=1e9)
    module, _ = toy.fit(
        [clock, Sleeper(), Slow()], max_steps=8, accumulate_grad_batches=2, limit_val_batches=2, val_check_interval=4
    )
    found = clock.latest
    assert 0.04 <= found["perf/step_seconds"] < 0.14  # either pause alone would make it 0.15 and more
    rate = found["perf/tokens_per_second"]
    assert rate * found["perf/step_seconds"] == pytest.approx(2 * 4 * 16)
    assert found["perf/mfu"] == pytest.approx(3 * module.backbone.flops_per_token(16) * rate / 1e9)
    assert found["perf/data_wait"] < 0.1 and "perf/memory_gib" not in found


def test_a_slow_loader_shows(toy: Any) -> None:
    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.06)
            return toy.batch([0, 1])

    data = toy.data()
    data.train_dataloader = lambda: torch.utils.data.DataLoader(Slow(), batch_size=None)
    clock = Throughput(every_n_steps=4)
    trainer = toy.trainer([clock, Sleeper()])
    trainer.fit(toy.module(), data)
    assert 0.5 < clock.latest["perf/data_wait"] < 0.9
    assert "_on_before_fetch" not in vars(trainer.fit_loop.epoch_loop)


def test_looking_at_the_model_is_off_the_clock(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("sampling", "table"), ("router", "balance")):
        monkeypatch.setattr(f"lit_llada.callbacks.{module}.{name}", lambda *_: time.sleep(0.4) or {})
    clock = Throughput(8)
    looks = [SampleLogger(4, length=8, infills=[]), RouterLoad(4)]
    monkeypatch.setattr("lit_llada.callbacks.sampling.log_text", lambda *_: None)
    toy.fit([*looks, clock], experts=4, max_steps=8, logger=toy.board())
    assert clock.latest["perf/step_seconds"] < 0.1  # with 4 pictures and 1.6 s of sleep it would be 0.3 and more


def test_every_logger_gets_the_figures(toy: Any) -> None:
    toy.fit([Throughput(2)], logger=[toy.board(), CSVLogger(str(toy.folder / "csv"))])
    assert [e.step for e in toy.events().Scalars("perf/mfu")] == [2, 4]
    assert "perf/tokens_per_second" in next((toy.folder / "csv").rglob("metrics.csv")).read_text()


def test_a_pause_inside_a_pause_counts_once() -> None:
    clock = Throughput()
    with clock.paused(), clock.paused():
        time.sleep(0.05)
    assert 0.05 <= clock._off < 0.09


def test_the_peak_of_a_cpu_is_measured_and_no_random_number_drawn() -> None:
    before = torch.get_rng_state()
    assert known_peak(torch.device("cpu")) is None
    assert 1e8 < measure_peak(torch.device("cpu"), seconds=0.02) < 1e14
    assert torch.equal(before, torch.get_rng_state())


class Scalars(TorchDispatchMode):
    """Counts the places where Python waits for a tensor's value."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_between_their_looks_callbacks_never_wait_for_the_device(toy: Any) -> None:
    mode, counts = Scalars(), []

    class First(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            mode.__enter__()

        on_validation_batch_end = on_train_batch_end

    class Last(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            mode.__exit__(None, None, None)
            counts.append(mode.count)

        on_validation_batch_end = on_train_batch_end

    watched = [EMA(), NoiseCurve(), RouterLoad(3), SampleLogger(3, length=8, infills=[]), Throughput(3), Provenance()]
    options = {"limit_val_batches": 2, "val_check_interval": 1, "default_root_dir": toy.folder}
    toy.fit([First(), *watched, Last()], experts=4, max_steps=2, logger=toy.board(), **options)
    assert len(counts) == 6 and counts[-1] == 0
