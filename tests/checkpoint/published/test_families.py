"""Starting from a Llama, Qwen2 or Qwen3: the same function with its causal mask, then without, with a mask token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer as Model
from tokenizers import models

from lit_llada.checkpoint.load import load_checkpoint, load_into, load_net
from lit_llada.checkpoint.published.write import export_checkpoint
from lit_llada.errors import UserError

V, D, L, H, K, F_DIM = 30, 32, 2, 4, 2, 48
FIELDS: dict[str, Any] = {
    "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": K,
    "intermediate_size": F_DIM, "rms_norm_eps": 1e-6, "vocab_size": V, "rope_theta": 10_000.0, "hidden_act": "silu",
    "max_position_embeddings": 128, "tie_word_embeddings": False, "torch_dtype": "float32", "attention_dropout": 0.0,
    "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": [2, 7], "use_cache": True,
}  # fmt: skip
KINDS = {
    "Llama": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None},
    "Qwen2": {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2},
    "Qwen3": {"head_dim": 16, "attention_bias": False, "layer_types": ["full_attention"] * L, "sliding_window": None},
}


def write(folder: Path, kind: str, **fields: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A random published folder, made from names and shapes alone."""
    fields = FIELDS | KINDS[kind] | {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower()} | fields
    h = fields.get("head_dim") or D // H
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    for i in range(L):
        p = f"model.layers.{i}."
        for name, rows in (("q", H * h), ("k", K * h), ("v", K * h)):
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, D)
            if kind == "Qwen2":
                shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        if kind == "Qwen3":
            shapes |= {f"{p}self_attn.q_norm.weight": (h,), f"{p}self_attn.k_norm.weight": (h,)}
        shapes |= {p + "self_attn.o_proj.weight": (D, H * h), p + "mlp.down_proj.weight": (D, F_DIM)}
        shapes |= {p + "mlp.gate_proj.weight": (F_DIM, D), p + "mlp.up_proj.weight": (F_DIM, D)}
        shapes |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
    if fields["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    generator = torch.Generator().manual_seed(3)
    tensors = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return fields, tensors


def forward(fields: dict[str, Any], w: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """An independent Llama: one sequence ``[T]`` -> logits ``[T, V]``, by complex rotations and plain loops."""
    h, eps, n = fields.get("head_dim") or D // H, fields["rms_norm_eps"], len(tokens)

    def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def rope(x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(n)[:, None] / fields["rope_theta"] ** (torch.arange(h // 2) * 2 / h)
        turned = torch.complex(x[:, : h // 2], x[:, h // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    def head(x: torch.Tensor, p: str, name: str, number: int) -> torch.Tensor:
        y = F.linear(x, w[f"{p}{name}_proj.weight"], w.get(f"{p}{name}_proj.bias"))[:, number * h : (number + 1) * h]
        norm = w.get(f"{p}{name}_norm.weight")
        return y if norm is None else rms(y, norm)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(L):
        p = f"model.layers.{i}."
        a, s, heads = rms(x, w[p + "input_layernorm.weight"]), p + "self_attn.", []
        for j in range(H):
            q, k = rope(head(a, s, "q", j)), rope(head(a, s, "k", j * K // H))
            scores = (q @ k.T / h**0.5).masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ head(a, s, "v", j * K // H))
        x = x + torch.cat(heads, -1) @ w[s + "o_proj.weight"].T
        f = rms(x, w[p + "post_attention_layernorm.weight"])
        gate, up = f @ w[p + "mlp.gate_proj.weight"].T, f @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
    return rms(x, w["model.norm.weight"]) @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_with_its_causal_mask_it_is_the_published_function(kind: str, tied: bool, tmp_path: Path) -> None:
    fields, tensors = write(tmp_path, kind, tie_word_embeddings=tied)
    tokens = torch.tensor([5, 0, 29, 3, 3, 17, 8])
    causal = load_checkpoint(tmp_path, causal=True).net
    wanted = forward(fields, tensors, tokens)
    torch.testing.assert_close(causal(tokens[None])[0, :, :V], wanted, atol=2e-4, rtol=1e-4)
    checkpoint = load_checkpoint(tmp_path)
    both = checkpoint.net(tokens[None])[0, :, :V]
    assert not checkpoint.net.config.causal and (both - wanted).abs().max() > 0.1
    assert (checkpoint.mask_id, checkpoint.eos_id, checkpoint.net.config.vocabulary) == (V, 2, V + 1)
    for matrix in [checkpoint.net.embed] + ([] if tied else [checkpoint.net.head]):
        torch.testing.assert_close(matrix.weight[V], matrix.weight[:V].mean(0))
    assert torch.equal(checkpoint.net.embed.weight[:V], tensors["model.embed_tokens.weight"])


def word_tokenizer(folder: Path, size: int, *more: str) -> None:
    vocabulary = {f"w{i}": i for i in range(size - len(more))} | {w: size - len(more) + i for i, w in enumerate(more)}
    Model(models.WordLevel(vocabulary, unk_token="w0")).save(str(folder / "tokenizer.json"))


def test_the_mask_token_takes_a_spare_row_before_a_new_one(tmp_path: Path) -> None:
    _, tensors = write(tmp_path, "Llama")
    embedding = tensors["model.embed_tokens.weight"]
    word_tokenizer(tmp_path, 25)
    checkpoint = load_checkpoint(tmp_path)  # the tokenizer has no EOS; its config.json says w2
    assert (checkpoint.mask_id, checkpoint.net.config.vocabulary, checkpoint.eos_id) == (25, V, 2)
    torch.testing.assert_close(checkpoint.net.embed.weight[25], embedding.mean(0))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.mask_id == 25
    assert checkpoint.forbidden == tuple(range(25, 30))
    word_tokenizer(tmp_path, 25, "<|mask|>")  # the vocabulary has a mask: its row is what it was trained to be
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.mask_id == 24 and torch.equal(checkpoint.net.embed.weight, embedding)
    (tmp_path / "tokenizer.json").unlink()
    assert torch.equal(load_checkpoint(tmp_path, mask_id=4).net.embed.weight, embedding)
    assert load_checkpoint(tmp_path, mask_id=33).net.config.vocabulary == 34


def test_a_llama_becomes_a_llada_folder_and_a_causal_one_stays_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "llama", "Llama", num_key_value_heads=K)
    word_tokenizer(tmp_path / "llama", V)
    (tmp_path / "llama" / "README.md").write_text("a Llama")
    start = load_checkpoint(tmp_path / "llama")
    diffusion = load_checkpoint(export_checkpoint(start, tmp_path / "diffusion"))
    fields = json.loads((tmp_path / "diffusion" / "config.json").read_text())
    assert fields["architectures"] == ["LLaDAModelLM"] and fields["mask_token_id"] == V == diffusion.mask_id
    assert diffusion.tokenizer is not None and diffusion.tokenizer.mask_id == V
    assert "a Llama" not in (tmp_path / "diffusion" / "README.md").read_text()
    tokens = torch.arange(10)[None]
    assert torch.equal(diffusion.net(tokens), start.net(tokens))
    causal = load_checkpoint(tmp_path / "llama", causal=True)
    again = load_checkpoint(export_checkpoint(causal, tmp_path / "causal"), causal=True)
    assert json.loads((tmp_path / "causal" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert again.mask_id == V and torch.equal(again.net(tokens), causal.net(tokens))
    write(tmp_path / "qwen3", "Qwen3")
    with pytest.raises(UserError, match=r"backbone\.head_dim is 16, which a config\.json of LLaDA cannot say"):
        export_checkpoint(load_checkpoint(tmp_path / "qwen3"), tmp_path / "no")


def test_old_rotary_buffers_are_not_read_and_load_into_follows_the_net(tmp_path: Path) -> None:
    _, tensors = write(tmp_path, "Llama")
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors | inv_freq, tmp_path / "model.safetensors")
    net = load_net(tmp_path)
    causal = load_checkpoint(tmp_path, causal=True).net
    other = type(causal)(causal.config)
    load_into(other, tmp_path)
    tokens = torch.arange(10)[None]
    assert torch.equal(other(tokens), causal(tokens)) and not torch.equal(other(tokens), net(tokens))
