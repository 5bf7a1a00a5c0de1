"""Small nets with random weights everywhere (biases and norms too), and published folders of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import Checkpoint
from lit_llada.checkpoint.published.write import export_checkpoint

# Options of BackboneConfig that published formats tell apart.
VARIANTS: dict[str, dict[str, Any]] = {
    "biases": {"bias": True},
    "qkv_bias": {"qkv_bias": True, "n_kv_heads": 2},
    "width_norm": {"qk_norm": "width", "n_kv_heads": 2},
    "illada": {"n_kv_heads": 2, "tie_embeddings": True},
    "one_kv_head": {"n_kv_heads": 1},
    "moe": {"n_experts": 4, "expert_dim": 16, "qk_norm": "head"},
    "moe_everything": {
        "n_experts": 4, "expert_dim": 16, "qk_norm": "head", "n_kv_heads": 2, "n_layers": 3, "dense_layers": [0, 2],
        "shared_expert_dim": 24, "expert_bias": True, "rope_fraction": 0.5, "tie_embeddings": True,
    },
    "arm": {"causal": True},
    "arm_qkv_bias": {"causal": True, "qkv_bias": True, "n_kv_heads": 2},
    "arm_head_norm": {"causal": True, "qk_norm": "head", "head_dim": 16},
}  # fmt: skip


def make_net(dtype: torch.dtype = torch.float32, **options: Any) -> Backbone:
    small = {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 4, "ff_dim": 48}
    net = Backbone(BackboneConfig(**(small | options)))
    generator = torch.Generator().manual_seed(7)
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data = torch.randn(tensor.shape, generator=generator).mul(0.3).to(dtype)
    return net.eval()


class Folder:
    """A published folder under test: its fields and tensors can be changed before it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def fields(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {k: t for file in sorted(self.path.glob("model*.safetensors")) for k, t in load_file(file).items()}

    def set(self, **fields: Any) -> Folder:
        (self.path / "config.json").write_text(json.dumps(self.fields | fields))
        return self

    def drop(self, *fields: str) -> Folder:
        kept = {name: value for name, value in self.fields.items() if name not in fields}
        (self.path / "config.json").write_text(json.dumps(kept))
        return self

    def put(self, tensors: dict[str, torch.Tensor]) -> Folder:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.path / "model.safetensors")
        return self


@pytest.fixture
def net() -> Callable[..., Backbone]:
    """``net(dtype, **options of BackboneConfig)``."""
    return make_net


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Folder]:
    """``published(net, ...)``: export the net, by default as ``tmp_path / "published"``."""

    def write(net: Backbone, name: str = "published", **options: Any) -> Folder:
        checkpoint = Checkpoint(net, None, mask_id=3, eos_id=1, pad_id=1)
        return Folder(export_checkpoint(checkpoint, tmp_path / name, **options))

    return write


@pytest.fixture
def folder() -> type[Folder]:
    return Folder
