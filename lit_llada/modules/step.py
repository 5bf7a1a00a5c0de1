"""What a training step returns and adds up, and the check that a subclass's step does all that it must."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from lit_llada.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


class StepOutput(TypedDict):
    """What a step leaves for the callbacks. B rows of T tokens, R masked tokens, E experts."""

    loss: Tensor  # a sum; with its graph in training
    count: Tensor  # what the sum is to be divided by, once counted over all processes and micro-batches
    tokens: Tensor  # how many tokens might have been masked
    nll: Tensor  # [R] nats
    t: Tensor  # [R] noise level that each was masked at
    p_mask: Tensor  # [R] its probability of being masked
    masked: Tensor  # [B, T]
    router_logits: Tensor | None  # [sparse layers, B*T, E]


class NonFiniteStep(UserError):
    """The run met a loss or gradient that is NaN or inf; the weights are those before that step."""


class StepSums:
    """What this process has added up since the last optimizer step."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}  # name -> float64 scalar; "count" divides the others
        self.keys: list[Tensor] = []  # of each micro-batch
        self.counts = 0  # how many micro-batches have brought their count

    def add(self, name: str, total: Tensor, count: Tensor | None = None) -> None:
        """Add to one sum, and the count to the count."""
        self.sums[name] = self.sums.get(name, 0.0) + total.double()
        if count is not None:
            self.sums["count"] = self.sums.get("count", 0.0) + count.double()
            self.counts += 1

    def over_processes(self, strategy: Strategy, stop_requested: bool) -> dict[str, Tensor]:
        """The sums of all processes by name, and under ``stop`` how many of them are to stop."""
        stop = torch.full((1,), float(stop_requested), dtype=torch.float64, device=strategy.root_device)
        totals = strategy.reduce(torch.cat((torch.stack([*self.sums.values()]), stop)), reduce_op="sum")
        return dict(zip([*self.sums, "stop"], totals, strict=True))

    def rows(self) -> str:
        """The rows of the step, for a message."""
        keys = torch.cat(self.keys).tolist()
        return f"rows {keys[0]}..{keys[-1]} on this process"


def checked(training_step: Callable[..., Any]) -> Callable[..., StepOutput]:
    """A ``training_step`` that refuses what breaks the contract of :class:`DiffusionModule`.

    It only looks at what the host knows already, so that no step waits for the device.
    """

    @functools.wraps(training_step)
    def step(module: Any, *args: Any, **options: Any) -> StepOutput:
        counts, keys = module._step.counts, len(module._step.keys)
        output = training_step(module, *args, **options)
        added: StepSums = module._step
        wrong = _missing_from(output) or _missing_calls(added, added.counts - counts, len(added.keys) - keys)
        if wrong:
            raise UserError(f"{type(module).__name__}.training_step {wrong} (see the docstring of DiffusionModule)")
        return output

    return step


def _missing_from(output: Any) -> str:
    """What is wrong with a step's output; empty if nothing is."""
    if not isinstance(output, dict):
        return f"returned {type(output).__name__}: return a StepOutput"
    if missing := [name for name in StepOutput.__annotations__ if name not in output]:
        return f"returned a StepOutput without {', '.join(missing)}: return them too"
    if output["loss"].ndim:
        return f"returned a loss of shape {tuple(output['loss'].shape)}: return the scalar of sum_up"
    return ""


def _missing_calls(added: StepSums, counts: int, keys: int) -> str:
    """Which call a step forgot, or made twice; empty if none.

    Args:
        added: what has been added up.
        counts: number of counts that the step brought.
        keys: number of times that it gave keys.
    """
    if "loss" not in added.sums:
        return 'did not add to the sum "loss": call self.sum_up(bound, count, router_logits)'
    if counts != 1:
        return f"brought {counts} counts: give the count to one call of self.sum_up or self.add_up"
    if keys != 1:
        return f"gave its keys {keys} times: call self.add_keys(batch.keys) once"
    return ""
