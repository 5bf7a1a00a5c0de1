"""Each published tensor lies where its key table says."""

from __future__ import annotations

import torch

from tests.shared.published import VARIANTS


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
