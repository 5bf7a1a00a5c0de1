"""Published folders come in, compute what they should, and go out again as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import SIZES
from lit_llada.checkpoint.load import load_checkpoint
from lit_llada.checkpoint.published.config_json import write_config
from lit_llada.checkpoint.published.write import export_checkpoint
from lit_llada.errors import UserError
from lit_llada.text.tokenizer import Tokenizer
from tests.shared.published import VARIANTS

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = ["dense_a", "dense_gqa", "dense_tied", "moe_a", "moe_b"]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("model*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_golden_folders_load_compute_and_go_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / name, torch.float32, mask_id=156)
    golden = load_file(GOLDEN / name / "golden.safetensors")
    for case in ("c0", "c2", "c3"):
        tokens, wanted = golden[f"{case}.input_ids"], golden[f"{case}.logits_f32"]
        if name == "moe_b":  # the published code does not read norm_topk_prob: its own logits are these
            if f"{case}.logits_noren_f32" not in golden:
                continue
            wanted = golden[f"{case}.logits_noren_f32"]
        real = golden.get(f"{case}.attention_mask", torch.ones_like(tokens)).bool()
        logits = checkpoint.net(tokens, AttentionMask(padding=real))
        torch.testing.assert_close(logits[real], wanted[real], atol=3e-4, rtol=1e-5)

    checkpoint = load_checkpoint(GOLDEN / name, mask_id=156)
    size = sum(p.numel() for p in checkpoint.net.parameters())
    assert size == checkpoint.net.config.parameter_count() == sum(t.numel() for t in stored(GOLDEN / name).values())
    target = export_checkpoint(checkpoint, tmp_path / "out", max_shard_size="100KB")
    ours, theirs = stored(target), stored(GOLDEN / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key
    assert json.loads((target / "config.json").read_text()) == json.loads((GOLDEN / name / "config.json").read_text())
    again = load_checkpoint(target, mask_id=156)
    for key, tensor in checkpoint.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[key], tensor), key
    assert replace(again, net=None, files={}) == replace(checkpoint, net=None, files={})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_net_survives_the_round_trip(options: dict[str, Any], dtype, net, published) -> None:
    original = net(dtype, **options)
    folder = published(original, max_shard_size=20_000)
    assert len(list(folder.path.glob("model-*-of-*.safetensors"))) > 1
    index = json.loads((folder.path / "model.safetensors.index.json").read_text())
    size = sum(t.numel() for t in original.state_dict().values())
    assert index["metadata"]["total_size"] == size * dtype.itemsize
    assert size == original.config.parameter_count() + 4 * bool(options.get("expert_bias"))  # a buffer of one layer
    checkpoint = load_checkpoint(folder.path, causal=options.get("causal", False))
    for name, tensor in original.state_dict().items():
        assert torch.equal(checkpoint.net.state_dict()[name], tensor), name
        assert checkpoint.net.state_dict()[name].dtype == dtype
    assert (checkpoint.mask_id, checkpoint.eos_id, checkpoint.pad_id) == (3, 1, 1)
    tokens = torch.arange(12).view(2, 6)
    if dtype == torch.float32:
        assert torch.equal(checkpoint.net(tokens), original(tokens))


def test_the_tokenizer_and_all_text_files_travel(net, published, tmp_path: Path) -> None:
    folder = published(net(vocab_size=300)).set(mask_token_id=257, eos_token_id=256)
    Tokenizer.byte().save(folder.path)
    config = json.loads((folder.path / "tokenizer_config.json").read_text())
    (folder.path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    (folder.path / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder.path / "README.md").write_text("as published\n")
    checkpoint = load_checkpoint(folder.path)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.encode("a") == [97]
    assert checkpoint.chat_template == "{{ messages }}" and checkpoint.generation == {"temperature": 0.5}
    assert checkpoint.forbidden == (257, *range(258, 300))
    target = export_checkpoint(checkpoint, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        assert (target / name).read_text() == (folder.path / name).read_text()
    (target / "chat_template.jinja").write_text("own file")
    assert load_checkpoint(target).chat_template == "own file"
    with pytest.raises(UserError, match="the mask at 257, the net 300 with the mask at 299; give the tokenizer"):
        load_checkpoint(folder.path, mask_id=299)


def test_fields_of_the_published_sizes() -> None:
    """Written for a net of our own, they are the published fields with the published values."""
    golden = json.loads((GOLDEN / "dense_a" / "config.json").read_text())
    fields = write_config(SIZES["8b"])[1]
    assert fields.keys() | {"eos_token_id", "mask_token_id", "pad_token_id", "transformers_version"} == golden.keys()
    assert (fields["mlp_hidden_size"], fields["embedding_size"], fields["n_kv_heads"]) == (12_288, 126_464, 32)
    golden = json.loads((GOLDEN / "moe_a" / "config.json").read_text())
    fields = write_config(SIZES["moe_7b_a1b"])[1]
    assert fields.keys() | {"eos_token_id", "pad_token_id", "torch_dtype", "transformers_version"} == golden.keys()


@pytest.mark.parametrize("options", [{"n_experts": 4, "expert_dim": 8, "renormalize_experts": True},
    {"head_dim": 16}, {"qk_norm": "head"}, {"rope_fraction": 0.5}, {"causal": True, "bias": True}])  # fmt: skip
def test_what_a_format_cannot_say_is_not_written(options: dict[str, Any], net, published, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone\.\w+ is .*cannot say"):
        published(net(**options))
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(net, published, tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_llada.checkpoint.published.write.save_file", full)
    with pytest.raises(OSError, match="No space"):
        published(net())
    assert not (tmp_path / "published").exists()
    monkeypatch.undo()
    published(net())
    with pytest.raises(UserError, match="published exists; remove it or give another name"):
        published(net())
    assert [p.name for p in tmp_path.iterdir()] == ["published"]
