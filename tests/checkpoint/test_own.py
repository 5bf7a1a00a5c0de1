"""Checkpoints of our own runs: one file or shards, averaged or not, with the tokenizer of their data; ``convert``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch.distributed.device_mesh import init_device_mesh

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.provenance import Provenance
from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.checkpoint.load import load_checkpoint, load_into, load_net
from lit_llada.checkpoint.own import write_run
from lit_llada.cli.main import main
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.text.tokenizer import Tokenizer
from lit_llada.training.sharding import shard
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer

GOLDEN = Path(__file__).parents[1] / "golden"
SPARSE = BackboneConfig(
    d_model=32, n_layers=2, n_heads=4, ff_dim=48, n_experts=4, expert_dim=16, qk_norm="head", dense_layers=[0]
)


def train(rank: int, folder: Path, data: Path, world: int) -> dict[str, Any]:
    """Three steps; the weights as the run itself sees them in the end."""
    L.seed_everything(1)
    module = PretrainingModule(SPARSE, lr=1e-2, random_length=0.0)
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=FSDP2Strategy() if world > 1 else "auto", max_steps=3,
        precision="32-true", logger=False, num_sanity_val_steps=0, limit_val_batches=0, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[EMA(0.5), Provenance(), StepCheckpoint(3)],
    )  # fmt: skip
    trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=32, batch_size=4))
    kinds = {"net": module.net, "ema": module.ema}
    whole = {kind: {n: getattr(t, "full_tensor", lambda t=t: t)() for n, t in net.state_dict().items()}
             for kind, net in kinds.items()}  # fmt: skip
    return {kind: {name: tensor.detach().numpy() for name, tensor in state.items()} for kind, state in whole.items()}


def weights_equal(net: Backbone, expected: dict[str, Any]) -> bool:
    state = net.state_dict()
    return state.keys() == expected.keys() and all((state[n].numpy() == t).all() for n, t in expected.items())


@pytest.mark.parametrize("world", [1, 2], ids=["file", "shards"])
def test_a_run_loads_with_its_tokenizer_and_exports(forked: Any, prepared: Path, tmp_path: Path, world: int) -> None:
    trained = forked(lambda rank: train(rank, tmp_path, prepared, world), world)[0]
    path = checkpoints(tmp_path / "checkpoints")[-1]
    assert path.is_dir() == (world == 2)
    checkpoint = load_checkpoint(path)
    tokenizer = Tokenizer.load(prepared / "tokenizer")
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.digest == tokenizer.digest
    assert (checkpoint.mask_id, checkpoint.eos_id) == (tokenizer.mask_id, tokenizer.eos_id)
    assert weights_equal(checkpoint.net, trained["ema"]) and weights_equal(
        load_checkpoint(path, ema=True).net, trained["ema"]
    )
    assert weights_equal(load_checkpoint(path, ema=False).net, trained["net"])
    assert not weights_equal(checkpoint.net, trained["net"])

    target = tmp_path / "exported"
    assert main(["convert", "export", str(path), str(target), "--ema", "false", "--max_shard_size", "20KB"]) == 0
    exported = load_checkpoint(target)
    assert weights_equal(exported.net, trained["net"]) and exported.tokenizer is not None
    assert exported.tokenizer.digest == tokenizer.digest and exported.net.config.dense_layers == [0]
    card = (target / "README.md").read_text()
    for said in (f"{exported.net.config.parameter_count():,} parameters", "LLaDAMoEModelLM", "## Training", "train: "):
        assert said in card
    assert json.loads((target / "config.json").read_text())["mask_token_id"] == tokenizer.mask_id


def test_where_a_run_keeps_its_tokenizer(net, tmp_path: Path, monkeypatch, prepared: Path) -> None:
    path = tmp_path / "work" / "runs" / "a" / "checkpoints" / "step=0000001.ckpt"
    write_run(net(vocab_size=258), 257, {}, path)
    saved = torch.load(path, weights_only=True)
    del saved["published"]
    torch.save(saved, path)
    assert load_checkpoint(path).tokenizer is None and load_checkpoint(path).eos_id is None
    assert load_checkpoint(path, tokenizer=str(prepared / "tokenizer")).eos_id == 256
    shutil.copytree(prepared / "tokenizer", tmp_path / "work" / "data" / "x" / "tokenizer")
    for given in ("data/x", ["data/x", "data/y"], {"data/x": 0.5}):  # as the command said it, in the run's own words
        (path.parents[1] / "config.yaml").write_text(yaml.safe_dump({"data": {"path": given}}))
        assert load_checkpoint(path).eos_id == 256  # from anywhere
    (path.parents[1] / "config.yaml").write_text(yaml.safe_dump({"data": {"path": "s3://bucket/x"}}))
    assert load_checkpoint(path).tokenizer is None
    Tokenizer.load(prepared / "tokenizer").save(path.parent)
    assert load_checkpoint(path).eos_id == 256  # beside the file
    card = {"data": [{"tokenizer": {"digest": "another"}}]}
    (path.parents[1] / "run_card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="was trained with another tokenizer than the one found"):
        load_checkpoint(path)


def test_files_that_are_no_checkpoints(net, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_run(net(), 3, {}, path)
    for ema, line in ((True, "holds no averaged weights"), (None, None)):
        if line:
            with pytest.raises(UserError, match=line):
                load_checkpoint(path, ema=ema)
    with pytest.raises(UserError, match="a published folder has no averaged weights"):
        load_checkpoint(GOLDEN / "dense_a", ema=True)
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"state_dict": {k: v for k, v in saved["state_dict"].items() if "head" not in k}}, path)
    with pytest.raises(UserError, match=r"tensor net\.head\.weight is missing"):
        load_checkpoint(path)
    saved["state_dict"]["net.norm.weight"][4] = float("nan")
    torch.save(saved, path)
    with pytest.raises(UserError, match=r"net\.norm\.weight holds nan"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="was not written by lit_llada"):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"x\.ckpt cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_net_that_exists_is_filled_if_it_is_the_same_net(net) -> None:
    config = load_net(GOLDEN / "dense_gqa").config
    with torch.device("meta"):
        empty = Backbone(config)
    load_into(empty, GOLDEN / "dense_gqa")
    assert torch.equal(empty.embed.weight, load_net(GOLDEN / "dense_gqa", torch.float32).embed.weight)
    with pytest.raises(UserError, match=r"the checkpoint's backbone differs in vocab_size 160 \(now 40\), d_model 64"):
        load_into(net(), GOLDEN / "dense_gqa")


def sharded_logits(rank: int, names: list[str]) -> list[Any]:
    """Nets sharded on the meta device, filled from disk, each rank with its part."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    results = []
    for name in names:
        with torch.device("meta"):
            net = Backbone(load_net(GOLDEN / name).config)
        shard(net, mesh, mixed=False)
        load_into(net, GOLDEN / name)
        assert net.embed.weight.to_local().numel() < net.embed.weight.numel()
        with torch.no_grad():
            results.append(net(torch.arange(20)[None]).numpy())
    return results


def test_two_ranks_read_their_shards_from_a_published_folder(forked: Any) -> None:
    names = ["dense_gqa", "dense_tied", "moe_a"]
    first, second = forked(sharded_logits, 2, names)
    for name, mine, others in zip(names, first, second, strict=True):
        with torch.no_grad():
            whole = load_net(GOLDEN / name, torch.float32)(torch.arange(20)[None]).numpy()
        assert (mine == whole).all() and (others == whole).all(), name
