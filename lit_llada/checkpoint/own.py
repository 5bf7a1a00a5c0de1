"""Reads and writes checkpoints of this kit: Lightning's single file, or the folder of shards of FSDP2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from lit_llada.backbone.adapters import merged
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.source import META, TOKENIZER_FILES, Source, copy_checked, read_files, read_json
from lit_llada.errors import UserError
from lit_llada.files import replacing


def open_run(path: Path, ema: bool | None = None, mask_id: int | None = None) -> Source:
    """A checkpoint that a run of this kit wrote, or :func:`write_run`; adapters become part of the matrices.

    Args:
        path: the ``.ckpt`` file, or the folder of shards.
        ema: the averaged weights (True), the trained ones (False), or the averaged ones if there are any (None): what
            the run itself validates and samples with.
        mask_id: the mask token; None takes the run's.

    Raises:
        UserError: not such a checkpoint, or one without the weights that were asked for.
    """
    sharded = path.is_dir()
    try:
        saved = torch.load(path / META if sharded else path, map_location="cpu", mmap=not sharded, weights_only=True)
    except Exception as error:  # what a cut-off file raises depends on where it ends
        raise UserError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(saved, dict) or "backbone" not in saved:
        raise UserError(f"{path} was not written by lit_llada: it does not say what its backbone is")
    names = _sharded_names(path) if sharded else list(saved["state_dict"])
    averaged = any(name.startswith("ema.") for name in names)
    if ema and not averaged:
        raise UserError(f"{path} holds no averaged weights (ema.enabled was false); take the trained ones")
    prefix = "ema." if averaged and ema is not False else "net."
    state = _sharded_weights(path, prefix) if sharded else saved["state_dict"]
    lora = saved.get("lora")
    scale = lora["alpha"] / lora["rank"] if lora else 0.0

    def write(name: str, target: Tensor) -> None:
        try:
            tensor = merged(state, prefix + name, scale)
        except KeyError as missing:
            raise UserError(f"{path}: tensor {missing.args[0]} is missing") from None
        copy_checked(target, tensor, f"{path}: {prefix + name}")

    files, card = saved.get("published"), _run_card(path)
    digest = None
    if files is None:
        files = next((read_files(folder, TOKENIZER_FILES) for folder in _tokenizer_folders(path, card)), {})
        digest = next((data["tokenizer"]["digest"] for data in card.get("data", []) if data.get("tokenizer")), None)
    dtype = reduce(torch.promote_types, (t.dtype for name, t in state.items() if name.startswith(prefix)))
    mask_id = saved["mask_id"] if mask_id is None else mask_id
    return Source(path, BackboneConfig(**saved["backbone"]), dtype, write, files, mask_id, digest, card)


def write_run(
    net: Backbone, mask_id: int | None, files: dict[str, str], path: Path, class_path: str | None = None
) -> None:
    """Write a single file that ``load_checkpoint`` reads and that ``fit --model.init_from`` starts from.

    Args:
        net: the net whose weights are written.
        mask_id: id of its mask token.
        files: the text files of the published folder, kept inside for the way back.
        path: the file.
        class_path: the module that ``load_from_checkpoint`` makes of it.
    """
    backbone = asdict(net.config)
    instantiator = "lightning.pytorch.cli.instantiate_module"
    module = {} if class_path is None else {"_class_path": class_path, "_instantiator": instantiator}
    checkpoint = {
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
        "hyper_parameters": {"backbone": backbone, "mask_id": mask_id, **module},
        "backbone": backbone,
        "mask_id": mask_id,
        "published": files,
        "skipped_steps": 0,
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        torch.save(checkpoint, part)


def _sharded_names(path: Path) -> list[str]:
    try:
        names = FileSystemReader(path).read_metadata().state_dict_metadata
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not a complete folder of shards: {error}") from None
    return [name.removeprefix("state_dict.") for name in names]


def _sharded_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights alone: optimiser states, twice their size, stay on the disk."""
    wanted = {name for name in _sharded_names(path) if name.startswith(prefix)}
    found: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys={f"state_dict.{name}" for name in wanted})
    try:
        _load_state_dict(found, storage_reader=FileSystemReader(path), planner=planner, no_dist=True)
    except Exception as error:
        raise UserError(f"{path}: a shard is missing or damaged: {str(error).splitlines()[0]}") from None
    return found["state_dict"]


def _run_dir(path: Path) -> Path:
    """A run keeps ``config.yaml`` and ``run_card.json`` one above its ``checkpoints``."""
    parent = path.absolute().parent
    return parent.parent if parent.name == "checkpoints" else parent


def _run_card(path: Path) -> dict[str, Any]:
    file = _run_dir(path) / "run_card.json"
    return read_json(file.read_text(), file) if file.is_file() else {}


def _tokenizer_folders(path: Path, card: dict[str, Any]) -> Iterator[Path]:
    """Where the run's tokenizer may be: beside the checkpoint, in the run, or in the data that it names."""
    run = _run_dir(path)
    names = card.get("config", {}).get("data", {}).get("path")
    if (run / "config.yaml").is_file():
        options = yaml.safe_load((run / "config.yaml").read_text())
        names = (options.get("data") or {}).get("path", names)
    first = names if isinstance(names, str) else next(iter(names or ()), None)
    folders = [path.absolute().parent, run]
    if first and not re.match(r"\w+:", first):
        # Written from where the run was started, which is here or somewhere above the run.
        folders += [Path(first), *(above / first for above in run.parents)]
    for folder in folders:
        yield from (place for place in (folder, folder / "tokenizer") if (place / "tokenizer.json").is_file())
