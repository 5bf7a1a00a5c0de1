"""A checkpoint with adapters is a plain net: ``W + alpha / rank * B A``, written out by hand and without peft."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.adapters import merged, without_adapters
from lit_llada.checkpoint.load import load_checkpoint
from lit_llada.checkpoint.own import write_run
from lit_llada.cli.main import main
from lit_llada.errors import UserError

LAYERS = ("blocks.0.attn.qkv", "blocks.1.mlp.down")


def adapted(plain: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict with adapters of rank 2 and alpha 6, and the plain one that it stands for."""
    state, expected = dict(plain), dict(plain)
    for layer in LAYERS:
        weight = state.pop(f"{layer}.weight")
        a, b = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
        state |= {f"{layer}.base_layer.weight": weight, f"{layer}.lora_A.default.weight": a}
        state |= {f"{layer}.lora_B.default.weight": b}
        state |= {f"{layer}.base_layer.bias": state.pop(f"{layer}.bias")}
        expected[f"{layer}.weight"] = (weight.double() + 3.0 * b.double() @ a.double()).float()
    return state, expected


@pytest.fixture
def written(net: Any, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path / "x.ckpt"
    write_run(net(bias=True), 3, {}, path)
    saved = torch.load(path, weights_only=True)
    state, expected = adapted({name.removeprefix("net."): t for name, t in saved["state_dict"].items()})
    prefixed = {f"{kind}.{name}": t for kind in ("net", "ema") for name, t in state.items()}
    prefixed["ema.blocks.0.attn.qkv.lora_B.default.weight"] = torch.zeros(96, 2)  # so that the two differ
    torch.save(saved | {"state_dict": prefixed, "lora": {"rank": 2, "alpha": 6.0, "targets": None}}, path)
    return path, expected


def test_loaded_it_is_a_plain_net(written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    path, expected = written
    state = load_checkpoint(path, ema=False).net.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)
    averaged = load_checkpoint(path).net.state_dict()
    assert not torch.equal(averaged["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert torch.equal(averaged["blocks.1.mlp.down.weight"], state["blocks.1.mlp.down.weight"])

    assert main(["convert", "export", str(path), str(tmp_path / "out"), "--ema", "false"]) == 0
    again = load_checkpoint(tmp_path / "out").net.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("part", ["lora_A.default", "lora_B.default", "base_layer"])
def test_half_an_adapter_is_refused(written: Any, part: str) -> None:
    path, _ = written
    saved = torch.load(path, weights_only=True)
    del saved["state_dict"][f"net.blocks.1.mlp.down.{part}.weight"]
    torch.save(saved, path)
    missing = rf"x\.ckpt: tensor net\.blocks\.1\.mlp\.down\.({part}\.)?weight is missing"
    with pytest.raises(UserError, match=missing):
        load_checkpoint(path, ema=False)


def test_in_bfloat16_the_sum_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, a, b = (torch.randn(n, m, generator=generator).bfloat16() for n, m in ((64, 48), (4, 48), (64, 4)))
    state = {"x.base_layer.weight": weight, "x.lora_A.default.weight": a, "x.lora_B.default.weight": b}
    exact = weight.double() + 0.5 * b.double() @ a.double()
    error = (merged(state, "x.weight", 0.5).double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-6).all()


def test_names_of_the_net_beneath() -> None:
    names = ["embed.weight", "a.base_layer.weight", "a.lora_A.default.weight", "a.lora_B.default.weight", "a.down"]
    found = without_adapters([(name, torch.zeros(())) for name in names])
    assert [name for name, _ in found] == ["embed.weight", "a.weight", "a.down"]
