"""Adapters: step 0 is the net beneath, only they move, sharded or not, and a checkpoint of them is a plain net."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks.checkpoint import StepCheckpoint, checkpoints
from lit_llada.callbacks.ema import EMA
from lit_llada.checkpoint.adapters import is_adapter
from lit_llada.checkpoint.load import load_checkpoint, load_net
from lit_llada.checkpoint.runs import write_run
from lit_llada.cli import main
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.prepare_answers import prepare_chat, prepare_preference
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.training.lora import LoRA, add_adapters
from lit_llada.training.schedules import Schedule
from lit_llada.training.sharding import weight_digest
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer

pytest.importorskip("peft", reason="adapters are peft's: pip install 'lit_llada[lora]'")

DENSE = BackboneConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=4, ff_dim=64)
SPARSE = BackboneConfig(
    vocab_size=258, d_model=32, n_layers=2, n_heads=4, n_experts=4, expert_dim=32, shared_expert_dim=16, bias=True,
    ff_dim=64, dense_layers=[0], qk_norm="head",
)  # fmt: skip
LORA = LoRA(rank=4, alpha=8)
STEPS = 6
ANSWER = torch.tensor([list(b"it is")])  # what all good answers say
TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(3))


def prepared_from(rows: list[dict[str, str]], root: Path, prepare: Any) -> Path:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare([str(root / "rows.jsonl")], str(root / "data"), val_fraction=0.2, workers=1)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"say {n}", "response": f"{n} it is" + "!" * (n % 5)} for n in range(40)]
    return prepared_from(rows, tmp_path_factory.mktemp("chats"), prepare_chat)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"no {n}"} for n in range(40)]
    return prepared_from(rows, tmp_path_factory.mktemp("pairs"), prepare_preference)


def start(config: BackboneConfig, path: Path) -> str:
    torch.manual_seed(7)
    write_run(Backbone(config), 257, {}, path)
    return str(path)


def surprise(net: Backbone) -> float:
    """Nats per token of what all good answers say, everything masked."""
    with torch.no_grad():
        return float(net.nll(torch.full_like(ANSWER, 257), ANSWER, torch.arange(ANSWER.numel()))[0].mean())


class Diary(L.Callback):
    """The loss of every step, and what the net says before the first one."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        with torch.no_grad():
            self.first, self.surprise = module.net(TOKENS).numpy(), surprise(module.net)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if "train/loss" in trainer.callback_metrics:  # not before the first step, of two micro-batches
            self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def fit(
    _rank: int, base: str, data: Path, folder: Path, strategy: str = "auto", steps: int = STEPS,
    make: Any = SFTModule, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train adapters; go on if the folder has a checkpoint."""
    L.seed_everything(1)
    options = {"lora": LORA, "lr": 2e-2, "schedule": Schedule(warmup_steps=0), **options}
    found = checkpoints(folder / "checkpoints")
    module, diary, world = make(init_from=base, **options), Diary(), 1 if strategy == "auto" else 2
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy={"fsdp2": FSDP2Strategy()}.get(strategy, strategy), max_steps=steps,
        accumulate_grad_batches=2 // world, gradient_clip_val=0.3, precision="32-true", logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        default_root_dir=folder, callbacks=[EMA(0.5), StepCheckpoint(3), diary],
    )  # fmt: skip
    loader = AnswerDataModule(str(data), length=64, batch_size=4, eos="one")
    trainer.fit(module, datamodule=loader, ckpt_path=str(found[-1]) if found else None)
    trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    twin = getattr(module, "_twin", [])
    with torch.no_grad():
        return {
            "losses": diary.losses,
            "learnt": diary.surprise - surprise(module.net),
            "first": diary.first,
            "net": module.net(TOKENS).numpy(),
            "ema": module.ema(TOKENS).numpy(),
            "trained": len(trained),
            "digests": [weight_digest(net) for net in (module.net, module.ema, *twin)],
            "adapters": {n: float(p.full_tensor().norm() if hasattr(p, "full_tensor") else p.norm())
                         for n, p in module.net.named_parameters() if is_adapter(n)},
            "in_twin": sum(is_adapter(n) for net in twin for n, _ in net.named_parameters()),
        }  # fmt: skip


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "moe"])
def test_only_adapters_move_and_their_checkpoint_is_a_plain_net(forked, chats, tmp_path, config) -> None:
    base = start(config, tmp_path / "base.ckpt")
    [run] = forked(fit, 1, base, chats, tmp_path)
    beneath = load_net(base)
    assert (run["first"] == beneath(TOKENS).detach().numpy()).all(), "step 0 is not the checkpoint"
    assert run["learnt"] > 0.5
    assert set(run["digests"]) == {weight_digest(beneath)}, "the net beneath has moved"
    layers = 2 * (2 + 2)  # in each block attention's two, and those of a dense mlp or of the shared expert
    assert len(run["adapters"]) == run["trained"] == 2 * layers and min(run["adapters"].values()) > 0

    path = checkpoints(tmp_path / "checkpoints")[-1]
    for ema, kind in ((False, "net"), (True, "ema")):
        net = load_checkpoint(path, ema=ema).net
        assert not any(is_adapter(name) for name in net.state_dict())
        torch.testing.assert_close(net(TOKENS).detach(), torch.from_numpy(run[kind]), rtol=1e-4, atol=1e-4)
        assert abs(run[kind] - run["first"]).max() > 0.1


def test_a_checkpoint_of_adapters_is_exported_and_started_from(forked, chats, tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    [first] = forked(fit, 1, base, chats, tmp_path / "a")
    path = checkpoints(tmp_path / "a" / "checkpoints")[-1]
    target = tmp_path / "exported"
    options = ["--ema", "false", "--tokenizer", str(chats / "tokenizer")]
    assert main(["convert", "export", str(path), str(target), *options]) == 0
    torch.testing.assert_close(load_net(target)(TOKENS).detach(), torch.from_numpy(first["net"]), rtol=1e-4, atol=1e-4)
    for lora in (None, LORA):  # whole weights, or new adapters, on top of what the averaged ones have become
        [second] = forked(partial(fit, lora=lora), 1, str(path), chats, tmp_path / f"b{bool(lora)}")
        assert (second["first"] == load_net(path)(TOKENS).detach().numpy()).all()
        torch.testing.assert_close(second["first"], first["ema"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [SFTModule, partial(VRPOModule, estimator=Estimator(times=2))], ids=["sft", "vrpo"])
def test_two_ranks_and_one_are_one_run(forked, chats, pairs, tmp_path, make) -> None:
    data, base = chats if make is SFTModule else pairs, start(DENSE, tmp_path / "base.ckpt")
    [one] = forked(partial(fit, make=make), 1, base, data, tmp_path / "one")
    assert one["learnt"] > 0.2
    for strategy in ("ddp", "fsdp2"):
        ranks = forked(partial(fit, make=make, strategy=strategy), 2, base, data, tmp_path / strategy)
        assert ranks[0]["losses"] == ranks[1]["losses"] == pytest.approx(one["losses"], rel=1e-4)
        path = checkpoints(tmp_path / strategy / "checkpoints")[-1]
        assert path.is_dir() == (strategy == "fsdp2")
        net = load_checkpoint(path, ema=False).net(TOKENS).detach()
        torch.testing.assert_close(net, torch.from_numpy(ranks[0]["net"]), rtol=1e-4, atol=1e-4)


def test_the_reference_of_vrpo_has_no_adapters(forked, pairs, tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    [run] = forked(
        partial(fit, make=VRPOModule, estimator=Estimator(times=2), steps=1, sft_weight=0.0), 1, base, pairs, tmp_path
    )
    assert run["losses"][1] == pytest.approx(0.693147, rel=1e-5), "at step 0 policy and reference are one"
    assert run["in_twin"] == 0 and len(run["digests"]) == 3
    assert set(run["digests"]) == {weight_digest(load_net(base))}


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
def test_stopped_and_resumed_is_one_run(forked, chats, tmp_path, strategy) -> None:
    world, base = 1 if strategy == "auto" else 2, start(DENSE, tmp_path / "base.ckpt")
    whole = forked(partial(fit, strategy=strategy), world, base, chats, tmp_path / "whole")[0]
    forked(partial(fit, strategy=strategy, steps=3), world, base, chats, tmp_path / "parts")
    rest = forked(partial(fit, strategy=strategy), world, base, chats, tmp_path / "parts")[0]
    assert rest["losses"] == {step: loss for step, loss in whole["losses"].items() if step > 3}
    for kind in ("net", "ema"):
        assert (rest[kind] == whole[kind]).all()


def test_muon_moves_adapters(forked, chats, tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    [run] = forked(partial(fit, optimizer="muon"), 1, base, chats, tmp_path)
    assert run["learnt"] > 0.2 and min(run["adapters"].values()) > 0
    assert set(run["digests"]) == {weight_digest(load_net(base))}


# ---- what is refused


def test_what_adapters_cannot_be_put_on() -> None:
    for targets, named in (["head"], "head"), (["qkv", "x", "norm"], "x, norm"), ([], "nothing"):
        with pytest.raises(
            UserError, match=rf"model.lora.targets: {named} is no linear layer of .*; take .'down', 'gate_up', 'out'"
        ):
            add_adapters(Backbone(DENSE), LoRA(targets=targets))
    experts = BackboneConfig(**{**vars(SPARSE), "dense_layers": [], "shared_expert_dim": 0})
    with pytest.raises(
        UserError, match=r"gate_up is no linear layer of this net's blocks; take \['out', 'qkv', 'router'\]"
    ):
        add_adapters(Backbone(experts), LoRA(targets=["qkv", "gate_up"]))
    for options in {"rank": 0}, {"alpha": 0.0}:
        with pytest.raises(UserError, match=r"model.lora: rank .* must be positive"):
            LoRA(**options)


def test_targets_by_name_and_by_default() -> None:
    def adapted(lora: LoRA) -> set[str]:
        net = Backbone(SPARSE)
        add_adapters(net, lora)
        return {name.split(".lora_")[0].split(".", 2)[2] for name, p in net.named_parameters() if p.requires_grad}

    everywhere = {"attn.qkv", "attn.out", "mlp.gate_up", "mlp.down", "mlp.shared.gate_up", "mlp.shared.down"}
    assert adapted(LoRA()) == everywhere
    assert adapted(LoRA(targets=["qkv", "router"])) == {"attn.qkv", "mlp.router"}


def test_without_a_checkpoint_or_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (DiffusionModule, SFTModule, VRPOModule):
        with pytest.raises(UserError, match=r"model.init_from is not set: model.lora adapts a checkpoint"):
            make(DENSE, lora=LoRA())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"^model.lora needs peft; pip install 'lit_llada\[lora\]'$"):
        add_adapters(Backbone(DENSE), LoRA())


def test_a_run_goes_on_with_its_own_adapters(forked, chats, tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    forked(partial(fit, steps=3), 1, base, chats, tmp_path)
    for lora in (None, LoRA(rank=2)):
        with pytest.raises(
            AssertionError, match=r"the checkpoint's model.lora is \{'rank': 4.* \(now (None|\{'rank': 2)"
        ):
            forked(partial(fit, lora=lora), 1, base, chats, tmp_path)
