"""Pre-training: every token may be masked, and the bound is divided by all of them (2502.09992, Algorithm 1)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lit_llada.backbone.attention import AttentionMask, Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.data.batch import Batch
from lit_llada.modules.base import DiffusionModule, StepOutput
from lit_llada.objectives.diffusion import bound_weights
from lit_llada.objectives.noise import Masking, TimeSampler, mask_tokens, random_length, sample_times
from lit_llada.training.lora import LoRA
from lit_llada.training.optimizers import OptimizerName
from lit_llada.training.schedules import Schedule

VALIDATION_STRATA = 64  # validation times are always stratified, and the same in every validation


class PretrainingModule(DiffusionModule):
    """Pre-training of a masked diffusion language model.

    Args:
        time_sampler: ``iid`` as in the paper; ``stratified`` over the global batch or ``antithetic`` pairs have less
            variance and the same expectation.
        masking: ``bernoulli`` as in the paper's training, or ``fixed_count``.
        eps: smallest masking probability.
        random_length: share of steps whose rows are cut to a random length.
        document_mask: documents that share a row do not see each other (LLaDA lets them).
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
        *,
        time_sampler: TimeSampler = "iid",
        masking: Masking = "bernoulli",
        eps: float = 1e-3,
        random_length: float = 0.01,
        document_mask: bool = False,
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
        self.time_sampler, self.masking, self.eps = time_sampler, masking, eps
        self.random_length, self.document_mask = random_length, document_mask

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        length = random_length(batch.tokens.shape[1], self.random_length, self.seed, self.global_step)
        strata = len(batch.tokens) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        t = sample_times(batch.keys, self.seed, sampler=self.time_sampler, strata=strata)
        output = self._denoise(batch, t, self.seed, length)
        output["loss"] = self.sum_up(output["loss"], output["count"], output["router_logits"])
        self.add_keys(batch.keys)
        return output

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        t = sample_times(batch.keys, self.seed + 1, sampler="stratified", strata=VALIDATION_STRATA)
        return self.validated(self._denoise(batch, t, self.seed + 1, batch.tokens.shape[1]))

    def _denoise(self, batch: Batch, t: Tensor, seed: int, length: int) -> StepOutput:
        """Mask, predict the masked tokens, and weigh their losses."""
        net = self.trained if self.training else self.denoiser
        tokens, maskable, documents, keys = (x[:, :length] if x.ndim == 2 else x for x in batch)
        noisy, masked, p_mask = mask_tokens(
            tokens, maskable, t, keys, self.mask_token, seed, masking=self.masking, eps=self.eps
        )
        positions = masked.flatten().nonzero().squeeze(1)
        visible = AttentionMask(documents if self.document_mask else None)
        weights = bound_weights(positions, p_mask, length)
        loss, nll, router_logits = net.weighted_nll(noisy, tokens, positions, weights, visible)
        row, count = positions // length, maskable.sum()
        return StepOutput(
            loss=loss,
            count=count,
            tokens=count,
            nll=nll,
            t=t[row],
            p_mask=p_mask[row],
            masked=masked,
            router_logits=router_logits,
        )

    test_step = validation_step
