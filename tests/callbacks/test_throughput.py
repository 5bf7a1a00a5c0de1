"""The clock: what counts as training time, what does not, and that looking at it costs the device nothing."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llada.callbacks import EMA, NoiseCurve, Provenance, RouterLoad, SampleLogger, Throughput, throughput
from lit_llada.callbacks.throughput import known_peak, measure_peak


class Clock:
    """Stands still until a test spends time; all its times are binary fractions, so that every figure is exact."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Steps(L.Callback):
    """A training batch takes a quarter of a second, a validation batch 16 s."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.spend(0.25)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.clock.spend(16)


def test_rates_without_validation_and_checkpoints(toy: Any) -> None:
    class Saves(L.Callback):
        def on_save_checkpoint(self, *_: Any) -> None:
            clock.spend(64)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:  # after both of its batches
                trainer.save_checkpoint(toy.folder / "x.ckpt")

    clock = Clock()
    speed = Throughput(every_n_steps=8, peak_flops=1e9, _clock=clock)
    callbacks = [speed, Steps(clock), Saves()]
    module, _ = toy.fit(callbacks, max_steps=8, accumulate_grad_batches=2, limit_val_batches=2, val_check_interval=4)
    assert clock.now == 16 * 0.25 + 4 * 2 * 16 + 2 * 64
    assert speed.latest == {
        "perf/step_seconds": 0.5,
        "perf/tokens_per_second": 2 * 4 * 16 / 0.5,
        "perf/mfu": 3 * module.backbone.flops_per_token(16) * 256 / 1e9,
        "perf/data_wait": 0.0,
    }


def test_a_slow_loader_shows(toy: Any) -> None:
    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            clock.spend(0.75)
            return toy.batch([0, 1])

    clock, data = Clock(), toy.data()
    data.train_dataloader = lambda: torch.utils.data.DataLoader(Slow(), batch_size=None)
    speed = Throughput(every_n_steps=4, peak_flops=1e9, _clock=clock)
    trainer = toy.trainer([speed, Steps(clock)])
    trainer.fit(toy.module(), data)
    assert (speed.latest["perf/step_seconds"], speed.latest["perf/data_wait"]) == (1.0, 0.75)
    assert "_on_before_fetch" not in vars(trainer.fit_loop.epoch_loop)


def test_looking_at_the_model_is_off_the_clock(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module, name in (("samples", "table"), ("router", "balance")):
        monkeypatch.setattr(f"lit_llada.callbacks.{module}.{name}", lambda *_: clock.spend(16) or {})
    monkeypatch.setattr("lit_llada.callbacks.samples.log_text", lambda *_: None)
    speed = Throughput(8, peak_flops=1e9, _clock=clock)
    looks = [SampleLogger(4, length=8, infills=[]), RouterLoad(4)]
    toy.fit([*looks, Steps(clock), speed], experts=4, max_steps=8, logger=toy.board())
    assert clock.now == 8 * 0.25 + 4 * 16
    assert speed.latest["perf/step_seconds"] == 0.25


def test_every_logger_gets_the_figures(toy: Any) -> None:
    clock = Clock()
    speed = Throughput(2, peak_flops=1e9, _clock=clock)
    toy.fit([speed, Steps(clock)], logger=[toy.board(), CSVLogger(str(toy.folder / "csv"))])
    assert [(e.step, e.value) for e in toy.events().Scalars("perf/step_seconds")] == [(2, 0.25), (4, 0.25)]
    assert "perf/tokens_per_second" in next((toy.folder / "csv").rglob("metrics.csv")).read_text()


def test_a_pause_inside_a_pause_counts_once() -> None:
    clock = Clock()
    speed = Throughput(_clock=clock)
    with speed.paused():
        clock.spend(1)
        with speed.paused():
            clock.spend(2)
        clock.spend(4)
    clock.spend(8)
    assert speed._off == 7


def test_the_peak_of_a_cpu_is_the_best_product_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    # Of the three products the second is the shortest; the third ends after the limit, so that no other follows.
    readings = iter([0.0, *(0.0, 0.5), 0.5, *(0.5, 0.75), 0.75, *(0.75, 1.5), 1.5])
    assert measure_peak(torch.device("cpu"), seconds=1.0, clock=readings.__next__) == 2 * 512**3 / 0.25
    assert next(readings, None) is None
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16)])
def test_a_device_that_no_table_knows_is_measured_in_the_working_precision(
    toy: Any, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype | None
) -> None:
    asked = []
    monkeypatch.setattr(throughput, "measure_peak", lambda *args: asked.append(args) or 1e9)
    clock, cpu = Clock(), torch.device("cpu")
    speed = Throughput(4, _clock=clock)
    module, _ = toy.fit([speed, Steps(clock)], precision=precision)
    assert known_peak(cpu) is None and asked == [(cpu, dtype)]
    assert speed.latest["perf/mfu"] == 3 * module.backbone.flops_per_token(16) * 256 / 1e9


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
