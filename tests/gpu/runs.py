"""Small runs on one device: batches from memory, so that nothing but the device and the step is tried.

``python -m tests.gpu.runs FOLDER DEVICE STEP`` trains until it kills itself before that step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from lit_llada.callbacks.step_checkpoint import StepCheckpoint, checkpoints
from lit_llada.checkpoint.own import write_run
from lit_llada.data.batch import AnswerBatch, Batch, collate
from lit_llada.data.layout import Example, to_batch
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.training.schedules import Schedule
from lit_llada.training.trainer import Trainer
from tests.gpu.nets import CONFIGS, VOCABULARY, net_of

MASK, EOS = VOCABULARY - 1, VOCABULARY - 2
STEPS = 6


def text() -> list[Batch]:
    generator = torch.Generator().manual_seed(11)
    return [
        collate(torch.arange(4 * n, 4 * n + 4), torch.randint(MASK, (4, 24), generator=generator), EOS)
        for n in range(STEPS)
    ]


def answers(sides: int = 1) -> list[AnswerBatch]:
    """Conversations, or pairs of them; prompts of 1 to 6 tokens, answers of 2 to 11."""
    random = np.random.default_rng(12)
    found = []
    for n in range(STEPS):
        samples = []
        for _ in range(3 * sides):
            begin, length = int(random.integers(1, 7)), int(random.integers(2, 12))
            samples.append(Example(random.integers(EOS, size=begin + length), np.arange(begin, begin + length)))
        keys = np.tile(np.arange(3 * n, 3 * n + 3), sides)
        found.append(to_batch(samples, keys, keys, EOS))
    return found


def module_of(kind: str, folder: Path, backbone: str = "dense", **options: Any) -> tuple[DiffusionModule, list[Any]]:
    """A module of each kind and what it learns from."""
    options = {"lr": 1e-2, "schedule": Schedule(warmup_steps=2), "mask_id": MASK, "compile": False, **options}
    if kind == "pretraining":
        return PretrainingModule(CONFIGS[backbone], **{"random_length": 0.0, **options}), text()
    if kind == "sft":
        return SFTModule(CONFIGS[backbone], **options), answers()
    return VRPOModule(init_from=start_of(folder, backbone), estimator=Estimator(3), **options), answers(sides=2)


def start_of(folder: Path, backbone: str) -> str:
    """A checkpoint to start from."""
    start = folder / f"{backbone}.ckpt"
    write_run(net_of(backbone, torch.float32, torch.device("cpu")), MASK, {}, start)
    return str(start)


class Curve(L.Callback):
    """What each step logs, read when it is over; ends the process before a given step."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append({name: float(trainer.callback_metrics[name]) for name in ("train/loss", "train/grad_norm")})


def fit(
    module: DiffusionModule, batches: list[Any], device: torch.device, *callbacks: L.Callback, **options: Any
) -> Trainer:
    """Six steps; ``options`` are the trainer's, and ``ckpt_path``."""
    start = options.pop("ckpt_path", None)
    L.seed_everything(1)
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, callbacks=list(callbacks), logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0,
        use_distributed_sampler=False,
        **{"precision": "32-true", "max_steps": STEPS, "enable_checkpointing": False, **options},
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=start)
    return trainer


def resumable(
    folder: Path, device: torch.device, kill_at: int = -1
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """The same command, every time: goes on from the newest checkpoint. The curve from there, and the weights."""
    torch.use_deterministic_algorithms(True)
    newest = checkpoints(folder / "checkpoints")
    module, batches = module_of("pretraining", folder, "moe", random_length=0.3)
    done = 2 * len(newest)
    curve, saves = Curve(kill_at), StepCheckpoint(2, keep=STEPS)
    fit(
        module, batches[done:] + batches[:done], device, curve, saves,
        default_root_dir=folder, enable_checkpointing=True, ckpt_path=newest[-1] if newest else None,
    )  # fmt: skip
    return curve.steps, [parameter.detach().cpu() for parameter in module.parameters()]


if __name__ == "__main__":
    print(json.dumps(resumable(Path(sys.argv[1]), torch.device(sys.argv[2]), int(sys.argv[3]))[0]))
