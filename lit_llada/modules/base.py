"""The base class of every way of training: the options, the net, the optimiser's step and the checkpoint.

A training step returns a *sum* over tokens. Gradients of sums are added up over accumulation steps and processes, and
divided once, by the number of tokens that all of them counted: exact, whatever the lengths of the rows.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.moe import balance_loss, z_loss
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.digest import weight_digest
from lit_llada.errors import UserError
from lit_llada.metrics.means import Means
from lit_llada.modules.compatibility import check_base, check_checkpoint, check_kind, check_residual, check_start
from lit_llada.modules.hyperparameters import keep_plain
from lit_llada.modules.net import architecture, build_net, complete, copy_weights
from lit_llada.modules.step import NonFiniteStep, StepOutput, StepSums, checked
from lit_llada.seeding import seed_of_run
from lit_llada.training.gradients import clip_, global_norm, local_gradients
from lit_llada.training.lora import LoRA
from lit_llada.training.optimizers import OptimizerName, make_optimizer, set_options
from lit_llada.training.schedules import Schedule


class DiffusionModule(L.LightningModule):
    """A masked diffusion language model in training.

    A subclass writes ``training_step(batch, batch_idx)`` and ``validation_step``, and sets ``learns_from``. For each
    micro-batch its ``training_step``

    - adds its loss, a sum, and the count that divides it: ``self.sum_up(bound, count, router_logits)``, or
      ``self.add_up("loss", total, count)`` where the router losses are added elsewhere;
    - names its rows once: ``self.add_keys(batch.keys)``, so that a step that is not finite can say which they were;
    - returns a :class:`StepOutput` whose ``loss`` is a scalar with a graph, that of ``sum_up``.

    A step that leaves one of these out is refused when it first returns. ``validation_step`` returns
    ``self.validated(output)``.

    Args:
        backbone: the architecture; its vocabulary may be left to the data, and all of it to ``init_from``.
        init_from: checkpoint whose weights the run starts from: a run's, a published folder, a name on the hub.
        lora: train adapters on top of ``init_from`` instead of its weights (needs peft); None trains the weights.
        lr: peak learning rate.
        weight_decay: decoupled weight decay of matrices.
        betas: AdamW's decay rates.
        optimizer: ``adamw``, or ``muon`` for the matrices inside the blocks.
        schedule: the learning rate over the run.
        balance_weight: weight of the experts' load-balancing loss (sparse nets).
        z_weight: weight of the router's z-loss (sparse nets).
        attention: backend; ``auto`` picks by device, dtype and length.
        checkpointing: recompute each block in the backward pass: less memory, a third more work.
        compile: compile each block, and the softmax of the head; ``auto`` does so on a GPU.
        residual: dtype of the residual stream under bf16-mixed. ``bfloat16`` halves the activations that are kept, and
            rounds the sum after each block.
        nonfinite: a step whose loss or gradient is NaN or inf never touches the weights: ``stop`` the run there, with a
            checkpoint and a message, or ``skip`` the step and count it.
        seed: seed of the noise; None for the run's (``seed_everything``).
        mask_id: the mask token; None takes the data's.
    """

    learns_from: ClassVar[str] = "text"  # the kind of its data

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        init_from: str | None = None,
        lora: LoRA | None = None,
        lr: float = 4e-4,
        weight_decay: float = 0.1,
        betas: list[float] = [0.9, 0.95],  # noqa: B006  (jsonargparse shows it; nobody writes to it)
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = Schedule(),  # noqa: B008
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        attention: Backend = "auto",
        checkpointing: bool = False,
        compile: bool | Literal["auto"] = "auto",
        residual: Literal["float32", "bfloat16"] = "float32",
        nonfinite: Literal["stop", "skip"] = "stop",
        seed: int | None = None,
        mask_id: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        keep_plain(self)
        self.backbone = cast(BackboneConfig, copy.copy(backbone))  # None only until setup
        self.mask_id, self.init_from, self.lora = mask_id, init_from, lora
        if lora is not None and init_from is None:
            raise UserError("model.init_from is not set: model.lora adapts a checkpoint; give it, or leave lora out")
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.optimizer, self.schedule = optimizer, schedule
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.attention, self.checkpointing = attention, checkpointing
        self.compile_blocks, self.residual = compile, residual
        self.nonfinite, self.seed = nonfinite, seed_of_run(seed)
        self.start_digest: str | None = None  # names the weights of init_from
        self.net: Backbone | None = None
        self.ema: Backbone | None = None
        self.restored = False  # by load_from_checkpoint
        # The checkpoint that the run goes on from. Lightning tells it only when the net is built; set before setup, it
        # avoids loading init_from for nothing.
        self.resumes_from: str | Path | None = None
        self.keep_ema = False  # the EMA callback's wish, known before the net is built
        self.stop_requested = False  # by a signal, in any process; all stop together after the step
        self.skipped_steps = 0
        self._start_sums()

    def __init_subclass__(cls, **options: Any) -> None:
        """Hold the training step of every subclass to the contract above."""
        super().__init_subclass__(**options)
        if "training_step" in vars(cls):
            cls.training_step = checked(cls.training_step)  # type: ignore[method-assign]

    # ------------------------------------------------------------------ the net

    def setup(self, stage: str) -> None:
        """Take what is not set from the checkpoint and the data, or hold it against them."""
        data = getattr(self.trainer, "datamodule", None)
        check_kind(type(self).__name__, self.learns_from, data)
        check_base(self.lora, self.trainer)
        check_residual(self.residual, self.trainer)
        start = None
        if self.init_from is not None and self.net is None:
            start = architecture(self.resumes_from, self.init_from, data)
        self.backbone, self.mask_id = complete(self.backbone, self.mask_id, start, data)

    def configure_model(self) -> None:
        """Build the net (and its average); without a trainer, only when a checkpoint has said what it is."""
        if self.net is None and (self._trainer is not None or self.restored):
            begins = self.resumes_from is None and not self.restored
            self.net = self.build(self.init_from if begins else None, self.lora)
            if self.keep_ema:
                self.ema = self.build(lora=self.lora).requires_grad_(False)
                copy_weights(self.net, self.ema)

    def build(self, weights: str | None = None, lora: LoRA | None = None) -> Backbone:
        """A net with this module's options, parallelised as its trainer says.

        Args:
            weights: the checkpoint to start from; None draws fresh weights.
            lora: the adapters; None for none.
        """
        mesh = self._device_mesh
        net = build_net(
            self.backbone,
            attention=self.attention,
            residual=torch.bfloat16 if self.residual == "bfloat16" else None,
            lora=lora,
            checkpointing=self.checkpointing,
            compiled=self._compiles(),
            mesh=None if mesh is None else mesh["data_parallel"],
            mixed=mesh is not None and self.trainer.precision == "bf16-mixed",
            device=None if mesh is None else self.trainer.strategy.root_device,
            weights=weights,
        )
        if weights is not None:
            self.start_digest = weight_digest(net)
        return net

    def _compiles(self) -> bool:
        if self.compile_blocks != "auto":
            return self.compile_blocks
        return self._trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @property
    def trained(self) -> Backbone:
        """The net that the optimiser moves, once it is built."""
        assert self.net is not None, "the net is built when a trainer (or load_from_checkpoint) configures the module"
        return self.net

    @property
    def denoiser(self) -> Backbone:
        """The net that samples and is validated: the averaged weights if there are any."""
        return self.trained if self.ema is None else self.ema

    @property
    def mask_token(self) -> int:
        """``mask_id``, once it is known."""
        assert self.mask_id is not None, "mask_id is known after setup"
        return self.mask_id

    # ------------------------------------------------------------------ the step

    def sum_up(self, bound: Tensor, count: Tensor, router_logits: Tensor | None) -> Tensor:
        """The sum to be minimised: the bound, and for a sparse net its router losses, weighted by the count."""
        self.add_up("loss", bound.detach(), count)
        return bound if router_logits is None else bound + self.router_loss(router_logits, count)

    def router_loss(self, router_logits: Tensor, count: Tensor) -> Tensor:
        """``count`` times the router losses, which are means over this micro-batch and this process, as published."""
        balance, z = balance_loss(router_logits, self.backbone.experts_per_token), z_loss(router_logits)
        self.add_up("balance_loss", balance.detach() * count)
        self.add_up("z_loss", z.detach() * count)
        return count * (self.balance_weight * balance + self.z_weight * z)

    def add_up(self, name: str, total: Tensor, count: Tensor | None = None) -> None:
        """Add to a sum that is logged as ``train/name``, divided by the step's count.

        Args:
            name: name of the figure.
            total: sum over this micro-batch.
            count: what all sums of this micro-batch are divided by; given with one name, ``loss``, or it would be
                counted twice.
        """
        self._step.add(name, total, count)

    def add_keys(self, keys: Tensor) -> None:
        """Name the rows of this micro-batch, for the message about a step that is not finite."""
        self._step.keys.append(keys)

    def on_train_start(self) -> None:
        self._start_sums()

    def _start_sums(self) -> None:
        self._step = StepSums()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the tokens of all processes and micro-batches, and set this step's options.

        The options are the configuration's, also after a resume: what the checkpoint remembers of them is overwritten.
        """
        lr = self.lr * self.schedule.factor(self.global_step, self.trainer.max_steps)
        set_options(optimizer, lr, self.weight_decay, (self.betas[0], self.betas[1]))
        self._totals = self._step.over_processes(self.trainer.strategy, self.stop_requested)
        # Lightning averages over micro-batches and the strategy over processes; undo both.
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        grads = local_gradients(self.parameters())
        torch._foreach_mul_(grads, (parts / self._totals["count"]).to(grads[0].dtype))
        self.log("lr", torch.full((), lr, device=self.device))  # a float would be copied there, with a wait

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the global norm under every strategy, and keep a step that is not finite from the weights.

        It waits for the device: without that a bad step would already be in the weights. A step waits at one other
        place, at its start: the host must know how many tokens are masked.
        """
        if gradient_clip_algorithm == "value":
            raise UserError("trainer.gradient_clip_algorithm: value is not supported; clip by norm")
        sharded = self._device_mesh is not None or isinstance(self.trainer.strategy, FSDPStrategy)
        grads = local_gradients(self.parameters())
        norm = global_norm(grads, sharded)
        count, stop = self._totals.pop("count"), self._totals.pop("stop")
        means = {f"train/{name}": (total / count).float() for name, total in self._totals.items()}
        loss = means["train/loss"]
        finite, stop_requested = torch.stack(((norm + loss).isfinite().double(), stop)).tolist()
        self.stop_requested = stop_requested > 0
        if not finite:
            self._refuse_step(optimizer)
        elif gradient_clip_val:
            clip_(grads, norm, gradient_clip_val)
        self.log("train/loss", means.pop("train/loss"), prog_bar=True)
        self.log("train/grad_norm", norm.float())
        self.log_dict(means)
        self._start_sums()

    def _refuse_step(self, optimizer: Optimizer) -> None:
        what = f"loss or gradient is not finite at step {self.global_step} ({self._step.rows()})"
        optimizer.zero_grad(set_to_none=True)
        if self.nonfinite == "stop":
            raise NonFiniteStep(what)
        self.skipped_steps += 1
        self.log("train/skipped_steps", float(self.skipped_steps), prog_bar=True)

    # ------------------------------------------------------------------ validation

    @property
    def validation_names(self) -> tuple[str, ...]:
        """Names of the sums that a validation step hands to :meth:`validated`, logged as ``val/name``."""
        return ("loss",)

    def on_validation_epoch_start(self) -> None:
        # In a dict, so that it is no submodule: no row of the summary, nothing that a strategy wraps or a GPU compiles.
        self._validation = {"means": Means(self.validation_names).to(self.device)}

    def validated(self, output: StepOutput, **more: Tensor) -> StepOutput:
        """Count a validation step in, with other sums that are logged as ``val/name``, and hand it on."""
        self._validation["means"].update(output["count"], loss=output["loss"], **more)
        return output

    def on_validation_epoch_end(self) -> None:
        means = {name: mean.float() for name, mean in self._validation["means"].compute().items()}
        stage = "test" if self.trainer.testing else "val"
        self.log(f"{stage}/loss", means.pop("loss"), prog_bar=True, sync_dist=True)
        self.log_dict({f"{stage}/{name}": mean for name, mean in means.items()}, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> Optimizer:
        return make_optimizer(self.trained, self.optimizer, self.lr, self.weight_decay, (self.betas[0], self.betas[1]))

    # ------------------------------------------------------------------ the checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["backbone"] = asdict(self.backbone)
        checkpoint["mask_id"], checkpoint["skipped_steps"] = self.mask_id, self.skipped_steps
        checkpoint["start_digest"] = self.start_digest
        checkpoint["lora"] = asdict(self.lora) if self.lora else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        self.skipped_steps = checkpoint["skipped_steps"]
        start = checkpoint.get("start_digest")
        check_start(self.init_from, self.start_digest, start)
        self.start_digest = start
        if self.net is None:  # load_from_checkpoint: no trainer has built it
            self.backbone, self.mask_id = BackboneConfig(**checkpoint["backbone"]), checkpoint["mask_id"]
            self.keep_ema = any(key.startswith("ema.") for key in checkpoint["state_dict"])
            self.restored = True
            self.configure_model()

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, or with other adapters; see :func:`check_checkpoint`."""
        check_checkpoint(checkpoint, self.backbone, self.lora)
