"""What every measurement shares: the device and its sizes, nets built on it, medians between two waits for it."""

from __future__ import annotations

import gc
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import yaml

from benchmarks.timing import Step, now
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError

MODELS = Path(__file__).parents[2] / "configs" / "model"
Figures = dict[str, float]
T, Size = TypeVar("T"), TypeVar("Size")


class Row(NamedTuple):
    """One line of the report."""

    case: str
    figures: Figures
    goal: str = ""  # what is to be reached, and whether it is
    instead: str = ""  # why there are no figures


class Machine(NamedTuple):
    """Where it is measured, and with which sizes."""

    device: torch.device
    small: bool  # a rehearsal: every line runs, on tiny nets
    peak: float | None  # FLOP/s in bfloat16 by the data sheet, dense

    def pick(self, full: T, small: T) -> T:
        return small if self.small else full

    def config(self, name: str) -> BackboneConfig:
        """The architecture of ``configs/model/NAME.yaml``; in a rehearsal one of its kind, but tiny."""
        options = yaml.safe_load((MODELS / f"{name}.yaml").read_text())
        config = BackboneConfig(**options["model"]["init_args"]["backbone"])
        return shrunk(config) if self.small else config

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def memory(self) -> int:
        """Bytes of the card; in place of them 1 GB on a CPU."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else 10**9


class OverBudget(BaseException):
    """A part has used up its time. Not an Exception, so that nothing on the way up takes it for an error."""


class Measured(NamedTuple):
    seconds: float  # of one step, the median
    bytes: int  # held by tensors at the worst moment, nets and optimizer included; 0 on a CPU

    def figures(self, tokens: int) -> Figures:
        figures = {"ms": 1e3 * self.seconds, "tokens/s": tokens / self.seconds}
        return figures | ({"GiB": self.bytes / 2**30} if self.bytes else {})


def shrunk(c: BackboneConfig) -> BackboneConfig:
    """The same kind of net, with grouped queries or experts where it has them."""
    grouped, experts = 2 if c.kv_heads < c.n_heads else None, 4 if c.n_experts else 0
    return replace(
        c, vocab_size=c.vocab_size and 128, d_model=32, n_layers=2, n_heads=4, n_kv_heads=grouped, ff_dim=48,
        n_experts=experts, experts_per_token=2, expert_dim=16 if experts else 0,
    )  # fmt: skip


def build(config: BackboneConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> Backbone:
    """A net with random weights, made where it will be."""
    with torch.device("meta"):
        net = Backbone(config)
    net = net.to(dtype).to_empty(device=device)
    net.init_weights(1)
    return net


def measure(machine: Machine, step: Step, steps: int = 5, warmup: int = 3) -> Measured:
    """Time ``step`` on its own, with a wait for the device before and after it."""
    cuda, times = machine.device.type == "cuda", []
    for _ in range(machine.pick(warmup, 1)):
        step()
    if cuda:
        torch.cuda.reset_peak_memory_stats(machine.device)
    for _ in range(machine.pick(steps, 2)):
        begin = now(machine.device)
        step()
        times.append(now(machine.device) - begin)
    return Measured(statistics.median(times), torch.cuda.max_memory_allocated(machine.device) if cuda else 0)


def largest(sizes: Iterable[Size], run: Callable[[Size], T]) -> tuple[Size, T]:
    """The first of ``sizes``, from the largest on, that fits the card, and what came of it.

    Raises:
        MemoryError: none does.
    """
    tried = []
    for size in sizes:
        try:
            return size, run(size)
        except RuntimeError as error:
            if not (
                isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
            ):  # the latter is cuBLAS's
                raise
        tried.append(str(size))
        release()
    raise MemoryError(f"out of memory at every size of {', '.join(tried)}")


def attempt(case: str, run: Callable[[], tuple[Figures, str]]) -> Row:
    """A line of the report, also where ``run`` fails or is refused.

    Raises:
        ModuleNotFoundError: a package is missing, which is a matter of the whole part.
    """
    try:
        figures, goal = run()
        return Row(case, figures, goal)
    except ModuleNotFoundError:
        raise
    except UserError as error:
        return Row(case, {}, instead=f"refused: {error}")
    except Exception as error:
        return Row(case, {}, instead=f"failed: {why(error)}")
    finally:
        release()


def why(error: BaseException) -> str:
    """One line: kind and text of an error, and where it came from; the traceback goes to stderr."""
    traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in place)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}{where}"


def release() -> None:
    """Give a card's memory back that nothing holds any more."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def forget_compiled() -> None:
    """Compiled code too, with the constants that it may hold."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    release()
