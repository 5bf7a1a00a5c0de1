"""A checkpoint is found here or on the hub, and its special ids come from whoever names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lit_llada
from lit_llada.checkpoint.load import fetch_checkpoint, load_checkpoint
from lit_llada.checkpoint.published.write import byte_size, export_checkpoint
from lit_llada.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_special_ids_come_from_the_configuration() -> None:
    checkpoint = load_checkpoint(GOLDEN / "dense_gqa")
    assert (checkpoint.mask_id, checkpoint.eos_id, checkpoint.pad_id, checkpoint.eot_id) == (156, 150, 150, None)
    assert checkpoint.forbidden == (156,) and not checkpoint.net.training and checkpoint.tokenizer is None
    assert load_checkpoint(GOLDEN / "dense_gqa", mask_id=9).mask_id == 9
    with pytest.raises(UserError, match="moe_a does not say which token is the mask; give mask_id"):
        load_checkpoint(GOLDEN / "moe_a")
    with pytest.raises(UserError, match=r"mask_id 160 lies outside the vocabulary 0\.\.159"):
        load_checkpoint(GOLDEN / "moe_a", mask_id=160)


def test_published_ids_stand_in_where_the_published_configuration_has_none(net, published) -> None:
    sparse = net(vocab_size=156_896, d_model=2, n_heads=1, n_layers=1, ff_dim=2, n_experts=2, expert_dim=2)
    folder = published(sparse).drop("mask_token_id", "eos_token_id", "pad_token_id")
    checkpoint = load_checkpoint(folder.path)
    assert (checkpoint.mask_id, checkpoint.eos_id, checkpoint.pad_id) == (156_895, 156_892, 156_892)
    dense = published(net(vocab_size=126_464, d_model=2, n_heads=1, n_layers=1, ff_dim=2), "dense")
    assert load_checkpoint(dense.path).eot_id == 126_348


def test_sizes_and_places(tmp_path: Path, monkeypatch) -> None:
    assert [byte_size(s) for s in ("5GB", "2 MiB", 7, "1.5kb")] == [5 * 10**9, 2**21, 7, 1500]
    for wrong in ("5 apples", "0", "-1"):
        with pytest.raises(UserError, match="give bytes, or a size like"):
            byte_size(wrong)
    with pytest.raises(UserError, match="gone/deep/down: no such file or folder"):
        fetch_checkpoint("gone/deep/down")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path / name[:3]))
    assert fetch_checkpoint("org/name") == tmp_path / "org"
    assert lit_llada.load_checkpoint is load_checkpoint and lit_llada.export_checkpoint is export_checkpoint


def test_without_a_network_the_hub_is_one_line(monkeypatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"org/name: no such local folder.*Name or service not known.*local folder with"
    ):
        fetch_checkpoint("org/name")
