"""What do Lightning, the data pipeline and the callbacks cost, against a bare loop over the same step?

Inside one run: after every step of the Trainer, a twin net takes the same step on the same batch in a bare loop, so
both are timed side by side. Validation, samples and checkpoints are work of their own and are left out on both sides.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.timing import arguments, summarise, table
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.callbacks import NoiseCurve, Provenance, RouterLoad, SampleLogger, Throughput
from lit_llada.data.datamodule import DiffusionDataModule
from lit_llada.data.packing import Batch
from lit_llada.data.prepare import prepare_text
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.objectives.noise import mask_tokens, sample_times
from lit_llada.training.optimizers import make_optimizer
from lit_llada.training.trainer import Trainer

NET = BackboneConfig(d_model=256, n_layers=6, n_heads=4, ff_dim=768)
LENGTH, BATCH, BAR = 256, 16, 1.05
WARMUP = 5  # steps


class BareLoop(L.Callback):
    """Takes the Trainer's step again, bare, and keeps the times of both."""

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.net = Backbone(module.backbone)
        self.net.load_state_dict(module.net.state_dict())
        self.optimizer = make_optimizer(self.net, "adamw", module.lr, module.weight_decay, (0.9, 0.95))
        self.pairs: list[tuple[float, float]] = []
        self.mark = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        trained = time.perf_counter()
        with trainer.precision_plugin.forward_context():
            t = sample_times(batch.keys, module.seed)
            noisy, masked, p = mask_tokens(batch.tokens, batch.maskable, t, batch.keys, module.mask_token, module.seed)
            rows = masked.flatten().nonzero().squeeze(1)
            total, _, _ = self.net.weighted_nll(noisy, batch.tokens, rows, bound_weights(rows, p, LENGTH))
            loss = total / batch.tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        done = time.perf_counter()
        self.pairs.append((done - trained, trained - self.mark))
        self.mark = time.perf_counter()


def main() -> None:
    args = arguments(__doc__)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bare = BareLoop()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_text(corpus="prose", out=str(Path(folder) / "prose"))
        trainer = Trainer(
            max_steps=WARMUP + (10 if args.quick else 60),
            max_epochs=-1,
            accelerator="cpu",
            gradient_clip_val=1.0,
            limit_val_batches=0,
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(folder, default_hp_metric=False),
            callbacks=[NoiseCurve(), RouterLoad(), SampleLogger(10**9, free=0, prompts=[], infills=[]), Throughput(),
                       Provenance(), bare],
        )  # fmt: skip
        module = PretrainingModule(NET, random_length=0.0)
        trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=LENGTH, batch_size=BATCH))
    result = summarise(bare.pairs[WARMUP:])
    columns = ["", "bare s", "Trainer s", "ratio", "quartiles", "bar"]
    bar = f"<= {BAR} {'yes' if result.ratio <= BAR else 'NO'}"
    name = f"d 256, 6 layers, 16 x 256, {trainer.precision}"
    times = [f"{result.fast:.3f}", f"{result.slow:.3f}", f"{result.ratio:.3f}", f"{result.low:.3f}-{result.high:.3f}"]
    row = [name, *times, bar]
    table(f"Lightning, data and callbacks: {len(bare.pairs) - WARMUP} steps side by side", columns, [row])


if __name__ == "__main__":
    main()
