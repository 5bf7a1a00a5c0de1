"""Training on a device: shards of one, checkpointing, a resume after a kill, and a step that hardly ever waits."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.overrides import TorchFunctionMode

import lit_llada
from lit_llada.training.strategies import FSDP2Strategy
from tests.gpu.nets import distance
from tests.gpu.runs import STEPS, Curve, fit, module_of, resumable, start_of

PACKAGE = Path(lit_llada.__file__).parent
READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"}  # by the host
SIZES = {"nonzero", "masked_select", "unique", "bincount"}  # of the result, which depend on values
COPIES = {"tensor", "as_tensor", "new_tensor"}  # of numbers to a device

# What a step says of itself: R, the number of masked tokens (of each draw), and whether the step is finite.
FINITE = {"configure_gradient_clipping": 1}
WAITS = {
    "pretraining": {"_denoise": 1, **FINITE},
    "sft": {"locate": 2, **FINITE},
    "vrpo": {"locate": 4, **FINITE},  # policy and reference
}


class Waits(TorchFunctionMode):
    """Counts by function of lit_llada where the host waits for the device, and lets it; elsewhere a GPU raises."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.places = device, Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not waits(func, args, kwargs):
            return func(*args, **kwargs)
        self.places[place()] += 1
        with waiting(self.device, allowed=True):
            return func(*args, **kwargs)


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.__name__
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in index)
    return name in READS | SIZES or (name in COPIES and (name == "new_tensor" or kwargs.get("device") is not None))


def place() -> str:
    """The innermost function of lit_llada that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if PACKAGE in Path(frame.f_code.co_filename).parents:
            return frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return "outside lit_llada"


@contextmanager
def waiting(device: torch.device, allowed: bool) -> Iterator[None]:
    """On a GPU: whether an operation that waits for it raises."""
    if device.type == "cpu":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Watch(L.Callback):
    """From the start of the third step to its end: the optimizer has its state by then, the libraries theirs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.mode = device, Waits(device)
        self.strict = waiting(device, allowed=False)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            self.strict.__enter__()
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.mode.__exit__(None, None, None)
            self.strict.__exit__(None, None, None)


@pytest.mark.parametrize(("backbone", "precision"), [("dense", "32-true"), ("moe", "bf16-mixed")], ids=["dense", "moe"])
@pytest.mark.parametrize("kind", WAITS)
def test_a_step_waits_where_it_says_so(
    device: torch.device, tmp_path: Path, kind: str, backbone: str, precision: str
) -> None:
    module, batches = module_of(kind, tmp_path, backbone)
    watch = Watch(device)
    fit(module, batches, device, watch, max_steps=4, precision=precision)
    assert watch.mode.places == WAITS[kind]


def test_every_kind_of_wait_is_seen(device: torch.device) -> None:
    x = torch.arange(3, device=device)
    with Waits(device) as mode:
        found = [x.tolist(), x[0].item(), float(x[1]), int(x[1]), bool(x[1] == 1), x.nonzero(), torch.nonzero(x)]
        found += [x[x > 1], x.cpu(), torch.tensor(1, device=device), x.new_tensor([1]), torch.bincount(x)]
        torch.full((), 1, device=device), x[x], x + 1, torch.tensor(1)
    assert sum(mode.places.values()) == len(found)


def test_fsdp2_of_one_process_is_one_device(device: torch.device, tmp_path: Path) -> None:
    """From a checkpoint: shards are drawn on the device, a whole net on the CPU, and these draw other numbers."""
    start, curves = start_of(tmp_path, "moe"), []
    for strategy in ("auto", FSDP2Strategy()):
        curve, (module, batches) = Curve(), module_of("pretraining", tmp_path, "moe", init_from=start)
        try:
            fit(module, batches, device, curve, strategy=strategy)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        curves.append(curve.steps)
    assert len(curves[0]) == STEPS
    for plain, sharded in zip(*curves, strict=True):
        assert sharded == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("backbone", ["dense", "moe"])
def test_checkpointing_changes_nothing(device: torch.device, tmp_path: Path, backbone: str) -> None:
    weights = []
    for checkpointing in (False, True):
        module, batches = module_of("sft", tmp_path, backbone, checkpointing=checkpointing)
        fit(module, batches, device)
        weights.append(torch.cat([parameter.flatten() for parameter in module.parameters()]))
    assert distance(*weights) <= (0 if device.type == "cpu" else 1e-4)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
def test_killed_and_resumed_equals_uninterrupted(device: torch.device, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    curve, weights = resumable(whole, device)
    killed = subprocess.run([sys.executable, "-m", "tests.gpu.runs", str(broken), device.type, "3"], check=False)
    assert killed.returncode == -9
    rest, resumed = resumable(broken, device)
    assert rest == curve[2:] and len(rest) == STEPS - 2
    assert all(torch.equal(a, b) for a, b in zip(resumed, weights, strict=True))
