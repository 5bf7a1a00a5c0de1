"""VRPO: preference optimisation on ELBO estimates with little variance (LLaDA 1.5, 2505.19223)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_llada.backbone.moe import balance_loss, z_loss
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.packing import AnswerBatch
from lit_llada.errors import UserError
from lit_llada.modules.answers import Predicted, predict
from lit_llada.modules.base import DiffusionModule, StepOutput
from lit_llada.modules.reference import CachedReference
from lit_llada.objectives.preference import (
    Draws,
    Estimator,
    answer_keys,
    draw_masks,
    estimate,
    preference_loss,
    score,
    score_variance,
    two_pass,
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
            memory; implies ``noise: record``. None asks a frozen twin at every step.
        **options: of :class:`DiffusionModule`; ``init_from`` is also the reference.

    Raises:
        UserError: no ``init_from``.
    """

    def __init__(
        self,
        *args: Any,
        estimator: Estimator = Estimator(),  # noqa: B008  (frozen)
        beta: float = 0.2,
        kind: Literal["dpo", "ipo"] = "dpo",
        sft_weight: float = 0.05,
        noise: Literal["fresh", "record"] = "fresh",
        reference: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if self.init_from is None:
            raise UserError("model.init_from is not set: VRPO starts from a fine-tuned checkpoint and is tied to it")
        self.estimator, self.beta, self.kind, self.sft_weight = estimator, beta, kind, sft_weight
        self.noise, self.reference = noise if reference is None else "record", reference
        # Not submodules: the reference is in no checkpoint, and no optimiser sees it.
        self._twin: list[Backbone] = []
        self._cache: CachedReference | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is None and not self._twin:
            self._twin = [self._build(self.init_from).requires_grad_(False).eval()]

    def on_fit_start(self) -> None:
        if self.reference is not None:
            self._cache = CachedReference.open(self.reference, self)

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        """Masks, the reference, two passes of the policy; the last draw's gradient is left to Lightning."""
        parts = self.trainer.accumulate_grad_batches
        if batch_idx % parts == 0:
            self.zero_grad(set_to_none=True)
        draws, reference = self.draw(batch), self._ask_reference(batch, "train")
        count = torch.tensor(len(batch.keys) // 2, device=self.device)
        seen: list[Predicted] = []

        def log_likelihood(number: int) -> tuple[Tensor, Tensor | None]:
            found = predict(self.trained, batch, draws.masked[number], self.mask_token)
            seen[:] = [found]
            return sum_over_answers(found, len(batch.keys)), self._router_loss(found, count)

        def loss(sums: Tensor) -> Tensor:
            return self._losses(draws, sums, reference, batch.lengths).sum()

        rest, sums = two_pass(log_likelihood, self.estimator.draws, loss, parts)
        for name, value in self.diagnose(draws, sums, reference, batch.lengths).items():
            self.add_up(name, value.sum(), count if name == "loss" else None)
        self._keys.append(batch.keys)
        return _output(rest, count, batch, seen[0])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning would do it between training_step, which makes most of the gradient, and the rest."""

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        draws, reference = self.draw(batch, seed=self.seed + 1), self._ask_reference(batch, "val")
        net, sums = self.denoiser, []
        for masked in draws.masked:
            found = predict(net, batch, masked, self.mask_token)
            sums.append(sum_over_answers(found, len(batch.keys)))
        values = self.diagnose(draws, torch.stack(sums), reference, batch.lengths)
        count = torch.tensor(len(batch.keys) // 2, device=self.device)
        for name, value in values.items():
            if name != "loss":
                self.log(f"val/{name}", value.mean(), batch_size=int(count), on_epoch=True, sync_dist=True)
        return self.validated(_output(values["loss"].sum(), count, batch, found))

    test_step = validation_step

    # ------------------------------------------------------------------ its parts

    def draw(self, batch: AnswerBatch, model: int = 0, seed: int | None = None) -> Draws:
        """The masks of a batch, for the policy (0) or the reference (1)."""
        pairs = len(batch.keys) // 2
        keys = (batch.rows if self.noise == "record" else batch.keys)[:pairs]
        keys = answer_keys(keys, self.estimator.coupled).flatten()
        seed = self.seed if seed is None else seed
        return draw_masks(batch.lengths, keys, seed, self.estimator, batch.answers.shape[1], model)

    def _ask_reference(self, batch: AnswerBatch, split: str) -> Reference:
        draws = self.draw(batch, model=1, seed=self.seed + (split == "val"))
        if self._cache is not None:
            return Reference(draws, self._cache.sums(batch, split))
        return Reference(draws, self.reference_sums(batch, draws))

    @torch.no_grad()
    def reference_sums(self, batch: AnswerBatch, draws: Draws) -> Tensor:
        """``[n, 2P]`` the frozen twin's sums of log p over the masked tokens of each draw."""
        found = (predict(self._twin[0], batch, masked, self.mask_token) for masked in draws.masked)
        return torch.stack([sum_over_answers(f, len(batch.keys)) for f in found])

    def _losses(self, draws: Draws, sums: Tensor, reference: Reference, lengths: Tensor) -> Tensor:
        """``[P]``: the preference loss, and the chosen answer's SFT loss, ``-B / L``."""
        policy = estimate(draws, sums).view(2, -1)
        scores = score(policy, estimate(*reference).view(2, -1), self.beta)
        sft = -policy[0] / lengths.view(2, -1)[0]
        return preference_loss(scores, self.beta, self.kind) + self.sft_weight * sft

    def diagnose(self, draws: Draws, sums: Tensor, reference: Reference, lengths: Tensor) -> dict[str, Tensor]:
        """What TensorBoard shows of a batch, each ``[P]``."""
        policy, tied = estimate(draws, sums).view(2, -1), estimate(*reference).view(2, -1)
        scores = score(policy, tied, self.beta)
        values = {
            "loss": self._losses(draws, sums, reference, lengths),
            "score": scores,
            "accuracy": (scores > 0).to(scores.dtype),
            "chosen_elbo": policy[0],
            "rejected_elbo": policy[1],
            "chosen_gain": policy[0] - tied[0],
            "rejected_gain": policy[1] - tied[1],
            "kl_proxy": (tied - policy).mean(0),  # of the answers at hand, not of samples
            "sft_loss": -policy[0] / lengths.view(2, -1)[0],
        }
        if len(sums) > 1:
            if self.estimator.shared:
                values["score_variance"] = score_variance(draws, sums - reference.sums, self.beta)
            else:
                values["score_variance"] = score_variance(draws, sums, self.beta) + score_variance(
                    *reference, self.beta
                )
        return values

    def _router_loss(self, found: Predicted, count: Tensor) -> Tensor | None:
        """A sparse net's router losses, of one draw among n."""
        if found.router_logits is None or not torch.is_grad_enabled():
            return None
        k, share = self.backbone.experts_per_token, count / self.estimator.draws
        balance, z = balance_loss(found.router_logits, k), z_loss(found.router_logits)
        self.add_up("balance_loss", balance.detach() * share)
        self.add_up("z_loss", z.detach() * share)
        return share * (self.balance_weight * balance + self.z_weight * z)


def sum_over_answers(found: Predicted, samples: int) -> Tensor:
    """``[S]`` sums of log p over the masked tokens of each answer."""
    return -found.nll.new_zeros(samples).index_add(0, found.sample, found.nll)


def _output(loss: Tensor, count: Tensor, batch: AnswerBatch, found: Predicted) -> StepOutput:
    share = found.masked.sum() / batch.lengths.sum()
    return StepOutput(
        loss=loss,
        count=count,
        tokens=batch.lengths.sum(),
        nll=found.nll.detach(),
        t=share.expand(len(found.nll)),
        p_mask=share.expand(len(found.nll)),
        masked=found.masked,
        router_logits=found.router_logits,
    )
