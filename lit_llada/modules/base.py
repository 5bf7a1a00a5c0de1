"""What every way of training shares: the options, the optimiser, and the step around the loss.

A training step returns a *sum* over tokens. Gradients of sums are added up over accumulation steps and processes, and
divided once, by the number of tokens that all of them counted: exact, whatever the lengths of the rows.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.moe import balance_loss, z_loss
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from lit_llada.metrics.means import Means
from lit_llada.modules.net import Building
from lit_llada.seeding import seed_of_run
from lit_llada.training.gradients import clip_, global_norm, local_gradients
from lit_llada.training.lora import LoRA
from lit_llada.training.optimizers import OptimizerName, make_optimizer
from lit_llada.training.schedules import Schedule


class StepOutput(TypedDict):
    """What a step leaves for the callbacks. B batch, T tokens, R masked tokens, E experts."""

    loss: Tensor  # a sum; with its graph in training
    count: Tensor  # what the sum is to be divided by, once counted over all processes and micro-batches
    tokens: Tensor  # how many tokens might have been masked
    nll: Tensor  # [R] nats
    t: Tensor  # [R] noise level that each was masked at
    p_mask: Tensor  # [R] its probability of being masked
    masked: Tensor  # [B, T]
    router_logits: Tensor | None  # [sparse layers, B*T, E]


class DiffusionModule(Building):
    """A masked diffusion language model in training.

    Args:
        backbone: the architecture; its vocabulary may be left to the data, and all of it to ``init_from``.
        init_from: checkpoint whose weights the run starts from: a run's, a published folder, a name on the hub.
        lora: train adapters on top of ``init_from`` instead of its weights (needs peft); None trains the weights.
        lr: peak learning rate.
        weight_decay: decoupled, on matrices.
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
        seed: of the noise; None for the run's (``seed_everything``).
        mask_id: the mask token; None takes the data's.
    """

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
        self._plain_hyperparameters()
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
        # Lightning says so only when the net is there; who knows before spares it to be filled from init_from.
        self.resumes_from: str | Path | None = None
        self.keep_ema = False  # the EMA callback's wish, known before the net is built
        self.stop_requested = False  # by a signal, in any process; all stop together after the step
        self.skipped_steps = 0

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
        """Add to a sum that is logged as ``train/name``, divided by the step's count, which one of the names brings."""
        self._sums[name] = self._sums.get(name, 0.0) + total.double()
        if count is not None:
            self._sums["count"] = self._sums.get("count", 0.0) + count.double()

    def on_train_start(self) -> None:
        self._start_sums()

    def _start_sums(self) -> None:
        self._sums: dict[str, Any] = {}  # name -> float64 scalar, of this process and this optimizer step
        self._keys: list[Tensor] = []

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient by the tokens of all processes and micro-batches, and set this step's options.

        The options are the configuration's, also after a resume: what the checkpoint remembers of them is overwritten.
        """
        lr = self.lr * self.schedule.factor(self.global_step, self.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.weight_decay if group["weight_decay"] else 0.0
            if "betas" in group:
                group["betas"] = tuple(self.betas)
        stop = torch.full((1,), float(self.stop_requested), dtype=torch.float64, device=self.device)
        sums = torch.stack([*self._sums.values()])
        totals = self.trainer.strategy.reduce(torch.cat((sums, stop)), reduce_op="sum")
        self._totals = dict(zip([*self._sums, "stop"], totals, strict=True))
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
        rows = torch.cat(self._keys).tolist()
        what = f"loss or gradient is not finite at step {self.global_step} (rows {rows[0]}..{rows[-1]} on this process)"
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


class NonFiniteStep(UserError):
    """The run met a loss or gradient that is NaN or inf; the weights are those before that step."""
