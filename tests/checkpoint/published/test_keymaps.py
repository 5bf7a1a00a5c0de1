"""Each published tensor lies where its key table says."""

from __future__ import annotations

from typing import Any

import torch

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


def test_where_each_published_tensor_lies(net, published) -> None:
    sparse = net(**VARIANTS["moe_everything"])
    t, state = published(sparse).tensors, sparse.state_dict()
    assert torch.equal(t["model.layers.1.self_attn.k_proj.weight"], state["blocks.1.attn.qkv.weight"][32:48])
    assert torch.equal(t["model.layers.1.mlp.experts.2.up_proj.weight"], state["blocks.1.mlp.gate_up"][2, :, 16:].T)
    assert torch.equal(t["model.layers.1.mlp.experts.3.down_proj.weight"], state["blocks.1.mlp.down"][3].T)
    assert torch.equal(
        t["model.layers.1.shared_expert.gate_proj.weight"], state["blocks.1.mlp.shared.gate_up.weight"][:24]
    )
    assert torch.equal(t["model.layers.1.mlp.expert_bias"], state["blocks.1.mlp.expert_bias"])
    assert torch.equal(t["model.layers.2.mlp.up_proj.weight"], state["blocks.2.mlp.gate_up.weight"][48:])
    assert "lm_head.weight" not in t and "model.layers.1.self_attn.q_norm.weight" in t
    dense = net(bias=True, qk_norm="width")
    t, state = published(dense, "dense").tensors, dense.state_dict()
    assert torch.equal(t["model.transformer.blocks.1.v_proj.bias"], state["blocks.1.attn.qkv.bias"][64:])
    assert torch.equal(t["model.transformer.blocks.0.ff_out.bias"], state["blocks.0.mlp.down.bias"])
    assert torch.equal(t["model.transformer.blocks.0.ff_out.weight"], state["blocks.0.mlp.down.weight"])
    assert torch.equal(t["model.transformer.ff_out.weight"], state["head.weight"])
    assert torch.equal(t["model.transformer.ff_out.bias"], state["head.bias"])
    assert t["model.transformer.blocks.0.k_norm.weight"].shape == (32,)
