"""Which published tensor is which of ours? Names and fields of LLaDA and LLaDA-MoE folders -> :class:`Backbone`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError


def read_folder(path: str | Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """A published folder (config.json and safetensors, one file or shards) as a net in eval mode.

    Raises:
        UserError: a file is missing, or tensors and architecture do not belong together.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give a folder in the Hugging Face layout")
    fields = json.loads((folder / "config.json").read_text())
    sparse = "num_experts" in fields  # model_type says "llada" in both families
    config = moe_config(fields) if sparse else dense_config(fields)
    tensors = _read_tensors(folder)
    with torch.device("meta"):
        net = Backbone(config)
    state = (moe_state if sparse else dense_state)(tensors, config)
    if missing := sorted(net.state_dict().keys() ^ state.keys()):
        raise UserError(f"{folder}: tensors do not fit config.json, first {missing[0]}")
    net.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return net.eval()


def dense_config(fields: dict[str, Any]) -> BackboneConfig:
    """LLaDA's ``config.json`` -> ours."""
    return BackboneConfig(
        vocab_size=fields["embedding_size"] or fields["vocab_size"],
        d_model=fields["d_model"],
        n_layers=fields["n_layers"],
        n_heads=fields["n_heads"],
        n_kv_heads=fields["n_kv_heads"],
        ff_dim=fields["mlp_hidden_size"] or fields["mlp_ratio"] * fields["d_model"],
        qk_norm="width" if fields["attention_layer_norm"] else "none",
        tie_embeddings=fields["weight_tying"],
        bias=fields["include_bias"],
        qkv_bias=fields["include_qkv_bias"],
        norm_eps=fields["rms_norm_eps"],
        rope_theta=fields["rope_theta"],
        rope_full_precision=fields["rope_full_precision"],
    )


def moe_config(fields: dict[str, Any]) -> BackboneConfig:
    """LLaDA-MoE's ``config.json`` -> ours. The published code ignores ``norm_topk_prob``, and so does this."""
    frequency = fields["moe_layer_freq"]
    return BackboneConfig(
        vocab_size=fields["vocab_size"],
        d_model=fields["hidden_size"],
        n_layers=fields["num_hidden_layers"],
        n_heads=fields["num_attention_heads"],
        n_kv_heads=fields["num_key_value_heads"],
        ff_dim=fields["dense_intermediate_size"],
        n_experts=fields["num_experts"],
        experts_per_token=fields["num_experts_per_tok"],
        expert_dim=fields["expert_intermediate_size"],
        shared_expert_dim=fields["shared_expert_intermediate_size"] or 0,
        dense_layers=[layer for layer, sparse in enumerate(frequency) if not sparse],
        expert_bias=bool(fields["moe_router_enable_expert_bias"]),
        qk_norm="head" if fields["qk_layernorm"] else "none",
        tie_embeddings=bool(fields.get("tie_word_embeddings")),
        norm_eps=fields["rms_norm_eps"],
        rope_theta=fields["rope_theta"],
        rope_fraction=fields["partial_rotary_factor"],
        rope_full_precision=False,
        init="normal",
    )


def dense_state(tensors: dict[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    """LLaDA's tensors under our names; queries, keys, values and gate, up become one matrix each."""
    get = {name.removeprefix("model.transformer."): tensor for name, tensor in tensors.items()}
    state = {"embed.weight": get["wte.weight"], "norm.weight": get["ln_f.weight"]}
    if not config.tie_embeddings:
        state["head.weight"] = get["ff_out.weight"]
    for i in range(config.n_layers):
        theirs, ours = f"blocks.{i}.", f"blocks.{i}."
        state[ours + "attn_norm.weight"] = get[theirs + "attn_norm.weight"]
        state[ours + "mlp_norm.weight"] = get[theirs + "ff_norm.weight"]
        state[ours + "attn.qkv.weight"] = _stack(get, theirs, "q_proj", "k_proj", "v_proj")
        state[ours + "attn.out.weight"] = get[theirs + "attn_out.weight"]
        state[ours + "mlp.gate_up.weight"] = _stack(get, theirs, "ff_proj", "up_proj")
        state[ours + "mlp.down.weight"] = get[theirs + "ff_out.weight"]
    return state


def moe_state(tensors: dict[str, Tensor], config: BackboneConfig) -> dict[str, Tensor]:
    """LLaDA-MoE's tensors under our names; experts are stacked and transposed to ``[E, in, out]``."""
    get = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    state = {"embed.weight": get["embed_tokens.weight"], "norm.weight": get["norm.weight"]}
    if not config.tie_embeddings:
        state["head.weight"] = get["lm_head.weight"]
    for i in range(config.n_layers):
        theirs, ours = f"layers.{i}.", f"blocks.{i}."
        state[ours + "attn_norm.weight"] = get[theirs + "input_layernorm.weight"]
        state[ours + "mlp_norm.weight"] = get[theirs + "post_attention_layernorm.weight"]
        state[ours + "attn.qkv.weight"] = _stack(get, theirs + "self_attn.", "q_proj", "k_proj", "v_proj")
        state[ours + "attn.out.weight"] = get[theirs + "self_attn.o_proj.weight"]
        if config.qk_norm == "head":
            state[ours + "attn.q_norm.weight"] = get[theirs + "self_attn.q_norm.weight"]
            state[ours + "attn.k_norm.weight"] = get[theirs + "self_attn.k_norm.weight"]
        if not config.is_sparse(i):
            state[ours + "mlp.gate_up.weight"] = _stack(get, theirs + "mlp.", "gate_proj", "up_proj")
            state[ours + "mlp.down.weight"] = get[theirs + "mlp.down_proj.weight"]
            continue
        experts = [f"{theirs}mlp.experts.{e}." for e in range(config.n_experts)]
        state[ours + "mlp.router.weight"] = get[theirs + "mlp.gate.weight"]
        state[ours + "mlp.gate_up"] = torch.stack([_stack(get, e, "gate_proj", "up_proj").T for e in experts])
        state[ours + "mlp.down"] = torch.stack([get[e + "down_proj.weight"].T for e in experts])
    return state


def _stack(get: dict[str, Tensor], prefix: str, *names: str) -> Tensor:
    return torch.cat([get[f"{prefix}{name}.weight"] for name in names])


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no model*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
