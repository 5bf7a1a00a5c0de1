"""Published folders are read as they are meant; what is missing, damaged or does not fit is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.checkpoint.load import load_checkpoint, load_net
from lit_llada.checkpoint.published.write import export_checkpoint
from lit_llada.errors import UserError


def line_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_net(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_missing_or_damaged(net, published, tmp_path: Path) -> None:
    assert "no config.json" in line_of(tmp_path)
    folder = published(net(), max_shard_size=20_000).path
    shards = sorted(folder.glob("model-*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-10])
    assert f"{shards[1]} is cut off or damaged" in line_of(folder)
    shards[1].write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{shards[1]} is cut off or damaged" in line_of(folder)
    shards[1].unlink()
    assert f"shard {shards[1].name} is missing" in line_of(folder)
    shards[1].write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    moved = {**places["weight_map"], "model.transformer.ln_f.weight": shards[0].name}
    index.write_text(json.dumps({"weight_map": moved}))
    assert f"says that model.transformer.ln_f.weight is in {shards[0].name}, and it is not" in line_of(folder)
    index.write_text("{")
    assert "model.safetensors.index.json is not valid JSON" in line_of(folder)
    index.unlink()
    assert "is a part, and model.safetensors.index.json is missing" in line_of(folder)
    for shard in shards:
        shard.unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in line_of(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in line_of(folder)


def test_tensors_that_do_not_fit(net, published) -> None:
    folder = published(net(n_experts=2, expert_dim=8))
    tensors, name = folder.tensors, "model.layers.1.mlp.experts.1.up_proj.weight"
    without = {key: tensor for key, tensor in tensors.items() if key != name}
    assert f"tensor {name} is missing" in line_of(folder.put(without).path)
    extra = tensors | {"model.layers.2.mlp.gate.weight": torch.zeros(2, 32), "model.extra": torch.zeros(1)}
    assert "tensor model.extra is not of this architecture (and 1 more)" in line_of(folder.put(extra).path)
    line = line_of(folder.put(tensors | {name: tensors[name].T}).path)
    assert f"{name} has shape [32, 8], and the configuration says [8, 32]" in line
    for bad in ("nan", "inf", "-inf"):
        broken = tensors[name].clone()
        broken[3, 5] = float(bad)
        assert f"{name} holds {bad}, which is no finite float32" in line_of(folder.put(tensors | {name: broken}).path)
    line = line_of(folder.put(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}).path)
    assert f"{name} is stored as F8_E4M3; give unquantised weights" in line
    folder.put(tensors | {name: tensors[name] * 1e6})
    assert load_net(folder.path).config.n_experts == 2
    with pytest.raises(UserError, match="which is no finite float16"):
        load_net(folder.path, torch.float16)
    assert "rope_scaling" in line_of(folder.set(rope_scaling={"type": "linear"}).path)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("model*.safetensors") for name, t in load_file(file).items()}


def test_what_null_and_left_out_fields_mean(net, published) -> None:
    folder = published(net(n_kv_heads=1)).set(n_kv_heads=None, multi_query_attention=True, embedding_size=None)
    assert load_net(folder.path).config.kv_heads == 1
    folder = published(net(), "more").set(vocab_size=37, embedding_size=40, mlp_hidden_size=None, mlp_ratio=1.5)
    checkpoint = load_checkpoint(folder.path)
    assert checkpoint.net.config.vocabulary == 40 and checkpoint.forbidden == (3, 37, 38, 39)
    assert load_net(folder.set(n_kv_heads=None).path).config.kv_heads == 4
    assert load_net(folder.drop("architectures").path).config.n_experts == 0  # told by the fields
    sparse = published(net(n_experts=2, expert_dim=8), "sparse").drop("architectures").set(model_type="llada")
    assert load_net(sparse.path).config.n_experts == 2


def test_a_tied_head_may_be_stored_too(net, published) -> None:
    folder = published(net(tie_embeddings=True))
    tensors, head = folder.tensors, "model.transformer.ff_out.weight"
    embedding = tensors["model.transformer.wte.weight"]
    assert load_net(folder.put(tensors | {head: embedding.clone()}).path).head is None
    with pytest.raises(UserError, match="the head is tied to the embedding, but"):
        load_net(folder.put(tensors | {head: embedding + 1}).path)


def test_mixed_dtypes_take_the_widest_and_a_dtype_can_be_asked_for(net, published) -> None:
    folder = published(net(torch.bfloat16))
    tensors = folder.tensors
    folder.put(tensors | {"model.transformer.ln_f.weight": tensors["model.transformer.ln_f.weight"].float() + 1e-5})
    loaded = load_net(folder.path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {p.dtype for p in load_net(folder.path, torch.float16).parameters()} == {torch.float16}
    target = export_checkpoint(load_checkpoint(folder.path), folder.path.with_name("half"), torch.float16)
    assert {t.dtype for t in stored(target).values()} == {torch.float16}
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "float16"
