"""The run card: which code, data and settings made a run, in ``run_card.json`` of its directory."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_llada.callbacks.loggers import log_text
from lit_llada.files import replacing

PACKAGES = ("torch", "lightning", "litdata", "tokenizers", "lit_llada")


class Provenance(L.Callback):
    """Write the run card when training starts: resolved config, versions, data digests, git state, command, machine.

    A resumed run keeps the earlier starts in the card's ``starts``. The card also goes to TensorBoard as text.

    Args:
        filename: the card's name in the run's directory (the logger's, else ``default_root_dir``).
    """

    def __init__(self, filename: str = "run_card.json") -> None:
        self.filename = filename

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: every rank must ask
        if not trainer.is_global_zero:
            return
        path = folder / self.filename
        card = run_card(trainer, pl_module)
        card["starts"] = [*_earlier_starts(path), card.pop("start")]
        text = json.dumps(card, indent=2, default=str)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(text + "\n")
        log_text(trainer, "run_card", f"```json\n{text}\n```")


def run_card(trainer: L.Trainer, module: Any) -> dict[str, Any]:
    """All that is known of a run, as plain values; ``start`` is what differs between a run and its resumption."""
    data = getattr(trainer, "datamodule", None)
    return {
        "config": {
            "model": dict(module.hparams),
            "data": _options(data),
            "trainer": {
                "strategy": type(trainer.strategy).__name__,
                "precision": trainer.precision,
                "max_steps": trainer.max_steps,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "gradient_clip_val": trainer.gradient_clip_val,
            },
        },
        "parameters": sum(p.numel() for p in module.net.parameters()),
        "data": [_digest(manifest) for manifest in _manifests(data)],
        "start": {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": trainer.global_step,
            "resumed_from": trainer.ckpt_path,
            "command": sys.argv,
            "git": git_state(),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "device": device_name(trainer.strategy.root_device),
            "world_size": trainer.world_size,
        },
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it, for the working directory; None outside a repository."""
    try:
        commit, changes = (
            subprocess.run(["git", *args], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def device_name(device: torch.device) -> str:
    """``NVIDIA H100 80GB HBM3`` rather than ``cuda:0``; the processor's architecture for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _options(data: Any) -> dict[str, Any]:
    """The arguments that the data module was made with; those it kept under their names if it saved none."""
    names = inspect.signature(type(data).__init__).parameters
    return dict(getattr(data, "hparams", {})) or {
        n: getattr(data, n) for n in names if n in getattr(data, "__dict__", {})
    }


def _manifests(data: Any) -> list[dict[str, Any]]:
    many = getattr(data, "manifests", None)
    if isinstance(many, dict):
        return list(many.values())
    return list(many or filter(None, [getattr(data, "manifest", None)]))


def _digest(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest's hash and its short contents; two runs saw the same data if and only if the hashes are equal."""
    text = json.dumps(manifest, sort_keys=True, default=str)
    splits = manifest.get("splits", {})
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokenizer": manifest.get("tokenizer"),
        "splits": {name: {k: split.get(k) for k in ("tokens", "documents", "bytes")} for name, split in splits.items()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _earlier_starts(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text())["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
