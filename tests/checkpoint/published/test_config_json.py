"""A field that would change the computation is refused by name; what null says, and what changes nothing, is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_llada.checkpoint.published.config_json import read_config
from lit_llada.errors import UserError

GOLDEN = Path(__file__).parents[2] / "golden"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "rms_norm_eps": 1e-6, "vocab_size": 40,
}  # fmt: skip
FIELDS = {name: json.loads((GOLDEN / name / "config.json").read_text()) for name in ("dense_a", "moe_a")} | {
    "llama": LLAMA,
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"]},
}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dense_a", {"alibi": True}, "alibi is True; only False is built"),
    ("dense_a", {"rope": False}, "rope is False; only True is built"),
    ("dense_a", {"layer_norm_type": "low_precision"}, "layer_norm_type is 'low_precision'; only 'rms'"),
    ("dense_a", {"bias_for_layer_norm": True}, "bias_for_layer_norm is True"),
    ("dense_a", {"bias_for_layer_norm": None, "include_bias": True}, "bias_for_layer_norm null with include_bias true"),
    ("dense_a", {"input_emb_norm": True}, "input_emb_norm is True"),
    ("dense_a", {"scale_logits": True}, "scale_logits is True"),
    ("dense_a", {"block_type": "sequential"}, "block_type is 'sequential'"),
    ("dense_a", {"block_group_size": 2}, "block_group_size is 2"),
    ("dense_a", {"activation_type": "swiglu"}, "activation_type is 'swiglu'"),
    ("dense_a", {"layer_norm_with_affine": False}, "layer_norm_with_affine is False"),
    ("dense_a", {"attention_layer_norm": True, "attention_layer_norm_with_affine": False}, "attention_layer_norm_with"),
    ("dense_a", {"multi_query_attention": True}, "multi_query_attention True contradicts n_kv_heads 4"),
    ("dense_a", {"multi_query_attention": False, "n_kv_heads": 2}, "multi_query_attention False contradicts n_kv"),
    ("dense_a", {"clip_qkv": 8.0}, "clip_qkv is 8.0, a field that LLaDA does not have"),
    ("dense_a", {"rope_scaling": {"factor": 2}}, "rope_scaling is .*a field that LLaDA does not have"),
    ("dense_a", {"quantization_config": {}}, "quantization_config is .*may change the computation"),
    ("dense_a", {"d_model": "64"}, "d_model is '64'; it must be a number"),
    ("dense_a", {"rope_theta": None}, "rope_theta is None; it must be a number"),
    ("dense_a", {"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
    ("dense_a", {"architectures": ["GPT2LMHeadModel"], "d_model": None}, "d_model is None"),
    ("moe_a", {"attention_bias": True}, "attention_bias is True"),
    ("moe_a", {"clip_qkv": 8.0}, "clip_qkv is 8.0; only None"),
    ("moe_a", {"rope_scaling": {"type": "yarn"}}, "rope_scaling is .*; only None"),
    ("moe_a", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("moe_a", {"moe_layer_freq": [1]}, r"moe_layer_freq is \[1\]; it needs one number for each of the 3 layers"),
    ("moe_a", {"moe_layer_freq": None}, "moe_layer_freq is None"),
    ("moe_a", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1, a field that LLaDA-MoE does not have"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling is .*llama3"),
    ("llama", {"attention_bias": True}, "attention_bias is True"),
    ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    ("llama", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act is"),
    ("llama", {"architectures": ["MistralForCausalLM"]}, "architectures is .*Mistral.*; give .*LLaDAModelLM"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    ("qwen2", {"layer_types": ["sliding_attention"]}, "layer_types .*only full_attention"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "line"), REFUSED, ids=[f"{k}-{'-'.join(c)}" for k, c, _ in REFUSED])
def test_a_field_that_would_change_the_computation(kind: str, change: dict[str, Any], line: str) -> None:
    read_config(FIELDS[kind])
    with pytest.raises(UserError, match=line):
        read_config(FIELDS[kind] | change)


@pytest.mark.parametrize(
    ("kind", "field"), [("dense_a", "rms_norm_eps"), ("dense_a", "weight_tying"), ("moe_a", "num_experts_per_tok")]
)
def test_a_field_that_is_missing(kind: str, field: str) -> None:
    fields = {name: value for name, value in FIELDS[kind].items() if name != field}
    with pytest.raises(UserError, match=f"{field} is missing"):
        read_config(fields)


def test_what_null_says_and_what_changes_nothing() -> None:
    harmless = {"alibi": None, "scale_logits": None, "residual_dropout": 0.1, "use_cache": True, "dtype": "bfloat16"}
    assert read_config(FIELDS["dense_a"] | harmless)[1] == read_config(FIELDS["dense_a"])[1]
    harmless = {"moe_router_score_function": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    assert read_config(FIELDS["moe_a"] | harmless)[1] == read_config(FIELDS["moe_a"])[1]
    new_style = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert read_config(FIELDS["llama"] | new_style)[1].rope_theta == 5e5
    assert read_config(FIELDS["llama"])[1].rope_theta == 1e4
