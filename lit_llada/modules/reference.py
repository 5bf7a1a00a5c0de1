"""What the reference model says of every pair, computed once: then the policy is the only model in memory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_llada.data.packing import AnswerBatch
from lit_llada.errors import UserError

if TYPE_CHECKING:
    from lit_llada.modules.vrpo import VRPOModule


class CachedReference:
    """Sums of log p over the masks of each record, ``[N, n, 2]`` for each split; the masks come from the same keys.

    Args:
        tables: split -> table.
    """

    def __init__(self, tables: dict[str, Tensor]) -> None:
        self.tables = tables

    @classmethod
    def open(cls, path: str, module: VRPOModule) -> CachedReference:
        """Read a file and hold it against the run.

        Raises:
            UserError: no such file, or one of other data, another seed, estimator or starting checkpoint.
        """
        if not Path(path).is_file():
            raise UserError(f"model.reference {path}: no such file; make it with lit-llada reference")
        with safe_open(path, "pt") as file:
            written = json.loads((file.metadata() or {}).get("identity", "{}"))
            tables = {split: file.get_tensor(split) for split in file.keys()}  # noqa: SIM118  (not a dict)
        mine = identity(module)
        if differ := [name for name in mine if written.get(name) != mine[name]]:
            raise UserError(f"model.reference {path} was made with other {', '.join(differ)}; make it again")
        return cls(tables)

    def sums(self, batch: AnswerBatch, split: str) -> Tensor:
        """``[n, 2P]``, in the order of the batch."""
        pairs = len(batch.rows) // 2
        found = self.tables[split][batch.rows[:pairs].cpu()]  # [P, n, 2]
        return found.permute(1, 2, 0).flatten(1).to(batch.tokens.device)


def identity(module: VRPOModule) -> dict[str, Any]:
    """What the sums depend on, by name."""
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    return {
        "data": [folder.digest for folder in data.folders],
        "seed": module.seed,
        "estimator": asdict(module.estimator),
        "checkpoint": module.start_digest,
    }


def write_reference(path: str | Path, tables: dict[str, Tensor], identity: dict[str, Any]) -> None:
    """Write the tables, and what they depend on."""
    part = f"{path}.part"
    save_file({split: table.contiguous() for split, table in tables.items()}, part, {"identity": json.dumps(identity)})
    os.replace(part, path)
