"""What SFT and VRPO share: only answers are masked, and each sample of a row is its own document."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.transformer import Backbone
from lit_llada.data.packing import AnswerBatch


class Predicted(NamedTuple):
    """What the net says of the masked tokens. R of them, S samples."""

    nll: Tensor  # [R] nats
    sample: Tensor  # [R] the answer that each belongs to
    masked: Tensor  # [B, T] bool
    router_logits: Tensor | None


def predict(net: Backbone, batch: AnswerBatch, masked: Tensor, mask_id: int) -> Predicted:
    """Mask some tokens of the answers and ask for them.

    Args:
        net: the mask predictor.
        batch: prompts with answers.
        masked: ``[S, A]`` bool, over the tokens of each answer.
        mask_id: the mask token.
    """
    sample, place = (masked & (batch.answers >= 0)).nonzero(as_tuple=True)
    rows = batch.answers[sample, place]
    noisy = batch.tokens.flatten().index_fill(0, rows, mask_id).view_as(batch.tokens)
    nll, router_logits = net.nll(noisy, batch.tokens, rows, AttentionMask(batch.documents))
    where = torch.zeros_like(batch.tokens, dtype=torch.bool).flatten().index_fill(0, rows, True)
    return Predicted(nll, sample, where.view_as(batch.tokens), router_logits)
