"""Families of published models: what each field of their ``config.json`` means, in both directions.

A field is read, or has to have the one value that :class:`Backbone` computes, or is known to have no effect on the
computation. Any other is refused by name: a field that nobody looked at is how a checkpoint loads and then is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lit_llada.backbone.config import BackboneConfig
from lit_llada.checkpoint.published import keymaps
from lit_llada.checkpoint.published.keymaps import Keys
from lit_llada.errors import UserError

Fields = dict[str, Any]

# Fields of every family that say nothing about the computation.
COMMON = (
    "_attn_implementation", "_name_or_path", "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id",
    "mask_token_id", "model_type", "pad_token_id", "tokenizer_class", "torch_dtype", "transformers_version",
    "use_cache",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One published format.

    Args:
        title: name of the family in messages.
        architectures: names in ``config.json``.
        keys: names of its tensors, see :mod:`lit_llada.checkpoint.published.keymaps`.
        needed: their field -> ours, with equal values.
        optional: the same for fields that may be null or left out; ours then keeps its default.
        fixed: fields that must have one value:

            ================  =======================================
            the value         what the published field may say
            ================  =======================================
            false or null     that value, null, or nothing (left out)
            any other         that value
            ================  =======================================

        without_effect: fields that change nothing here, with the published values.
        read: function that makes those arguments of :class:`BackboneConfig` which need more than another name; it
            refuses contradictions.
        write: function that makes the fields which need more than another name.
        reads: the fields that ``read`` looks at.
        ids: published special ids where the published config has none.
    """

    title: str
    architectures: tuple[str, ...]
    keys: Keys
    needed: dict[str, str]
    optional: dict[str, str]
    fixed: Fields
    without_effect: Fields
    read: Callable[[Fields], Fields]
    write: Callable[[BackboneConfig], Fields]
    reads: tuple[str, ...]
    ids: dict[str, int]


def number(fields: Fields, name: str) -> Any:
    """A field that has to be there and be a number (a flag is one).

    Raises:
        UserError: it is not.
    """
    if not isinstance(fields.get(name), int | float):
        raise UserError(f"{name} is {fields[name]!r}; it must be a number" if name in fields else f"{name} is missing")
    return fields[name]


def _auto_map(repository: str, module: str, net: str) -> dict[str, str]:
    """Where transformers finds the published code of a folder that holds none."""
    net = f"{repository}--modeling_{module}.{net}"
    config = f"{repository}--configuration_{module}.LLaDAConfig"
    return {"AutoConfig": config, "AutoModel": net, "AutoModelForCausalLM": net}


def _read_dense(f: Fields) -> Fields:
    heads, kv, single = f["n_heads"], f.get("n_kv_heads"), f.get("multi_query_attention")
    said = None if single is None else 1 if single else heads
    if None not in (kv, said) and kv != said:
        raise UserError(f"multi_query_attention {single} contradicts n_kv_heads {kv} of n_heads {heads}")
    if f.get("include_bias") and f.get("bias_for_layer_norm") is None:
        raise UserError("bias_for_layer_norm null with include_bias true means norms with a bias, which are not built")
    width_norm = bool(f.get("attention_layer_norm"))
    if width_norm and f.get("attention_layer_norm_with_affine") is False:
        raise UserError("attention_layer_norm_with_affine is False: norms without weights are not built")
    return {
        "vocab_size": f.get("embedding_size") or number(f, "vocab_size"),
        "n_kv_heads": said if kv is None else kv,
        "ff_dim": f.get("mlp_hidden_size") or int(number(f, "mlp_ratio") * f["d_model"]),
        "qk_norm": "width" if width_norm else "none",
        "init": "normal" if f.get("init_fn") == "normal" else "mitchell",
    }


def _write_dense(c: BackboneConfig) -> Fields:
    width_norm = c.qk_norm == "width"
    return {
        "vocab_size": c.vocabulary, "embedding_size": c.vocabulary, "n_kv_heads": c.kv_heads, "mlp_ratio": 4,
        "multi_query_attention": None, "mlp_hidden_size": c.ff_dim, "attention_layer_norm": width_norm,
        "attention_layer_norm_with_affine": True, "init_fn": c.init,
    }  # fmt: skip


DENSE = Family(
    "LLaDA",
    ("LLaDAModelLM",),
    keymaps.DENSE,
    needed={
        "d_model": "d_model", "n_layers": "n_layers", "n_heads": "n_heads", "weight_tying": "tie_embeddings",
        "rms_norm_eps": "norm_eps", "rope_theta": "rope_theta",
    },
    optional={
        "include_bias": "bias", "include_qkv_bias": "qkv_bias", "init_std": "init_std",
        "rope_full_precision": "rope_full_precision",
    },
    fixed={
        "activation_type": "silu", "alibi": False, "bias_for_layer_norm": False, "block_group_size": 1,
        "block_type": "llama", "input_emb_norm": False, "layer_norm_type": "rms", "layer_norm_with_affine": True,
        "rope": True, "scale_logits": False,
    },
    without_effect={
        "alibi_bias_max": 8.0, "attention_dropout": 0.0, "embedding_dropout": 0.0, "flash_attention": False,
        "init_cutoff_factor": None, "init_device": "meta", "max_sequence_length": 4096, "model_type": "llada",
        "precision": "amp_bf16", "residual_dropout": 0.0, "use_cache": False,
        "auto_map": _auto_map("GSAI-ML/LLaDA-8B-Base", "llada", "LLaDAModelLM"),
    },
    read=_read_dense,
    write=_write_dense,
    reads=(
        "vocab_size", "embedding_size", "n_kv_heads", "multi_query_attention", "mlp_hidden_size", "mlp_ratio",
        "attention_layer_norm", "attention_layer_norm_with_affine", "init_fn",
    ),
    ids={"mask": 126336, "eos": 126081, "eot": 126348},
)  # fmt: skip


def _read_moe(f: Fields) -> Fields:
    frequency, layers = f.get("moe_layer_freq"), f["num_hidden_layers"]
    if not isinstance(frequency, list) or len(frequency) != layers:
        raise UserError(f"moe_layer_freq is {frequency}; it needs one number for each of the {layers} layers")
    return {
        "dense_layers": [layer for layer, sparse in enumerate(frequency) if not sparse],
        "qk_norm": "head" if f.get("qk_layernorm") else "none",
        "rope_full_precision": bool(f.get("rope_full_precision")),
        "init": "normal",
    }


def _write_moe(c: BackboneConfig) -> Fields:
    # The published code rotates in the working dtype. A net of ours that does not says so, and is read back so.
    precise = {"rope_full_precision": True} if c.rope_full_precision else {}
    return {
        "moe_layer_freq": [int(c.is_sparse(layer)) for layer in range(c.n_layers)],
        "qk_layernorm": c.qk_norm == "head", "num_key_value_heads": c.kv_heads,
        "shared_expert_intermediate_size": c.shared_expert_dim or None, **precise,
    }  # fmt: skip


MOE = Family(
    "LLaDA-MoE",
    ("LLaDAMoEModelLM", "LLaDAMoEModel"),
    keymaps.MOE,
    needed={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "num_experts": "n_experts", "num_experts_per_tok": "experts_per_token", "rms_norm_eps": "norm_eps",
        "expert_intermediate_size": "expert_dim", "dense_intermediate_size": "ff_dim", "rope_theta": "rope_theta",
        "vocab_size": "vocab_size",
    },
    optional={
        "num_key_value_heads": "n_kv_heads", "shared_expert_intermediate_size": "shared_expert_dim",
        "tie_word_embeddings": "tie_embeddings", "partial_rotary_factor": "rope_fraction",
        "moe_router_enable_expert_bias": "expert_bias", "initializer_range": "init_std",
    },
    fixed={"attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "rope_scaling": None},
    # The published code reads these and does not use them: the router is a softmax, its weights are not renormalised.
    without_effect={
        "attention_dropout": 0.0, "max_position_embeddings": 8192, "model_type": "llada",
        "moe_router_score_function": "softmax", "norm_topk_prob": False, "output_router_logits": False,
        "routed_scaling_factor": 1.0, "router_aux_loss_coef": 0.01, "router_num_group": None,
        "router_topk_group": None, "use_cache": False,
        "auto_map": _auto_map("inclusionAI/LLaDA-MoE-7B-A1B-Base", "lladamoe", "LLaDAMoEModelLM"),
    },
    read=_read_moe,
    write=_write_moe,
    reads=("moe_layer_freq", "qk_layernorm", "rope_full_precision"),
    ids={"mask": 156895, "eos": 156892},
)  # fmt: skip


def _read_llama(f: Fields) -> Fields:
    architecture = next(name for name in f["architectures"] if name in AUTOREGRESSIVE.architectures)
    rope = {**(f.get("rope_scaling") or {}), **(f.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"rope_scaling is {rope}: only the plain rotary embedding is built")
    if set(f.get("layer_types") or []) - {"full_attention"}:
        raise UserError(f"layer_types {f['layer_types']}: only full_attention is built")
    return {
        "rope_theta": float(rope.get("rope_theta") or f.get("rope_theta") or 10_000.0),
        # What the published config class takes where the field is left out.
        "head_dim": f.get("head_dim") or (128 if architecture == "Qwen3ForCausalLM" else None),
        "qkv_bias": architecture == "Qwen2ForCausalLM",
        "qk_norm": "head" if architecture == "Qwen3ForCausalLM" else "none",
        "causal": True,
        "rope_full_precision": False,
        "init": "normal",
    }


def _write_llama(c: BackboneConfig) -> Fields:
    name = "Qwen3" if c.qk_norm == "head" else "Qwen2" if c.qkv_bias else "Llama"
    return {
        "architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), "head_dim": c.head_width,
        "num_key_value_heads": c.kv_heads, "rope_theta": c.rope_theta,
    }  # fmt: skip


AUTOREGRESSIVE = Family(
    "the Llama family",
    ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
    keymaps.LLAMA,
    needed={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "ff_dim", "rms_norm_eps": "norm_eps", "vocab_size": "vocab_size",
    },
    optional={
        "num_key_value_heads": "n_kv_heads", "tie_word_embeddings": "tie_embeddings", "initializer_range": "init_std",
    },
    fixed={
        "attention_bias": False, "hidden_act": "silu", "mlp_bias": False, "pretraining_tp": 1,
        "use_sliding_window": False,
    },
    without_effect={"attention_dropout": 0.0, "max_position_embeddings": 4096, "use_cache": True},
    read=_read_llama,
    write=_write_llama,
    reads=(
        "head_dim", "layer_types", "max_window_layers", "rope_parameters", "rope_scaling", "rope_theta",
        "sliding_window",
    ),
    ids={},
)  # fmt: skip
