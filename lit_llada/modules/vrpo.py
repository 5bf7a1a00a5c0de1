"""VRPO: preference optimisation on ELBO estimates with little variance (LLaDA 1.5, 2505.19223)."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.batch import AnswerBatch
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule, StepOutput
from lit_llada.modules.cached_reference import SPLITS, CachedReference
from lit_llada.modules.predict import Predicted, locate, pair_output, pairs_of, predict, sum_over_answers
from lit_llada.objectives.coupling import draw_pairs
from lit_llada.objectives.preference import (
    Draws,
    Estimator,
    Role,
    estimate,
    preference_loss,
    score,
    score_variance,
)
from lit_llada.objectives.two_pass import two_pass
from lit_llada.training.lora import LoRA, adapters_off
from lit_llada.training.optimizers import OptimizerName
from lit_llada.training.schedules import Schedule

# What is logged of the pairs beside the loss; with several draws also the variance of the scores.
JUDGED = (
    "score",
    "accuracy",
    "chosen_elbo",
    "rejected_elbo",
    "chosen_gain",
    "rejected_gain",
    "kl_proxy",
    "sft_loss",
)


class Reference(NamedTuple):
    """What the reference says of a batch: the masks it saw, and sums of log p over them, ``[n, 2P]``."""

    draws: Draws
    sums: Tensor


class VRPOModule(DiffusionModule):
    """Preference optimisation of a masked diffusion language model, against the model it starts from.

    Args:
        estimator: which masks the ELBOs are estimated from; the default is the paper's.
        beta: strength of the tie to the reference.
        kind: ``dpo`` or ``ipo``.
        sft_weight: weight of the SFT loss of the chosen answers (estimated from the same masks).
        noise: ``fresh`` masks whenever a pair is met, or those of the ``record``, the same in every epoch.
        reference: file of ``lit-llada reference``: what the reference says of every pair, so that only one model is in
            memory; implies ``noise: record``. None asks a frozen twin at every step, or with ``lora`` the policy's own
            net without its adapters.

    Raises:
        UserError: no ``init_from``; before the first step, a reference that does not fit.
    """

    learns_from: ClassVar[str] = "preference"

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
        *,
        estimator: Estimator = Estimator(),  # noqa: B008  (frozen)
        beta: float = 0.2,
        kind: Literal["dpo", "ipo"] = "dpo",
        sft_weight: float = 0.05,
        noise: Literal["fresh", "record"] = "fresh",
        reference: str | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            init_from=init_from,
            lora=lora,
            lr=lr,
            weight_decay=weight_decay,
            betas=betas,
            optimizer=optimizer,
            schedule=schedule,
            balance_weight=balance_weight,
            z_weight=z_weight,
            attention=attention,
            checkpointing=checkpointing,
            compile=compile,
            residual=residual,
            nonfinite=nonfinite,
            seed=seed,
            mask_id=mask_id,
        )
        if self.init_from is None:
            raise UserError("model.init_from is not set: VRPO starts from a fine-tuned checkpoint and is tied to it")
        self.estimator, self.beta, self.kind, self.sft_weight = estimator, beta, kind, sft_weight
        self.noise, self.reference = noise if reference is None else "record", reference
        # Not submodules: the reference is in no checkpoint, and no optimiser sees it.
        self._twin: list[Backbone] = []
        self._cache: CachedReference | None = None

    def configure_model(self) -> None:
        super().configure_model()
        # Three cases need no twin. Without a trainer the module does not train. `lit-llada reference` asks the policy
        # before its first step, which is the reference. With adapters the frozen weights beneath them are it.
        needed = self._trainer is not None and not self.trainer.predicting and self.lora is None
        if needed and self.reference is None and not self._twin:
            self._twin = [self.build(self.init_from).requires_grad_(False).eval()]

    def on_train_start(self) -> None:
        super().on_train_start()
        if str(self.trainer.precision).startswith("16"):
            raise UserError("trainer.precision 16-mixed scales losses, which two passes cannot follow; use bf16-mixed")
        self._ready_reference()

    def on_validation_start(self) -> None:
        self._ready_reference()

    on_test_start = on_validation_start

    def on_predict_start(self) -> None:
        self.noise = "record"

    def _ready_reference(self) -> None:
        if self._twin and self._device_mesh is None:
            self._twin[0].to(self.device)  # Lightning moves only what is part of the module
        if self.reference is not None and self._cache is None:
            self._cache = CachedReference.open(self.reference, self)

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        """Masks, the reference, two passes of the policy; the last draw's gradient is left to Lightning."""
        if not self._step.keys:  # the first micro-batch of a step
            self.zero_grad(set_to_none=True)
        draws, count = self.draw(batch, "train"), pairs_of(batch).sum()
        places = locate(batch, draws.masked)
        reference = self._ask_reference(batch, "train")
        found: Predicted  # of the draw that was asked last

        def log_likelihood(number: int) -> tuple[Tensor, Tensor | None]:
            nonlocal found
            found = predict(self.trained, batch, places[number], self.mask_token)
            return sum_over_answers(found, len(batch.keys)), self._router_share(found, count)

        def weighted(number: int, slopes: Tensor) -> Tensor:
            nonlocal found
            found = predict(self.trained, batch, places[number], self.mask_token, -slopes)
            assert found.loss is not None  # weights were given
            extra = self._router_share(found, count)
            return found.loss if extra is None else found.loss + extra

        def loss(sums: Tensor) -> Tensor:
            return self.judge(draws, sums, reference, batch)["loss"]

        parts = self.trainer.accumulate_grad_batches
        rest, sums = two_pass(log_likelihood, self.estimator.draws, loss, parts, weighted)
        for name, total in self.judge(draws, sums, reference, batch).items():
            self.add_up(name, total, count if name == "loss" else None)
        self.add_keys(batch.keys)
        return pair_output(rest, count, batch, found)

    def _router_share(self, found: Predicted, count: Tensor) -> Tensor | None:
        """The router losses of one draw among n; None without a graph and in a dense net."""
        if found.router_logits is None or not torch.is_grad_enabled():
            return None
        return self.router_loss(found.router_logits, count / self.estimator.draws)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning would do it between training_step, which makes most of the gradient, and the rest."""

    @property
    def validation_names(self) -> tuple[str, ...]:
        return ("loss", *JUDGED) if self.estimator.draws == 1 else ("loss", *JUDGED, "score_variance")

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        return self._validate(batch, "val")

    def test_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        return self._validate(batch, "test")

    def _validate(self, batch: AnswerBatch, split: str) -> StepOutput:
        draws, reference = self.draw(batch, split), self._ask_reference(batch, split)
        sums, found = self._ask(self.denoiser, batch, draws)
        totals = self.judge(draws, sums, reference, batch)
        return self.validated(pair_output(totals.pop("loss"), pairs_of(batch).sum(), batch, found), **totals)

    def predict_step(self, batch: AnswerBatch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """What the reference, which the policy still is, says of a batch: ``[n, 2P]``."""
        return self._ask(self.trained, batch, self.draw(batch, SPLITS[dataloader_idx], role="reference"))[0]

    def draw(self, batch: AnswerBatch, split: str, role: Role = "policy") -> Draws:
        """The masks of a batch, for the policy or the reference."""
        keys = (batch.records if self.noise == "record" else batch.keys).view(2, -1)[0]
        seed = self.seed + (split != "train")
        return draw_pairs(batch.tokens, batch.answers, keys, seed, self.estimator, role)

    def _ask_reference(self, batch: AnswerBatch, split: str) -> Reference:
        draws = self.draw(batch, split, role="reference")
        if self._cache is not None:
            return Reference(draws, self._cache.sums(batch, split))
        net = self._twin[0] if self._twin else self.trained
        with adapters_off(net):
            return Reference(draws, self._ask(net, batch, draws)[0])

    def _ask(self, net: Backbone, batch: AnswerBatch, draws: Draws) -> tuple[Tensor, Predicted]:
        """``[n, 2P]`` sums of log p over the masked tokens of each draw, and all that was said in the last one."""
        sums = []
        for place in locate(batch, draws.masked):
            found = predict(net, batch, place, self.mask_token)
            sums.append(sum_over_answers(found, len(batch.keys)))
        return torch.stack(sums), found

    def judge(self, draws: Draws, sums: Tensor, reference: Reference, batch: AnswerBatch) -> dict[str, Tensor]:
        """The loss (with the chosen answers' SFT loss, ``-B / L``) and what TensorBoard shows, summed over pairs."""
        policy, tied = estimate(draws, sums).view(2, -1), estimate(*reference).view(2, -1)
        scores = score(policy, tied, self.beta)
        sft = -policy[0] / batch.lengths.clamp(min=1).view(2, -1)[0]
        values = {
            "loss": preference_loss(scores, self.beta, self.kind) + self.sft_weight * sft,
            "score": scores,
            "accuracy": (scores > 0).to(scores.dtype),
            "chosen_elbo": policy[0],
            "rejected_elbo": policy[1],
            "chosen_gain": policy[0] - tied[0],
            "rejected_gain": policy[1] - tied[1],
            "kl_proxy": (tied - policy).mean(0),  # of the answers at hand, not of samples
            "sft_loss": sft,
        }
        if len(sums) > 1 and self.estimator.shared:
            values["score_variance"] = score_variance(draws, sums - reference.sums, self.beta)
        elif len(sums) > 1:
            own, its = (score_variance(*each, self.beta) for each in ((draws, sums), reference))
            values["score_variance"] = own + its
        real = pairs_of(batch)
        return {name: (value * real).sum() for name, value in values.items()}
