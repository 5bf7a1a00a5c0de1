"""Writes and reads what the reference says of every pair: then the policy is the only net in memory."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_llada.data.batch import AnswerBatch
from lit_llada.errors import UserError
from lit_llada.files import replacing

SPLITS = ("train", "val")


class CachedReference:
    """Sums of log p over the masks of each record; the masks come from the same keys.

    Args:
        path: path of the file, for messages.
        tables: split -> ``[N, n, 2]``, NaN where nothing was asked.
    """

    def __init__(self, path: str, tables: dict[str, Tensor]) -> None:
        self.path, self.tables = path, tables

    @classmethod
    def open(cls, path: str, module: Any) -> CachedReference:
        """Read a file and hold it against the run of a VRPOModule.

        Raises:
            UserError: no such file, or one of other data, another seed, estimator or starting checkpoint.
        """
        if not Path(path).is_file():
            raise UserError(f"model.reference {path}: no such file; make it with lit-llada reference")
        try:
            with safe_open(path, "pt") as file:
                written = json.loads((file.metadata() or {})["identity"])
                tables = {split: file.get_tensor(split) for split in SPLITS}
        except (SafetensorError, KeyError, ValueError):
            raise UserError(f"model.reference {path} was not written by lit-llada reference, or is cut off") from None
        mine = identity(module)
        if differ := [name for name in mine if written.get(name) != mine[name]]:
            raise UserError(f"model.reference {path} was made with other {', '.join(differ)}; make it again")
        return cls(path, tables)

    def sums(self, batch: AnswerBatch, split: str) -> Tensor:
        """``[n, 2P]``, in the order of the batch.

        Raises:
            UserError: it does not have all of them.
        """
        if split not in self.tables:
            raise UserError(
                f"model.reference {self.path} holds no {split} records: give --model.reference null, so that the"
                " reference itself is asked"
            )
        records = batch.records.view(2, -1)[0].cpu()
        found = self.tables[split][records]  # [P, n, 2]
        if found.isnan().any():
            raise UserError(
                f"model.reference {self.path} lacks {split} records (another data.val_rows?); make it again"
            )
        return found.permute(1, 2, 0).flatten(1).to(batch.tokens.device)


class ReferenceWriter(L.Callback):
    """Collects what the module predicts of every pair, from all processes, and writes it when all is done.

    Args:
        path: path of the file; it appears when it is whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.identity = identity(pl_module)
        data, shape = trainer.datamodule, (pl_module.estimator.draws, 2)  # type: ignore[attr-defined]
        records = {split: sum(map(len, data.rows[split])) for split in SPLITS}
        self.sums = {split: torch.zeros(count, *shape, dtype=torch.float64) for split, count in records.items()}
        self.times = {split: torch.zeros(count, dtype=torch.float64) for split, count in records.items()}

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        split, self.dtype = SPLITS[dataloader_idx], outputs.dtype
        real = (batch.lengths > 0).view(2, -1)[0].cpu()
        records = batch.records.view(2, -1)[0].cpu()[real]
        found = outputs.view(len(outputs), 2, -1).permute(2, 0, 1).double().cpu()[real]  # [P, n, 2]
        new = self.times[split][records] == 0  # the first time counts: it is what a first epoch will ask
        self.sums[split][records[new]], self.times[split][records[new]] = found[new], 1.0

    def on_predict_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        tables = {}
        for split in SPLITS:
            # A pair that several processes met has one value up to rounding; where one met it, that very value.
            total, times = (
                trainer.strategy.reduce(part[split].to(pl_module.device), reduce_op="sum").cpu()
                for part in (self.sums, self.times)
            )
            tables[split] = (total / times[:, None, None]).to(self.dtype)
        if trainer.is_global_zero:
            write_reference(self.path, tables, self.identity)


def identity(module: Any) -> dict[str, Any]:
    """What the sums of a VRPOModule's reference depend on, by the name that a message gives it.

    Raises:
        UserError: they would also depend on who else is in the batch.
    """
    data = module.trainer.datamodule
    if data.eos == "batch":
        raise UserError(
            "data.eos is batch: how long an answer is then depends on its batch, and nothing said of it can be kept;"
            " set data.eos to one (as in LLaDA 1.5) or block"
        )
    return {
        "data": [folder.digest for folder in data.folders],
        "data.eos": [data.eos, data.block_length] if data.eos == "block" else [data.eos],
        "seed": module.seed,
        "estimator": asdict(module.estimator),
        "mask_id": module.mask_id,
        "precision": str(module.trainer.precision),
        "checkpoint": module.start_digest,
    }


def write_reference(path: Path, tables: dict[str, Tensor], identity: dict[str, Any]) -> None:
    """Write the tables, and what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {split: table.contiguous() for split, table in tables.items()}
    with replacing(path) as part:
        save_file(whole, part, {"identity": json.dumps(identity)})
