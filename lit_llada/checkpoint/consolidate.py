"""A folder of shards to one file. The file loads under every strategy; FSDP2 shards it again at its next save."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from lit_llada.errors import UserError

META = "meta.pt"  # what Lightning calls the part of a sharded checkpoint that is not sharded


def consolidate(source: str | Path, target: str | Path) -> None:
    """Write the sharded checkpoint folder ``source`` as the single file ``target``.

    Raises:
        UserError: the folder is not a complete sharded checkpoint, or the target exists.
    """
    source, target = Path(source), Path(target)
    if not (source / META).is_file():
        raise UserError(f"{source}: not a sharded checkpoint folder (no {META})")
    if target.exists():
        raise UserError(f"{target} exists; remove it or give another name")
    checkpoint = _load_distributed_checkpoint(source)
    optimizers = sorted((key for key in checkpoint if re.fullmatch(r"optimizer_\d+", key)), key=lambda k: int(k[10:]))
    if optimizers:
        checkpoint["optimizer_states"] = [checkpoint.pop(key) for key in optimizers]
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, part)
    os.replace(part, target)
