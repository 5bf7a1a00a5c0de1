"""Adapters: step 0 is the net beneath, only they move, sharded or not, and a checkpoint of them is a plain net."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lit_llada.backbone.adapters import is_adapter
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.checkpoint.digest import weight_digest
from lit_llada.checkpoint.load import load_checkpoint, load_into, load_net
from lit_llada.checkpoint.own import write_run
from lit_llada.cli.main import main
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.training.lora import LoRA, adapters_off, add_adapters, init_adapters
from lit_llada.training.schedules import Schedule
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer
from tests.modules.test_vrpo import CPU, batch_of, built, gradient

pytest.importorskip("peft", reason="adapters are peft's: pip install 'lit_llada[lora]'")

DENSE = BackboneConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=4, ff_dim=64)
SPARSE = BackboneConfig(
    vocab_size=258, d_model=32, n_layers=2, n_heads=4, n_experts=4, expert_dim=32, shared_expert_dim=16, bias=True,
    ff_dim=64, dense_layers=[0], qk_norm="head",
)  # fmt: skip
WIDE = BackboneConfig(vocab_size=16_384, d_model=256, n_layers=2, n_heads=4, ff_dim=512)  # 39 MB
LORA = LoRA(rank=4, alpha=8)
HALF = LoRA(rank=4, alpha=8, base="bfloat16")
TWICE = Estimator(times=2)
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
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            self.first, self.surprise = module.net(TOKENS).float().numpy(), surprise(module.net)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if "train/loss" in trainer.callback_metrics:  # not before the first step, of two micro-batches
            self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def fit(
    _rank: int, base: str, data: Path, folder: Path, strategy: str = "auto", steps: int = STEPS,
    make: Any = SFTModule, precision: Any = "32-true", **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train adapters; go on if the folder has a checkpoint."""
    L.seed_everything(1)
    options = {"lora": LORA, "lr": 2e-2, "schedule": Schedule(warmup_steps=0), **options}
    found = checkpoints(folder / "checkpoints")
    module, diary, world = make(init_from=base, **options), Diary(), 1 if strategy == "auto" else 2
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy={"fsdp2": FSDP2Strategy()}.get(strategy, strategy), max_steps=steps,
        accumulate_grad_batches=2 // world, gradient_clip_val=0.3, precision=precision, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        default_root_dir=folder, callbacks=[EMA(0.5), StepCheckpoint(3), diary],
    )  # fmt: skip
    loader = AnswerDataModule(str(data), length=64, batch_size=4, eos="one")
    trainer.fit(module, datamodule=loader, ckpt_path=str(found[-1]) if found else None)
    trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert not getattr(module, "_twin", None), "a second net"
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        return {
            "losses": diary.losses,
            "learnt": diary.surprise - surprise(module.net),
            "first": diary.first,
            "net": module.net(TOKENS).float().numpy(),
            "ema": module.ema(TOKENS).float().numpy(),
            "trained": len(trained),
            "digests": [weight_digest(net) for net in (module.net, module.ema)],
            "adapters": {n: float(p.full_tensor().norm() if hasattr(p, "full_tensor") else p.norm())
                         for n, p in module.net.named_parameters() if is_adapter(n)},
        }  # fmt: skip


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "moe"])
def test_only_adapters_move_and_their_checkpoint_is_a_plain_net(forked, chats, tmp_path, config) -> None:
    base = start(config, tmp_path / "base.ckpt")
    [run] = forked(fit, 1, base, chats, tmp_path)
    beneath = load_net(base)
    assert (run["first"] == beneath(TOKENS).detach().numpy()).all(), "step 0 is not the checkpoint"
    assert run["learnt"] > 0.2  # 0 at step 0; how much it is depends on what torch draws for the net beneath
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


@pytest.mark.parametrize("make", [SFTModule, partial(VRPOModule, estimator=TWICE)], ids=["sft", "vrpo"])
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
    [run] = forked(partial(fit, make=VRPOModule, estimator=TWICE, steps=1, sft_weight=0.0), 1, base, pairs, tmp_path)
    assert run["losses"][1] == pytest.approx(0.693147, rel=1e-5), "at step 0 policy and reference are one"
    assert set(run["digests"]) == {weight_digest(load_net(base))}


@pytest.mark.parametrize("moved", [0.0, 0.05])
@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "moe"])
def test_vrpo_steps_as_with_a_second_net(pairs, tmp_path, config, moved) -> None:
    base, batch, steps = start(config, tmp_path / "base.ckpt"), batch_of(pairs), []
    for second in [], [load_net(base, torch.float64)]:
        module = built(Path(base), moved=moved, estimator=Estimator(3), lora=LORA)
        assert not module._twin
        module._twin = second
        for _ in range(2):  # the second step has other adapters than the first
            module._start_sums()
            module.training_step(batch, 0)["loss"].backward()
            steps.append([*gradient(module), *module._step.sums.values()])
            with torch.no_grad():
                for p in module.trained.parameters():
                    p.sub_(0 if p.grad is None else 0.01 * p.grad)
    for one, two in zip(steps[:2], steps[2:], strict=True):
        assert len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert float(module._step.sums["kl_proxy"].abs()) > 0, "policy and reference are one"


@pytest.fixture
def memory_of_building(monkeypatch: pytest.MonkeyPatch) -> Callable[[DiffusionModule], int]:
    """Bytes at the worst moment. The profiler also counts the mapped file of the start, which takes none."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the benchmarks are not installed
    from benchmarks.timing import peak_memory

    return lambda module: peak_memory(module.configure_model) - Path(module.init_from).stat().st_size


def test_vrpo_with_adapters_has_one_net_in_memory(tmp_path, memory_of_building) -> None:
    base, held = start(WIDE, tmp_path / "base.ckpt"), {}
    for name, lora in {"plain": None, "lora": LORA}.items():
        module = VRPOModule(init_from=base, mask_id=257, lora=lora)
        module._trainer = SimpleNamespace(predicting=False, datamodule=None, strategy=CPU)
        module.setup("fit")
        held[name] = memory_of_building(module) / (4 * WIDE.parameter_count())
    assert 1.0 < held["lora"] < 1.1 and held["plain"] >= 2.0, held


def move_adapters(net: Backbone) -> None:
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_adapter(name):
                p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def test_adapters_are_switched_off_in_compiled_and_checkpointed_blocks() -> None:
    plain, net = Backbone(DENSE), Backbone(DENSE)
    net.load_state_dict(plain.state_dict())
    add_adapters(net, LORA)
    move_adapters(net)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    alone, beneath = net(TOKENS).detach(), plain(TOKENS).detach()
    assert float((alone - beneath).abs().max()) > 0.1
    for block in net.blocks:
        block.compile(backend="eager")
    net.checkpointing = True
    for _ in range(2):
        with adapters_off(net):
            assert torch.equal(net(TOKENS), beneath)
        logits = net(TOKENS)
        assert torch.equal(logits, alone)
        logits.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is not None] == trained
    with pytest.raises(ZeroDivisionError), adapters_off(net):
        raise ZeroDivisionError
    assert torch.equal(net(TOKENS), alone), "an error left them off"


# ---- the base in bfloat16


def built_on(base: str, lora: LoRA) -> Backbone:
    with torch.device("meta"):
        net = Backbone(load_net(base).config)
    add_adapters(net, lora)
    load_into(net, base)
    init_adapters(net, 1)
    return net


def test_a_base_in_bfloat16_takes_half_the_memory(tmp_path, memory_of_building) -> None:
    base, held = start(WIDE, tmp_path / "base.ckpt"), {}
    for kind in ("float32", "bfloat16"):
        module = SFTModule(init_from=base, mask_id=257, lora=LoRA(rank=1, base=kind))
        module._trainer = SimpleNamespace(precision="bf16-mixed", strategy=CPU, datamodule=None)
        module.setup("fit")
        held[kind] = memory_of_building(module)
    assert held["float32"] > 4 * WIDE.parameter_count()
    assert held["bfloat16"] < 0.53 * held["float32"], held  # with adapters, norms and what reading takes


def test_only_frozen_matrices_are_rounded(tmp_path) -> None:
    base = start(SPARSE, tmp_path / "base.ckpt")
    full, net = built_on(base, LORA), built_on(base, HALF)
    for (name, mine), theirs in zip(net.named_parameters(), full.parameters(), strict=True):
        rounded = mine.ndim > 1 and not is_adapter(name)
        assert mine.dtype == (torch.bfloat16 if rounded else torch.float32), name
        assert torch.equal(theirs.to(mine.dtype), mine)
    move_adapters(net), move_adapters(full)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(full(TOKENS), net(TOKENS))
        full.embed.weight.copy_(net.embed.weight)  # all the others are rounded in products anyway
        assert torch.equal(full(TOKENS), net(TOKENS))
        assert net.hidden(TOKENS)[0].dtype == torch.float32


def half(*args: Any, **options: Any) -> dict[str, Any]:
    return fit(*args, **{"lora": HALF, "precision": "bf16-mixed", **options})


def test_fifty_steps_on_a_base_in_bfloat16(forked, chats, tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    ask = {"steps": 50, "lr": 5e-3}  # four times as much, and the two runs part: so would any other rounding
    runs = [forked(partial(half, lora=lora, **ask), 1, base, chats, tmp_path / lora.base)[0] for lora in (LORA, HALF)]
    full, mine = ([*run["losses"].values()] for run in runs)
    assert len(full) == 50 and min(run["learnt"] for run in runs) > 1
    assert mine == pytest.approx(full, rel=0.01) and mine != full


@pytest.mark.parametrize(
    ("strategy", "make"), [("auto", SFTModule), *((s, partial(VRPOModule, estimator=TWICE)) for s in ("ddp", "fsdp2"))]
)
def test_a_base_in_bfloat16_stays_and_resumes(forked, chats, pairs, tmp_path, strategy, make) -> None:
    world, base = 1 if strategy == "auto" else 2, start(DENSE, tmp_path / "base.ckpt")
    data = chats if make is SFTModule else pairs
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = forked(partial(half, strategy=strategy, make=make), world, base, data, whole)[0]
    assert set(run["digests"]) == {weight_digest(built_on(base, HALF))} and run["learnt"] > 0.2
    forked(partial(half, strategy=strategy, make=make, steps=3), world, base, data, parts)
    rest = forked(partial(half, strategy=strategy, make=make), world, base, data, parts)[0]
    assert rest["losses"] == {step: loss for step, loss in run["losses"].items() if step > 3}
    for ema, kind in ((False, "net"), (True, "ema")):
        assert (rest[kind] == run[kind]).all()
        net = load_checkpoint(checkpoints(whole / "checkpoints")[-1], ema=ema).net
        assert {p.dtype for p in net.parameters()} == {torch.float32}, "the adapters would be rounded away"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mine, its = net(TOKENS).float(), torch.from_numpy(run[kind])
        assert float((mine - its).norm()) < 0.02 * float(its.norm()), "more than rounding: the adapters' part"


def test_adapters_on_a_base_in_bfloat16_are_merged_in_float32(forked, chats, tmp_path) -> None:
    base, layer = start(DENSE, tmp_path / "base.ckpt"), "blocks.1.attn.qkv"
    forked(half, 1, base, chats, tmp_path)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = torch.load(path, weights_only=True)["state_dict"]
    weight, down, up = (
        state[f"net.{layer}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default")
    )
    assert weight.dtype == torch.bfloat16 and down.dtype == up.dtype == torch.float32
    found = load_checkpoint(path, ema=False).net.state_dict()[f"{layer}.weight"]
    torch.testing.assert_close(found, weight.float() + 2 * up @ down, rtol=1e-6, atol=1e-7)
    options = ["--ema", "false", "--tokenizer", str(chats / "tokenizer"), "--dtype", "bfloat16"]
    assert main(["convert", "export", str(path), str(tmp_path / "exported"), *options]) == 0
    assert torch.equal(load_net(tmp_path / "exported").state_dict()[f"{layer}.weight"], found.bfloat16())


def test_where_a_base_in_bfloat16_cannot_multiply(tmp_path) -> None:
    module = SFTModule(init_from=start(DENSE, tmp_path / "base.ckpt"), mask_id=257, lora=HALF)
    refusals = {
        r"model.lora.base bfloat16 .* trainer.precision 32-true: set trainer.precision to bf16-mixed": (
            "32-true",
            None,
        ),
        r"trainer.precision 16-mixed": ("16-mixed", None),
        r"model.lora.base bfloat16: FSDP1 .*; use FSDP2": ("bf16-mixed", FSDPStrategy()),
    }
    for message, (precision, strategy) in refusals.items():
        module._trainer = SimpleNamespace(precision=precision, strategy=strategy, datamodule=None)
        with pytest.raises(UserError, match=message):
            module.setup("fit")
    for precision in ("bf16-mixed", "bf16-true"):
        module._trainer = SimpleNamespace(precision=precision, strategy=None, datamodule=None)
        module.setup("fit")


def test_a_checkpoint_that_does_not_say_its_base(tmp_path) -> None:
    base = start(DENSE, tmp_path / "base.ckpt")
    checkpoint = {"backbone": vars(DENSE), "lora": {"rank": 4, "alpha": 8, "targets": None}}
    SFTModule(DENSE, init_from=base, lora=LORA).check_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"model.lora is \{'rank': 4.* \(now .*'base': 'bfloat16'\}\)"):
        SFTModule(DENSE, init_from=base, lora=HALF).check_checkpoint(checkpoint)


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
