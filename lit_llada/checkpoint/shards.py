"""Turns a folder of shards into one file, which loads under every strategy; FSDP2 shards it again at its next save."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from lit_llada.checkpoint.source import META
from lit_llada.errors import UserError
from lit_llada.files import replacing


def read_sharded(folder: str | Path) -> dict[str, Any]:
    """A whole checkpoint, in memory, from a folder of shards.

    Raises:
        UserError: the folder is not a complete sharded checkpoint.
    """
    if not (Path(folder) / META).is_file():
        raise UserError(f"{folder}: not a sharded checkpoint folder (no {META})")
    checkpoint = _load_distributed_checkpoint(Path(folder))
    names = sorted((key for key in checkpoint if re.fullmatch(r"optimizer_\d+", key)), key=lambda name: int(name[10:]))
    if names:
        checkpoint["optimizer_states"] = [checkpoint.pop(name) for name in names]
    return checkpoint


def consolidate(source: str | Path, target: str | Path) -> None:
    """Write the sharded checkpoint folder ``source`` as the single file ``target``.

    Raises:
        UserError: the folder is not a complete sharded checkpoint, or the target exists.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"{target} exists; remove it or give another name")
    checkpoint = read_sharded(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        torch.save(checkpoint, part)


class AnyCheckpointIO(TorchCheckpointIO):
    """Lightning's single-file checkpoints, which also reads a folder of shards: a sharded run goes on on one device."""

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_sharded(path) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)
