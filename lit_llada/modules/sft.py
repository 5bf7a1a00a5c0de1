"""Supervised fine-tuning: prompts stay as they are, answers are masked and predicted (2502.09992, Algorithm 2)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_llada.backbone.attention import Backend
from lit_llada.backbone.config import BackboneConfig
from lit_llada.data.batch import AnswerBatch
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule, StepOutput
from lit_llada.modules.predict import locate, predict
from lit_llada.modules.pretraining import VALIDATION_STRATA
from lit_llada.objectives.diffusion import Normalize, answer_weights
from lit_llada.objectives.noise import Masking, TimeSampler, mask_tokens, sample_times
from lit_llada.training.lora import LoRA
from lit_llada.training.optimizers import OptimizerName
from lit_llada.training.schedules import Schedule


class SFTModule(DiffusionModule):
    """Supervised fine-tuning of a masked diffusion language model.

    Args:
        normalize: ``sequence`` divides each answer by its length, as LLaDA does; ``token`` by the tokens of the batch;
            ``uniform`` drops the weight 1 / p_mask too.
        band: noise levels are drawn from this part of 0..1 (LLaDA 2.0 fine-tunes on a part).
        complementary: every answer twice in a step, the second time with all the rest of it masked (LLaDA 2.0).
        time_sampler: ``iid`` as in the paper; ``stratified`` over the global batch or ``antithetic`` pairs.
        masking: ``bernoulli`` as in the paper, or ``fixed_count``.
        eps: smallest masking probability.

    Raises:
        UserError: a band outside 0..1.
    """

    learns_from: ClassVar[str] = "chat"

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
        normalize: Normalize = "sequence",
        band: list[float] = [0.0, 1.0],  # noqa: B006  (shown by the command line; nobody writes to it)
        complementary: bool = False,
        time_sampler: TimeSampler = "iid",
        masking: Masking = "bernoulli",
        eps: float = 1e-3,
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
        if len(band) != 2 or not 0 <= band[0] < band[1] <= 1:
            raise UserError(f"model.band is {band}; give two noise levels, as in [0.3, 0.8]")
        self.normalize, self.band, self.complementary = normalize, band, complementary
        self.time_sampler, self.masking, self.eps = time_sampler, masking, eps

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        strata = len(batch.keys) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        t = sample_times(batch.keys, self.seed, sampler=self.time_sampler, strata=strata)
        output = self._denoise(batch, self.band[0] + (self.band[1] - self.band[0]) * t, self.seed)
        output["loss"] = self.sum_up(output["loss"], output["count"], output["router_logits"])
        self.add_keys(batch.keys)
        return output

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> StepOutput:
        t = sample_times(batch.keys, self.seed + 1, sampler="stratified", strata=VALIDATION_STRATA)
        return self.validated(self._denoise(batch, t, self.seed + 1))

    test_step = validation_step

    def _denoise(self, batch: AnswerBatch, t: Tensor, seed: int) -> StepOutput:
        """Mask tokens of the answers, predict them, and weigh their losses."""
        inside = batch.answers >= 0
        answers = batch.tokens.flatten()[batch.answers.clamp(min=0)]
        noised = mask_tokens(answers, inside, t, batch.keys, self.mask_token, seed, masking=self.masking, eps=self.eps)
        masked, p_mask = noised.masked, noised.p_mask
        if self.complementary and self.training:
            rest, p_rest = complement(masked, inside, p_mask, self.masking, self.eps)
            masked, p_mask, t = torch.cat((masked, rest)), torch.cat((p_mask, p_rest)), torch.cat((t, 1 - t))
            batch = twice(batch)
        lengths = batch.lengths
        weight, count = answer_weights(p_mask, masked, lengths, self.normalize)
        net, (where,) = self.trained if self.training else self.denoiser, locate(batch, masked[None])
        found = predict(net, batch, where, self.mask_token, weight)
        assert found.loss is not None  # weights were given
        return StepOutput(
            loss=found.loss,
            count=count,
            tokens=lengths.sum(),
            nll=found.nll,
            t=t[found.sample],
            p_mask=p_mask[found.sample],
            masked=found.masked,
            router_logits=found.router_logits,
        )


def complement(masked: Tensor, inside: Tensor, p_mask: Tensor, masking: Masking, eps: float) -> tuple[Tensor, Tensor]:
    """The rest of each answer as a second mask with the same expectation, and its probability.

    Args:
        masked: ``[S, A]`` bool.
        inside: ``[S, A]`` bool, the tokens of each answer.
        p_mask: ``[S]``.
        masking: with ``fixed_count`` the full mask, which leaves no rest, is its own: all counts stay equally likely.
        eps: smallest probability.
    """
    rest, p_rest = inside & ~masked, (1 - p_mask).clamp(min=eps)
    if masking == "fixed_count":
        full = ~rest.any(1)
        rest, p_rest = torch.where(full[:, None], masked, rest), torch.where(full, p_mask, p_rest)
    return rest, p_rest


def twice(batch: AnswerBatch) -> AnswerBatch:
    """The same samples again below themselves."""
    doubled = (torch.cat((x, x)) for x in (batch.tokens, batch.documents, batch.keys, batch.records))
    tokens, documents, keys, records = doubled
    again = torch.where(batch.answers >= 0, batch.answers + batch.tokens.numel(), -1)
    edges = batch.cu_seqlens
    edges = None if edges is None else torch.cat((edges, edges[1:] + batch.tokens.numel()))
    return AnswerBatch(tokens, documents, torch.cat((batch.answers, again)), keys, records, edges)
