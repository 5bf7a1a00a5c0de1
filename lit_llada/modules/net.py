"""How does a module come to its net? Out of its options, a checkpoint and the data, and never twice in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.digest import weight_digest
from lit_llada.checkpoint.load import load_into
from lit_llada.errors import UserError
from lit_llada.modules.compatibility import architecture, check_base, check_kind, check_residual
from lit_llada.modules.saving import Saving
from lit_llada.training.lora import LoRA, add_adapters, init_adapters
from lit_llada.training.sharding import compile_blocks, shard


class Building(Saving):
    """Builds the net, its average and its frozen twins, equally sharded."""

    learns_from: ClassVar[str] = "text"  # the kind of its data

    ema: Backbone | None
    attention: Backend
    checkpointing: bool
    compile_blocks: bool | Literal["auto"]
    residual: Literal["float32", "bfloat16"]
    resumes_from: str | Path | None

    def setup(self, stage: str) -> None:
        """Take what is not set from the checkpoint and the data, or hold it against them."""
        data = getattr(self.trainer, "datamodule", None)
        check_kind(self, data)
        check_base(self.lora, self.trainer)
        check_residual(self.residual, self.trainer)
        if self.init_from is not None and self.net is None:
            self._take_architecture(self.init_from, data)
        if self.backbone is None:
            raise UserError("model.backbone is not set; add a model overlay, or give model.init_from")
        if data is not None:
            size = self.backbone.vocab_size
            if size is None:
                self.backbone.vocab_size = data.vocab_size
            elif size < data.vocab_size:
                raise UserError(
                    f"backbone.vocab_size is {size}, but the data's tokenizer has {data.vocab_size} tokens; "
                    "leave vocab_size out or prepare the data with the model's tokenizer"
                )
            self.mask_id = data.mask_id if self.mask_id is None else self.mask_id
        if self.mask_id is None:
            raise UserError("model.mask_id is not set; give it, or give data whose tokenizer tells it")
        if not 0 <= self.mask_id < self.backbone.vocabulary:
            raise UserError(
                f"model.mask_id {self.mask_id} lies outside the vocabulary 0..{self.backbone.vocabulary - 1}"
            )

    def _take_architecture(self, start: str, data: Any) -> None:
        """What is not set, from the checkpoint that the run goes on from, else from the one that it starts from."""
        backbone, mask_id = architecture(self.resumes_from, start, data)
        if self.backbone is None:
            self.backbone = backbone
        elif self.backbone.vocab_size is None:
            self.backbone.vocab_size = backbone.vocab_size
        self.mask_id = mask_id if self.mask_id is None else self.mask_id

    def configure_model(self) -> None:
        """Build the net (and its average); without a trainer, only when a checkpoint has said what it is."""
        if self.net is None and (self._trainer is not None or self.restored):
            begins = self.resumes_from is None and not self.restored
            self.net = self._build(self.init_from if begins else None, self.lora)
            if self.keep_ema:
                self.ema = self.frozen_twin()

    def frozen_twin(self) -> Backbone:
        """A second, frozen, equally sharded copy of the net."""
        twin = self._build(lora=self.lora).requires_grad_(False)
        with torch.no_grad():
            for mine, its in zip(twin.parameters(), self.trained.parameters(), strict=True):
                mine.copy_(its)
        return twin

    @property
    def trained(self) -> Backbone:
        """The net that the optimiser moves, once it is built."""
        assert self.net is not None, "the net is built when a trainer (or load_from_checkpoint) configures the module"
        return self.net

    @property
    def denoiser(self) -> Backbone:
        """What samples and is validated: the averaged weights if there are any."""
        return self.trained if self.ema is None else self.ema

    @property
    def mask_token(self) -> int:
        """``mask_id``, once it is known."""
        assert self.mask_id is not None, "mask_id is known after setup"
        return self.mask_id

    def _compiles(self) -> bool:
        if self.compile_blocks != "auto":
            return self.compile_blocks
        return self._trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _build(self, weights: str | None = None, lora: LoRA | None = None) -> Backbone:
        """A net on the meta device, parallelised, and only then real: freshly drawn, or read from a checkpoint."""
        with torch.device("meta"):
            net = Backbone(self.backbone, self.attention)
        if lora is not None:
            add_adapters(net, lora)
        net.checkpointing = self.checkpointing
        net.residual = torch.bfloat16 if self.residual == "bfloat16" else None
        if self._compiles():
            compile_blocks(net)
        mesh, device = self._device_mesh, torch.device("cpu")
        if mesh is not None:
            shard(net, mesh["data_parallel"], mixed=self.trainer.precision == "bf16-mixed")
            device = self.trainer.strategy.root_device
        net.to_empty(device=device)
        if weights is None:
            net.init_weights()
        else:
            load_into(net, weights)
            self.start_digest = weight_digest(net)
        if lora is not None:
            init_adapters(net)
        return net
