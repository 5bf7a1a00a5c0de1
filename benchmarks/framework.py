"""What do Lightning, the data pipeline and the callbacks cost, against a bare loop over the same step?

Inside one run: after every step of the Trainer, a twin net takes the same step on the same batch in a bare loop, so
both are timed side by side. Validation, samples and checkpoints are work of their own and are left out on both sides.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.timing import Comparison, arguments, now, summarise, table, verdict
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks import NoiseCurve, Provenance, RouterLoad, SampleLogger, Throughput
from lit_llada.data.batch import Batch
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.objectives.noise import mask_tokens, sample_times
from lit_llada.prepare.documents import prepare_text
from lit_llada.training.optimizers import make_optimizer
from lit_llada.training.sharding import compile_blocks
from lit_llada.training.trainer import Trainer

NET = BackboneConfig(d_model=256, n_layers=6, n_heads=4, ff_dim=768)
LENGTH, BATCH, BAR = 256, 16, 1.05
WARMUP = 5  # pairs


class BareLoop(L.Callback):
    """Takes the Trainer's steps again, bare, and keeps the times of both.

    Args:
        group: so many steps of the Trainer, then as many bare ones; a GPU is waited for in between only.
    """

    def __init__(self, group: int = 1) -> None:
        self.group = group
        self.batches: list[Batch] = []
        self.pairs: list[tuple[float, float]] = []  # seconds of a step

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        with torch.device("meta"):  # its weights are about to come
            self.net = Backbone(module.backbone).train()
        self.net.to_empty(device=module.device)
        self.net.residual = module.net.residual
        if module.net.fused:
            compile_blocks(self.net)
        self.net.load_state_dict(module.net.state_dict())
        self.optimizer = make_optimizer(self.net, "adamw", module.lr, module.weight_decay, (0.9, 0.95))
        self.mark = now(module.device)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        if len(self.batches) < self.group:
            return
        trained = now(module.device)
        for kept in self.batches:
            self.take_step(trainer, module, kept)
        done = now(module.device)
        self.pairs.append(((done - trained) / self.group, (trained - self.mark) / self.group))
        self.batches.clear()
        self.mark = now(module.device)

    def take_step(self, trainer: L.Trainer, module: Any, batch: Batch) -> None:
        with trainer.precision_plugin.forward_context():
            t = sample_times(batch.keys, module.seed)
            noisy, masked, p = mask_tokens(batch.tokens, batch.maskable, t, batch.keys, module.mask_token, module.seed)
            positions = masked.flatten().nonzero().squeeze(1)
            weights = bound_weights(positions, p, batch.tokens.shape[1])
            total, _, _ = self.net.weighted_nll(noisy, batch.tokens, positions, weights)
            loss = total / batch.tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def side_by_side(
    net: BackboneConfig,
    length: int,
    batch: int,
    pairs: int,
    accelerator: str = "cpu",
    group: int = 1,
    warmup: int = WARMUP,
    inputs: Sequence[Path] = (),
) -> tuple[Comparison, str]:
    """Times of a bare step (fast) and of the Trainer's (slow), and the Trainer's precision.

    Args:
        net: the architecture.
        length: of a row.
        batch: rows.
        pairs: that are timed, after ``warmup`` others.
        accelerator: the Trainer's.
        group: steps of one side of a pair.
        warmup: pairs.
        inputs: files and folders of text; none for the embedded prose.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bare = BareLoop(group)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_text([*map(str, inputs)], corpus="prose", out=str(Path(folder) / "text"))
        trainer = Trainer(
            max_steps=(warmup + pairs) * group,
            max_epochs=-1,
            accelerator=accelerator,
            devices=1,
            gradient_clip_val=1.0,
            limit_val_batches=0,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            callbacks=[NoiseCurve(), RouterLoad(), SampleLogger(10**9, free=0, prompts=[], infills=[]), Throughput(),
                       Provenance(), bare],
        )  # fmt: skip
        module = PretrainingModule(net, random_length=0.0)
        trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=length, batch_size=batch))
    return summarise(bare.pairs[warmup:]), str(trainer.precision)


def main() -> None:
    args = arguments(__doc__)
    pairs = 10 if args.quick else 60
    result, precision = side_by_side(NET, LENGTH, BATCH, pairs)
    columns = ["", "bare s", "Trainer s", "ratio", "quartiles", "bar"]
    name = f"d 256, 6 layers, 16 x 256, {precision}"
    times = [f"{result.fast:.3f}", f"{result.slow:.3f}", f"{result.ratio:.3f}", f"{result.low:.3f}-{result.high:.3f}"]
    row = [name, *times, verdict(result.ratio, BAR, at_most=True)]
    table(f"Lightning, data and callbacks: {pairs} steps side by side", columns, [row])


if __name__ == "__main__":
    main()
