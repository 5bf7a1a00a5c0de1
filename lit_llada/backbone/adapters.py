"""Names of adapters in a state dict, and how one is merged into its layer: ``y = (W + alpha / rank * B A) x``.

A layer ``x`` with an adapter keeps its weight as ``x.base_layer.weight`` and adds ``x.lora_A.default.weight`` and
``x.lora_B.default.weight``: peft's names. Reading them needs no peft.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

BASE, DOWN, UP = ".base_layer.", ".lora_A.", ".lora_B."
T = TypeVar("T", bound=Tensor)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return DOWN in name or UP in name


def without_adapters(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Names and tensors of the net beneath the adapters, called as in a net that has none."""
    for name, tensor in named:
        if not is_adapter(name):
            yield name.replace(BASE, "."), tensor


def merged(state: Mapping[str, Tensor], name: str, scale: float) -> Tensor:
    """A tensor of the plain net, out of a state dict with adapters: ``W + scale * B A`` where there is one.

    It has the adapter's dtype, which is as wide as W's or wider.

    Args:
        state: state dict, with adapters or without.
        name: name of the tensor in the plain net.
        scale: alpha / rank.

    Raises:
        KeyError: the tensor, or a half of its adapter, is missing; says its name.
    """
    layer, _, kind = name.rpartition(".")
    beneath = f"{layer}{BASE}{kind}"
    if beneath not in state:
        return state[name]
    if kind != "weight":
        return state[beneath]
    down, up = state[f"{layer}{DOWN}default.weight"], state[f"{layer}{UP}default.weight"]
    return torch.addmm(state[beneath].to(up.dtype), up, down, alpha=scale)
