"""How fast is it, and what does it wait for? Tokens per second, step time, data wait, MFU, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from lit_llada.callbacks.loggers import log_scalars

# Dense bfloat16 peaks in FLOP/s, from the vendors' data sheets (without sparsity); the first name found in the
# device's name counts, so the special ones stand first.
PEAKS = {
    "B200": 2250e12, "GB200": 2250e12, "H200": 989.4e12, "GH200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
    "H100": 989.4e12, "H800": 989.4e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "A30": 165e12, "A40": 149.7e12,
    "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "RTX 6000 Ada": 364e12,
    "RTX 4090": 165.2e12, "RTX 3090": 71e12, "MI300X": 1307e12, "MI250X": 383e12,
}  # fmt: skip


class Throughput(L.Callback):
    """Log ``perf/*`` every n optimizer steps; between two of them the device is never waited for.

    ``tokens_per_second`` (all ranks), ``step_seconds`` (one optimizer step), ``data_wait`` (share of the time spent
    waiting for the loader), ``mfu`` (model FLOPs, three times the forward pass, over the peak; recomputed activations
    do not count) and ``memory_gib`` (peak on this GPU). Validation, sampling and checkpoints are off the clock.

    Args:
        every_n_steps: optimizer steps between two figures.
        peak_flops: the device's peak in FLOP/s; None takes the dense bfloat16 peak of a known GPU, and elsewhere
            measures a matrix product in the working precision for a tenth of a second when training starts.
        _clock: seconds since some moment; for tests. No option in YAML: jsonargparse leaves out names with ``_``.
    """

    def __init__(
        self,
        every_n_steps: int = 20,
        peak_flops: float | None = None,
        _clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.every_n_steps, self.peak_flops, self._clock = every_n_steps, peak_flops, _clock
        self.latest: dict[str, float] = {}
        self._pauses: list[float] = []  # when each of the pauses that are open began
        self._saving: float | None = None  # when the write of a checkpoint began
        self._peak = 0.0
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._step, self._began, self._off, self._waited = step, self._clock(), 0.0, 0.0
        self._tokens, self._length = 0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        device = trainer.strategy.root_device
        half = str(trainer.precision).startswith("bf16")
        self._peak = self.peak_flops or known_peak(device) or measure_peak(device, torch.bfloat16 if half else None)
        loop = trainer.fit_loop.epoch_loop
        before, after = getattr(loop, "_on_before_fetch", None), getattr(loop, "_on_after_fetch", None)
        if before is not None and after is not None:  # Lightning has no public hook around the loader
            self._time_fetches(loop, before, after)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._restart(trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._saved()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._length = outputs["masked"].shape[1]
        self._tokens += outputs["masked"].numel()
        if trainer.global_step - self._step >= self.every_n_steps:
            self._report(trainer, pl_module)

    def _report(self, trainer: L.Trainer, module: Any) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = self._clock() - self._began - self._off
        rate = self._tokens / seconds
        self.latest = {
            "perf/tokens_per_second": rate * trainer.world_size,
            "perf/step_seconds": seconds / (trainer.global_step - self._step),
            "perf/data_wait": self._waited / seconds,
            "perf/mfu": 3 * module.backbone.flops_per_token(self._length) * rate / self._peak,
        }
        if device.type == "cuda":
            self.latest["perf/memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        log_scalars(trainer, self.latest)
        self._restart(trainer.global_step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Whatever happens inside takes no time on this clock."""
        self._pauses.append(self._clock())
        try:
            yield
        finally:
            self._resume()

    def _resume(self) -> None:
        began = self._pauses.pop()
        if not self._pauses:  # the outermost one has all the time of those inside it
            self._off += self._clock() - max(began, self._began)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._pauses.append(self._clock())

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._resume()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._saving is None:  # there is no hook when it has been written: the next batch ends the pause
            self._saving = self._clock()

    def _saved(self) -> None:
        if self._saving is not None:
            self._off += self._clock() - max(self._saving, self._began)
            self._saving = None

    def _time_fetches(self, loop: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
        began = 0.0

        def start() -> None:
            nonlocal began
            self._saved()
            before()
            began = self._clock()

        def stop() -> None:
            self._waited += self._clock() - began
            after()

        loop._on_before_fetch, loop._on_after_fetch = start, stop

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        for name in ("_on_before_fetch", "_on_after_fetch"):
            loop.__dict__.pop(name, None)


@contextmanager
def off_the_clock(trainer: L.Trainer) -> Iterator[None]:
    """For other callbacks: what happens inside is not charged to training."""
    clock = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    if clock is None:
        yield
    else:
        with clock.paused():
            yield


def known_peak(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a GPU in the table; None for others and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key.lower() in name.lower()), None)


@torch.no_grad()
def measure_peak(
    device: torch.device,
    dtype: torch.dtype | None = None,
    seconds: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of a square matrix product, the best of those that start within ``seconds`` on ``clock``."""
    side = 512 if device.type == "cpu" else 4096
    a = torch.ones(side, side, device=device, dtype=dtype)  # no random numbers: the run's own must not move
    best, end = 0.0, clock() + seconds
    a @ a  # the first one also loads the library
    while best == 0.0 or clock() < end:
        began = clock()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (clock() - began))
    return best
