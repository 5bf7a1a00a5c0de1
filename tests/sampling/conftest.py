"""Denoisers to try the sampler on: a lookup table whose answers are known in full, and two tiny nets."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.sampling.canvas import State


class Table:
    """A fixed random distribution for every position of every canvas; padding is not looked at.

    Attributes:
        shapes: of each call, how many canvases and how many positions it was asked for.
    """

    def __init__(self, vocabulary: int, spread: float = 1.5, favour: dict[int, float] | None = None) -> None:
        self.vocabulary, self.spread, self.favour = vocabulary, spread, favour or {}
        self.known: dict[tuple[int, ...], Tensor] = {}
        self.shapes: list[tuple[int, int]] = []

    def logits(self, row: tuple[int, ...]) -> Tensor:
        """[L, V] float64"""
        if row not in self.known:
            noise = random.Random(str((self.vocabulary, row)))
            table = [
                [self.spread * noise.gauss(0, 1) + self.favour.get(v, 0) for v in range(self.vocabulary)] for _ in row
            ]
            self.known[row] = torch.tensor(table, dtype=torch.float64)
        return self.known[row]

    def __call__(self, tokens: Tensor, mask: AttentionMask | None, rows: Tensor) -> Tensor:
        self.shapes.append((len(tokens), len(rows)))
        real = torch.ones_like(tokens).bool() if mask is None or mask.padding is None else mask.padding
        out = torch.full((*tokens.shape, self.vocabulary), torch.nan, dtype=torch.float64)
        for i, (row, kept) in enumerate(zip(tokens.tolist(), real.tolist(), strict=True)):
            out[i, real[i]] = self.logits(tuple(t for t, k in zip(row, kept, strict=True) if k))
        return out.flatten(0, 1)[rows]


def last(states: Any) -> State:
    *_, state = states
    return state


@functools.cache
def tiny(vocabulary: int, experts: int = 0, dtype: torch.dtype = torch.float32) -> Backbone:
    """Two layers, wide enough weights that its predictions differ from each other."""
    sparse = {"n_experts": experts, "expert_dim": 16, "dense_layers": [0]} if experts else {}
    config = BackboneConfig(
        vocab_size=vocabulary, d_model=32, n_layers=2, n_heads=2, ff_dim=64, init="normal", init_std=0.35, **sparse
    )
    net = Backbone(config)
    net.init_weights(seed=3)
    return net.to(dtype).eval()


@pytest.fixture(scope="session", name="Table")
def _table() -> type[Table]:
    return Table


@pytest.fixture(scope="session", name="last")
def _last() -> Callable[[Any], State]:
    return last


@pytest.fixture(scope="session", name="tiny")
def _tiny() -> Callable[..., Backbone]:
    return tiny
