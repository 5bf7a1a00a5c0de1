"""Masks tokens of answers and asks the net for them, for SFT and VRPO: each sample of a row is its own document."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.batch import AnswerBatch
from lit_llada.modules.step import StepOutput


class Masked(NamedTuple):
    """The masked tokens of a batch in one draw. R of them."""

    positions: Tensor  # [R] flat positions b * T + i
    sample: Tensor  # [R] the answer that each belongs to


class Predicted(NamedTuple):
    """What the net says of the masked tokens. R of them, S samples."""

    nll: Tensor  # [R] nats
    sample: Tensor  # [R] the answer that each belongs to
    masked: Tensor  # [B, T] bool
    router_logits: Tensor | None
    loss: Tensor | None  # sum of weight * nll, if weights were given: then only it has a graph


def locate(batch: AnswerBatch, masked: Tensor) -> list[Masked]:
    """The masked tokens of each of n draws.

    It waits for the device, since the host must know R of each draw: ask for all draws of a step at once, at its start.

    Args:
        batch: prompts with answers.
        masked: ``[n, S, A]`` bool, over the tokens of each answer.
    """
    inside = masked & (batch.answers >= 0)
    _, sample, place = inside.nonzero(as_tuple=True)
    counts = inside.sum((1, 2)).tolist()
    return [
        Masked(*each) for each in zip(batch.answers[sample, place].split(counts), sample.split(counts), strict=True)
    ]


def predict(net: Backbone, batch: AnswerBatch, masked: Masked, mask_id: int, weight: Tensor | None = None) -> Predicted:
    """Mask some tokens of the answers and ask for them.

    Args:
        net: the mask predictor.
        batch: prompts with answers.
        masked: one draw of :func:`locate`.
        mask_id: the mask token.
        weight: ``[S]``, what the nll of each answer's tokens is multiplied by, if that is known already.
    """
    positions, sample = masked
    noisy = batch.tokens.flatten().index_fill(0, positions, mask_id).view_as(batch.tokens)
    layout = None if batch.cu_seqlens is None else (None, batch.cu_seqlens)
    visible, loss = AttentionMask(batch.documents, layout=layout), None
    if weight is None:
        nll, router = net.nll(noisy, batch.tokens, positions, visible)
    else:
        loss, nll, router = net.weighted_nll(noisy, batch.tokens, positions, weight[sample], visible)
    where = torch.zeros_like(batch.tokens, dtype=torch.bool).flatten().index_fill(0, positions, True)
    return Predicted(nll, sample, where.view_as(batch.tokens), router, loss)


def sum_over_answers(found: Predicted, samples: int) -> Tensor:
    """``[S]`` sums of log p over the masked tokens of each answer."""
    return -found.nll.new_zeros(samples).index_add(0, found.sample, found.nll)


def pairs_of(batch: AnswerBatch) -> Tensor:
    """``[P]`` bool: pairs that count; others only fill a batch up."""
    return (batch.lengths > 0).view(2, -1)[0]


def pair_output(loss: Tensor, count: Tensor, batch: AnswerBatch, found: Predicted) -> StepOutput:
    """What a step on pairs leaves: noise levels as far as this one draw tells them: the masked share of each answer."""
    masked = torch.zeros_like(batch.keys).index_add(0, found.sample, torch.ones_like(found.sample))
    share = (masked.double() / batch.lengths.clamp(min=1))[found.sample]
    return StepOutput(
        loss=loss,
        count=count,
        tokens=batch.lengths.sum(),
        nll=found.nll.detach(),
        t=share,
        p_mask=share,
        masked=found.masked,
        router_logits=found.router_logits,
    )
