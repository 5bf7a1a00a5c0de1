"""What does a checkpoint say besides its weights, and which one is refused?"""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import lightning as L

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from lit_llada.training.lora import LoRA


class Saving(L.LightningModule):
    """Keeps the architecture in every checkpoint, and hyper-parameters so plain that it loads with ``weights_only``."""

    backbone: BackboneConfig
    mask_id: int | None
    net: Backbone | None
    keep_ema: bool
    restored: bool
    skipped_steps: int
    init_from: str | None
    start_digest: str | None
    lora: LoRA | None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["backbone"] = asdict(self.backbone)
        checkpoint["mask_id"], checkpoint["skipped_steps"] = self.mask_id, self.skipped_steps
        checkpoint["start_digest"] = self.start_digest
        checkpoint["lora"] = asdict(self.lora) if self.lora else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        self.skipped_steps = checkpoint["skipped_steps"]
        start = checkpoint.get("start_digest")
        if self.start_digest not in (None, start):  # it has just been read again, to be the reference
            raise UserError(f"model.init_from {self.init_from} does not hold the weights that this run started from")
        self.start_digest = start
        if self.net is None:  # load_from_checkpoint: no trainer has built it
            self.backbone, self.mask_id = BackboneConfig(**checkpoint["backbone"]), checkpoint["mask_id"]
            self.keep_ema = any(key.startswith("ema.") for key in checkpoint["state_dict"])
            self.restored = True
            self.configure_model()

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, or with other adapters.

        Raises:
            UserError: names the fields that differ.
        """
        saved, saved_lora = checkpoint.get("backbone"), checkpoint.get("lora")
        if saved is None:
            raise UserError("this checkpoint was not written by lit_llada: it does not say what its backbone is")
        mine = saved if self.backbone is None else asdict(self.backbone)
        mine["vocab_size"] = mine["vocab_size"] or saved["vocab_size"]
        differ = [f"{key} {saved.get(key)} (now {mine[key]})" for key in mine if saved.get(key) != mine[key]]
        if differ:
            raise UserError(f"the checkpoint's backbone differs in {', '.join(differ)}; use its model overlay")
        lora = asdict(self.lora) if self.lora else None
        if (saved_lora and {"base": "float32", **saved_lora}) != lora:  # older checkpoints do not say it
            raise UserError(f"the checkpoint's model.lora is {saved_lora} (now {lora}); leave it as it was")

    def _plain_hyperparameters(self) -> None:
        """Keep hyper-parameters plain, so that every checkpoint loads with ``weights_only``."""
        if "_instantiator" in self.hparams:
            return
        plain = {
            key: asdict(value) if hasattr(value, "__dataclass_fields__") else value
            for key, value in self.hparams.items()
        }
        plain |= {
            "_class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
        }
        self._hparams.clear()
        self._hparams.update(plain)
        self._hparams_initial = copy.deepcopy(self._hparams)
