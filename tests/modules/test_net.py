"""How a module builds its net: what ``auto`` compiles, and the dtype of the residual stream."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training.sharding import compile_blocks
from tests.modules.conftest import BACKBONES, DENSE, data_of, module_of, trainer_of


@pytest.mark.parametrize(
    ("asked", "device", "compiled"),
    [("auto", "cuda", True), ("auto", "cpu", False), (True, "cpu", True), (False, "cuda", False)],
)
def test_auto_compiles_on_a_gpu_and_a_word_of_the_user_counts(asked: Any, device: str, compiled: bool) -> None:
    module = PretrainingModule(copy.copy(DENSE), compile=asked)
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore
    assert module._compiles() is compiled
    assert PretrainingModule(copy.copy(DENSE))._compiles() is False  # without a trainer, to be looked at


@pytest.mark.slow
def test_the_compiled_softmax_of_the_head_is_the_plain_one() -> None:
    net = Backbone(BackboneConfig(vocab_size=600, d_model=16, n_layers=1, n_heads=2, ff_dim=16))
    tokens, positions, found = torch.randint(600, (3, 100)), torch.arange(0, 300, 2), []
    for fused in (False, True):
        net.fused = fused
        loss, nll, _ = net.weighted_nll(tokens, tokens, positions, torch.rand(150, generator=torch.manual_seed(1)))
        found.append((nll, *torch.autograd.grad(loss, list(net.parameters()))))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    compile_blocks(net)
    assert net.fused


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_residual_stream_in_bfloat16(kind: str) -> None:
    net = Backbone(BackboneConfig(**{**vars(BACKBONES[kind]), "vocab_size": 300}))
    tokens, positions = torch.randint(300, (4, 33)), torch.arange(0, 132, 3)
    dtypes: list[torch.dtype] = []
    for block in net.blocks:
        block.register_forward_hook(lambda _, inputs, out: dtypes.extend((inputs[0].dtype, out[0].dtype)))
    losses: list[Tensor] = []
    for net.residual in (None, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            loss, _, _ = net.weighted_nll(tokens, tokens, positions, torch.ones(len(positions)))
        loss.backward()
        losses.append(loss / len(positions))
    assert dtypes == [torch.float32] * 4 + [torch.bfloat16] * 4
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
    assert 0 < (losses[0] - losses[1]).abs() < 0.05 * losses[0]


def test_a_bfloat16_residual_stream_needs_bfloat16_blocks(tmp_path: Path, pairs: Path, starts: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"model\.residual bfloat16 needs trainer\.precision bf16-mixed"):
        trainer_of(tmp_path).fit(module_of(starts["dense"], residual="bfloat16"), datamodule=data_of(pairs))


def test_workers_read_ahead_only_where_a_gpu_is_fed(pairs: Path) -> None:
    for device, asked, workers in (("cuda", None, 2), ("cpu", None, 0), ("cuda", 0, 0), ("cpu", 3, 3)):
        data = data_of(pairs, num_workers=asked)
        assert data._workers() == (asked or 0)  # without a trainer
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore
        assert data._workers() == workers
