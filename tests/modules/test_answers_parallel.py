"""Fine-tuning and VRPO on one process, two under DDP, two under FSDP2, or killed and resumed: one and the same run."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.modules.cached_reference import ReferenceWriter
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.training.lora import LoRA
from lit_llada.training.schedules import Schedule
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer

STEPS = 5


class Diary(L.Callback):
    """Writes down every step as it happens, or dies before a given batch."""

    def __init__(self, file: Path, kill_at: int = -1) -> None:
        self.file, self.kill_at, self.step = file, kill_at, -1

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step and trainer.fit_loop._should_accumulate() is False:
            self.step = trainer.global_step
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
            with self.file.open("a") as file:
                file.write(json.dumps({"step": self.step, **values}) + "\n")


def diary(folder: Path, name: str = "diary") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / f"{name}-0.jsonl").read_text().splitlines()]


def run(rank: int, folder: Path, data: Path, start: Path, kind: str, **options: Any) -> dict[str, float]:
    """The same command, every time; the last validation, and how the averaged weights ended."""
    o = {"strategy": "auto", "accumulate": 1, "kill_at": -1, "save": 0, "diary": "diary", "reference": None}
    o |= {"lora": None, **options}
    world = 1 if o["strategy"] == "auto" else 2
    L.seed_everything(1)
    shared = {"init_from": str(start), "lr": 3e-3, "schedule": Schedule(warmup_steps=2), "lora": o["lora"]}
    if kind == "vrpo":
        module: Any = VRPOModule(**shared, estimator=Estimator(3), reference=o["reference"])
    else:
        module = SFTModule(**shared, complementary=True, time_sampler="stratified")
    newest = checkpoints(folder / "checkpoints") if o["save"] else []
    module.resumes_from = newest[-1] if newest else None
    callbacks = [EMA(0.9), Diary(folder / f"{o['diary']}-{rank}.jsonl", o["kill_at"])]
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=FSDP2Strategy() if o["strategy"] == "fsdp2" else o["strategy"],
        max_steps=STEPS, accumulate_grad_batches=o["accumulate"], gradient_clip_val=1.0, precision="32-true",
        logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=bool(o["save"]),
        callbacks=[*callbacks, StepCheckpoint(every_n_steps=o["save"])] if o["save"] else callbacks,
    )  # fmt: skip
    eos = "one" if kind == "vrpo" else "batch"
    trainer.fit(
        module,
        datamodule=AnswerDataModule(str(data), length=64, batch_size=4, val_rows=7, eos=eos),
        ckpt_path=module.resumes_from,
    )
    ema = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.ema.parameters()]
    values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    return values | {"ema": float(sum(p.double().abs().sum() for p in ema))}


@pytest.mark.parametrize("net", ["dense", "moe"])
@pytest.mark.parametrize("kind", ["sft", "vrpo"])
def test_ddp_fsdp2_and_accumulation_give_one_curve(
    forked: Any, tmp_path: Path, request: pytest.FixtureRequest, starts: dict[str, Path], kind: str, net: str
) -> None:
    data = request.getfixturevalue("pairs" if kind == "vrpo" else "chats")
    folders = {strategy: tmp_path / strategy for strategy in ("auto", "ddp", "fsdp2")}
    ends = {}
    for strategy, folder in folders.items():
        folder.mkdir()
        world, accumulate = (1, 2) if strategy == "auto" else (2, 1)
        options = {"strategy": strategy, "accumulate": accumulate}
        ends[strategy] = forked(partial(run, **options), world, folder, data, starts[net], kind)[0]
    one = diary(folders["auto"])
    assert len(one) == STEPS and one[-1]["train/loss"] < one[0]["train/loss"]
    assert max(step["train/grad_norm"] for step in one) > 1, "clipping was never on"
    for strategy in ("ddp", "fsdp2"):
        for mine, its in zip([*diary(folders[strategy]), ends[strategy]], [*one, ends["auto"]], strict=True):
            # Adam magnifies what rounding does to a gradient. Scores and gains are small differences of large sums.
            scale = max((abs(value) for name, value in its.items() if name.endswith("elbo")), default=0)
            for name, value in its.items():
                small = name.endswith(("gain", "score", "kl_proxy", "variance"))
                assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-4 * scale if small else 0), (strategy, name)


def killed(*args: Any, **options: Any) -> None:
    """Run until the kill."""
    process = torch.multiprocessing.get_context("fork").Process(target=run, args=(0, *args), kwargs=options)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("accumulate", "kill_at"), [(1, 3), (2, 7)])
def test_killed_and_resumed_equals_uninterrupted(
    forked: Any, tmp_path: Path, pairs: Path, starts: dict[str, Path], accumulate: int, kill_at: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    options = {"accumulate": accumulate, "save": 2}
    reference = forked(partial(run, **options), 1, whole, pairs, starts["moe"], "vrpo")
    killed(broken, pairs, starts["moe"], "vrpo", **options, kill_at=kill_at)
    resumed = forked(partial(run, **options, diary="resumed"), 1, broken, pairs, starts["moe"], "vrpo")
    before, after = diary(broken), diary(broken, "resumed")
    assert len(before) == 3 and after[0]["step"] == 3
    assert before[:2] + after == diary(whole)
    assert resumed == reference


@pytest.mark.parametrize(("kind", "lora"), [("sft", None), ("vrpo", LoRA(rank=2))])
def test_a_run_goes_on_without_what_it_started_from(
    forked: Any, tmp_path: Path, request: pytest.FixtureRequest, starts: dict[str, Path], kind: str, lora: Any
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    data = request.getfixturevalue("pairs" if kind == "vrpo" else "chats")
    whole, broken, start = tmp_path / "whole", tmp_path / "broken", tmp_path / "start.ckpt"
    whole.mkdir(), broken.mkdir()
    start.write_bytes(starts["dense"].read_bytes())
    forked(partial(run, save=2, lora=lora), 1, whole, data, start, kind)
    killed(broken, data, start, kind, save=2, lora=lora, kill_at=3)
    start.unlink()
    forked(partial(run, save=2, lora=lora, diary="resumed"), 1, broken, data, start, kind)
    assert diary(broken, "resumed") == diary(whole)[2:]
    assert kind == "sft" or diary(whole)[-1]["train/score"] != 0, "policy and reference are one"


def test_two_ranks_write_and_use_the_reference_of_one(
    forked: Any, tmp_path: Path, pairs: Path, starts: dict[str, Path]
) -> None:
    def write(rank: int, world: int) -> None:
        data = AnswerDataModule(str(pairs), length=64, batch_size=4, val_rows=7, eos="one")
        trainer = Trainer(
            accelerator="cpu", devices=world, strategy="auto" if world == 1 else FSDP2Strategy(), precision="32-true",
            logger=False, enable_progress_bar=False, callbacks=[ReferenceWriter(tmp_path / f"{world}.safetensors")],
        )  # fmt: skip
        module = VRPOModule(init_from=str(starts["dense"]), estimator=Estimator(3))
        trainer.predict(module, datamodule=data, return_predictions=False)

    for world in (1, 2):
        forked(write, world, world)
    one, two = (load_file(tmp_path / f"{world}.safetensors") for world in (1, 2))
    for split, table in one.items():
        torch.testing.assert_close(table, two[split], rtol=1e-5, atol=1e-5, equal_nan=True)
    folder = tmp_path / "run"
    folder.mkdir()
    options = {"strategy": "fsdp2", "reference": str(tmp_path / "2.safetensors")}
    forked(partial(run, **options), 2, folder, pairs, starts["dense"], "vrpo")
    assert len(diary(folder)) == STEPS
