"""Killed at any step and started again, a run is bit for bit the run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.callbacks.ema import EMA
from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.checkpoint.shards import consolidate
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.modules.base import NonFiniteStep
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training.schedules import Schedule
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer

BACKBONE = BackboneConfig(d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32)
STEPS = 24


class Diary(L.Callback):
    """Writes down every step as it happens; dies, or asks for an end, at a given one."""

    def __init__(self, file: Path, kill_at: int = -1, signal_number: int = signal.SIGKILL) -> None:
        self.file, self.kill_at, self.signal = file, kill_at, signal_number

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), self.signal)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        entry = {
            "step": trainer.global_step,
            "loss": float(trainer.callback_metrics["train/loss"]),
            "lr": float(trainer.callback_metrics["lr"]),
            "keys": batch.keys.tolist(),
            "tokens": int(batch.tokens.sum()),
        }
        with self.file.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def run(rank: int, folder: Path, data: Path, **options: Any) -> dict[str, Any]:
    """The same command, every time: goes on from the newest checkpoint if there is one."""
    o = {"world": 1, "workers": 0, "steps": STEPS, "kill_at": -1, "signal": signal.SIGKILL, "lr": 1e-2, **options}
    L.seed_everything(1)
    newest = checkpoints(folder / "checkpoints")
    module = PretrainingModule(
        o.get("backbone", BACKBONE), lr=o["lr"], schedule=Schedule(warmup_steps=2, decay=0.5), random_length=0.3
    )
    if "spoil" in o:
        spoil(module, o["spoil"])
    module.nonfinite = o.get("nonfinite", "stop")
    trainer = Trainer(
        accelerator="cpu", devices=o["world"], strategy=FSDP2Strategy() if o["world"] > 1 else "auto",
        max_steps=o["steps"], gradient_clip_val=1.0, precision="32-true", logger=False, num_sanity_val_steps=0,
        val_check_interval=10, check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[
            EMA(0.9), StepCheckpoint(every_n_steps=5),
            Diary(folder / f"{o.get('diary', 'diary')}-{rank}.jsonl", o["kill_at"], o["signal"]),
        ],
    )  # fmt: skip
    trainer.fit(
        module,
        datamodule=DiffusionDataModule(str(data), length=32, batch_size=4, val_rows=8, num_workers=o["workers"]),
        ckpt_path=newest[-1] if newest else None,
    )
    ema = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.ema.parameters()]
    return {"step": trainer.global_step, "ema": float(sum(p.double().abs().sum() for p in ema))}


def spoil(module: PretrainingModule, step: int) -> None:
    """Make the loss of one step NaN."""
    plain = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        output = plain(batch, batch_idx)
        if module.global_step == step:
            output["loss"] = output["loss"] * float("nan")
        return output

    module.training_step = training_step


def diary(folder: Path, rank: int = 0, name: str = "diary") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("world", "workers", "kill_at"), [(1, 0, 13), (1, 2, 16), (2, 0, 8)])
def test_killed_and_resumed_equals_uninterrupted(
    forked: Any, killed: Any, prepared: Path, tmp_path: Path, world: int, workers: int, kill_at: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    options = {"world": world, "workers": workers}
    reference = forked(lambda rank: run(rank, whole, prepared, **options), world)
    killed(lambda rank: run(rank, broken, prepared, **options, kill_at=kill_at), world)
    resumed = forked(lambda rank: run(rank, broken, prepared, **options, diary="resumed"), world)
    assert resumed == reference, "averaged weights differ"
    for rank in range(world):
        before, after = diary(broken, rank), diary(broken, rank, "resumed")
        first = after[0]["step"]
        assert before[-1]["step"] == kill_at and first == kill_at // 5 * 5 + 1
        assert before[: first - 1] + after == diary(whole, rank)


def test_resumed_on_one_rank_after_two_no_row_is_lost_or_seen_twice(
    forked: Any, prepared: Path, tmp_path: Path
) -> None:
    forked(lambda rank: run(rank, tmp_path, prepared, world=2, steps=10), 2)
    forked(lambda rank: run(rank, tmp_path, prepared, steps=30, diary="one"), 1)
    keys = [key for rank in (0, 1) for entry in diary(tmp_path, rank) for key in entry["keys"]]
    keys += [key for entry in diary(tmp_path, 0, "one") for key in entry["keys"]]
    assert sorted(keys) == list(range(10 * 8 + 20 * 4))


def test_shards_become_one_file_that_every_strategy_goes_on_from(forked: Any, prepared: Path, tmp_path: Path) -> None:
    sharded, plain, again = (tmp_path / name for name in ("sharded", "plain", "again"))
    for folder in (sharded, plain / "checkpoints", again / "checkpoints"):
        folder.mkdir(parents=True)
    forked(lambda rank: run(rank, sharded, prepared, world=2, steps=5), 2)
    shards = checkpoints(sharded / "checkpoints")[-1]
    assert shards.is_dir()
    for folder in (plain, again):
        consolidate(shards, folder / "checkpoints" / shards.name)
    forked(lambda rank: run(rank, sharded, prepared, world=2, steps=10), 2)
    forked(lambda rank: run(rank, again, prepared, world=2, steps=10), 2)
    assert checkpoints(again / "checkpoints")[-1].is_dir(), "sharded again at its next save"
    assert diary(again) == diary(sharded)[5:]
    forked(lambda rank: run(rank, plain, prepared, steps=10), 1)
    assert [entry["step"] for entry in diary(plain)] == list(range(6, 11))
    with pytest.raises(UserError, match="exists"):
        consolidate(shards, plain / "checkpoints" / shards.name)
    with pytest.raises(UserError, match="not a sharded checkpoint folder"):
        consolidate(plain, tmp_path / "x.ckpt")


def test_the_learning_rate_of_the_command_line_counts_at_resume(forked: Any, prepared: Path, tmp_path: Path) -> None:
    forked(lambda rank: run(rank, tmp_path, prepared, steps=5), 1)
    forked(lambda rank: run(rank, tmp_path, prepared, steps=10, lr=3e-3, diary="changed"), 1)
    assert diary(tmp_path, 0, "changed")[0]["lr"] == pytest.approx(3e-3)


def test_sigterm_saves_and_the_same_command_goes_on(forked: Any, prepared: Path, tmp_path: Path) -> None:
    [stopped] = forked(lambda rank: run(rank, tmp_path, prepared, kill_at=7, signal=signal.SIGTERM), 1)
    assert stopped["step"] == 8
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step=0000005.ckpt", "step=0000008.ckpt"]
    [resumed] = forked(lambda rank: run(rank, tmp_path, prepared, diary="resumed"), 1)
    assert resumed["step"] == STEPS
    steps = [entry["step"] for entry in diary(tmp_path) + diary(tmp_path, 0, "resumed")]
    assert steps == list(range(1, STEPS + 1))


def test_sigterm_to_one_of_two_ranks_stops_both(forked: Any, prepared: Path, tmp_path: Path) -> None:
    def one_is_told(rank: int) -> dict[str, Any]:
        return run(rank, tmp_path, prepared, world=2, kill_at=7 if rank else -1, signal=signal.SIGTERM)

    assert [result["step"] for result in forked(one_is_told, 2)] == [8, 8]


def test_nan_stops_the_run_with_a_checkpoint_and_names_step_and_rows(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteStep, match=r"not finite at step 6 \(rows 24\.\.27 .*before-nonfinite-step=0000006"):
        run(0, tmp_path, prepared, spoil=6)
    saved = torch.load(tmp_path / "checkpoints/before-nonfinite-step=0000006.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_nan_can_be_skipped_and_is_counted(prepared: Path, tmp_path: Path) -> None:
    run(0, tmp_path, prepared, spoil=6, nonfinite="skip", steps=10)
    saved = torch.load(checkpoints(tmp_path / "checkpoints")[-1], weights_only=True)
    assert saved["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpoint_of_another_architecture_is_refused(
    forked: Any, prepared: Path, tmp_path: Path, world: int
) -> None:
    other = BackboneConfig(d_model=48, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32)

    def refused(rank: int) -> str:
        try:
            run(rank, tmp_path, prepared, world=world, backbone=other, steps=10)
        except UserError as error:
            return str(error)
        return "accepted"

    forked(lambda rank: run(rank, tmp_path, prepared, world=world, steps=5), world)
    assert all("d_model 32 (now 48)" in message for message in forked(refused, world))


def test_a_full_disk_leaves_the_previous_checkpoint_usable(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = L.Trainer.save_checkpoint

    def full(self: L.Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
        save(self, path, *args, **kwargs)
        if self.global_step == 10:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])  # what had been written when space ran out
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(0, tmp_path, prepared)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step=0000005.ckpt"]
    assert run(0, tmp_path, prepared, diary="resumed")["step"] == STEPS
    assert diary(tmp_path, 0, "resumed")[0]["step"] == 6
    assert not list((tmp_path / "checkpoints").glob("*.part"))
