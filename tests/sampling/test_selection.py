"""Candidates are drawn as published, and the surest of them go first."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.sampling import selection

GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLING: dict[str, Any] = json.loads((GOLDEN / "golden_sampling.json").read_text())


@functools.cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden_sampling.safetensors")


@pytest.mark.parametrize("temperature", SAMPLING["gumbel_argmax"])
def test_tokens_are_drawn_as_published(monkeypatch: pytest.MonkeyPatch, temperature: str) -> None:
    uniform, logits = tensors()["gumbel.uniform"], tensors()["gumbel.logits"]
    monkeypatch.setattr(selection, "keyed_uniform", lambda *_: uniform)
    rows = torch.zeros(len(logits), dtype=torch.int64)
    drawn = selection._draw(logits, float(temperature), (rows, 0, rows))
    assert drawn.tolist() == SAMPLING["gumbel_argmax"][temperature]
