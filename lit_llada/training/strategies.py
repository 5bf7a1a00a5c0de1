"""The FSDP2 strategy, data-parallel over all ranks, for ``trainer.strategy`` in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_llada.checkpoint.shards import META
from lit_llada.errors import UserError


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, sharding over every rank (its own default shards over none on a single node).

    Args:
        save_distributed_checkpoint: True writes a folder of shards, False one file assembled on rank 0.
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # The shards go straight into the net, so what does not fit must be refused before they are read.
        meta = Path(checkpoint_path) / META
        if meta.exists():
            self.lightning_module.check_checkpoint(torch.load(meta, map_location="cpu", weights_only=True))  # type: ignore
        elif not Path(checkpoint_path).is_file():
            raise UserError(f"checkpoint {checkpoint_path}: neither a file nor a complete sharded folder (no {META})")
        return super().load_checkpoint(checkpoint_path, weights_only)
