"""The noise that the two answers of a pair share: none, or that of the tokens that stand in both of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.objectives.preference import Draws, Estimator, Role, draw_masks


def draw_pairs(
    tokens: Tensor,
    answers: Tensor,
    keys: Tensor,
    seed: int,
    estimator: Estimator,
    role: Role = "policy",
    mask_seed: int | None = None,
) -> Draws:
    """The masks of both answers of each pair, which share what the estimator lets them share.

    Args:
        tokens, answers: see :func:`aligned`.
        keys: ``[P]`` int64, each names the noise of a pair.
        seed, estimator, role, mask_seed: see :func:`~lit_llada.objectives.preference.draw_masks`.
    """
    lengths = (answers >= 0).sum(1).clamp(min=1)  # what only fills a batch up has no answer
    each = answer_keys(keys, estimator.coupled).flatten()
    places = aligned(tokens, answers) if estimator.coupled else None
    return draw_masks(lengths, each, seed, estimator, answers.shape[1], role, places, mask_seed)


def answer_keys(pair_keys: Tensor, coupled: bool) -> Tensor:
    """``[P]`` keys of pairs -> ``[2, P]`` keys of chosen and rejected answers."""
    return torch.stack((pair_keys, pair_keys) if coupled else (2 * pair_keys, 2 * pair_keys + 1))


def aligned(tokens: Tensor, answers: Tensor) -> Tensor:
    """Names for the tokens of a pair's answers, equal where the answers are: coupled answers mask those together.

    Up to the first difference a token is named by its place from the start; after the last one by its place from the
    end, a negative number. Within an answer no name comes twice, so its own masks are as random as ever.

    Args:
        tokens: ``[B, T]`` ids.
        answers: ``[2P, A]`` flat positions in them, -1 beyond the answer: all chosen ones, then all rejected ones.

    Returns:
        ``[2P, A]`` int64.
    """
    ids = tokens.flatten()[answers.clamp(min=0)].masked_fill(answers < 0, -1)
    lengths = (answers >= 0).sum(1, keepdim=True)
    place = torch.arange(answers.shape[1], device=answers.device)
    backwards = ids.gather(1, (lengths - 1 - place).clamp(min=0)).masked_fill(place >= lengths, -1)
    start, end = (((x[0] == x[1]) & (x[0] >= 0)).cumprod(1).sum(1) for x in (i.chunk(2) for i in (ids, backwards)))
    end = end.minimum(lengths.view(2, -1).amin(0) - start)  # no token belongs to both
    return torch.where(place >= lengths - end.repeat(2)[:, None], place - lengths, place)
