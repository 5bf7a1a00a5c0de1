"""The masked-diffusion bound on the negative log-likelihood: how much each masked token's loss weighs.

Pre-training (2502.09992, Equation 3 and Algorithm 1):

    L = E_{t, masks} [ 1/p_mask * sum_{i masked} -log p(x_i | noisy) ] >= -log p(x)          (nats per sequence)

The sum and the number of tokens it is to be divided by are kept apart: numbers of tokens are added up over processes
and accumulation steps before the division, so there is never a mean of means.

Supervised fine-tuning (Equation 5 and Algorithm 2) masks the answer only, and by default divides by its length:

    L = E_{t, masks} [ 1/(p_mask L') * sum_{i masked} -log p(y_i | x, noisy y) ]             (mean over answers)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalize = Literal["sequence", "token", "uniform"]


def bound_weights(positions: Tensor, p_mask: Tensor, length: int) -> Tensor:
    """What the nll of each masked token is multiplied by, ``1 / p_mask``: their sum is the bound of all sequences.

    Divide that sum by *all* tokens that could have been masked, not by the masked ones.

    Args:
        positions: ``[R]``, flat, ``b * length + i``, of the masked tokens.
        p_mask: ``[B]`` masking probability of each sample.
        length: T.

    Returns:
        ``[R]``, the dtype of ``p_mask``.
    """
    return 1 / p_mask[positions // length]


def answer_weights(p_mask: Tensor, masked: Tensor, lengths: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    """What each answer's masked nll is multiplied by, and what the sum over answers is divided by.

    ============ ============== ===================== ========================================
    normalize    weight         divided by
    ============ ============== ===================== ========================================
    ``sequence`` 1 / (p_mask L) number of answers     LLaDA: a short answer counts like a long one
    ``token``    1 / p_mask     tokens of the answers SMDM, dllm: every token counts alike
    ``uniform``  1              masked tokens         dFactory: no bound on the likelihood any more
    ============ ============== ===================== ========================================

    Args:
        p_mask: ``[S]`` masking probability of each answer.
        masked: ``[S, A]`` bool, the masked tokens.
        lengths: ``[S]`` tokens of each answer, its end and counted padding included.
        normalize: a row of the table above.

    Returns:
        ``[S]`` float64 weights and a scalar.
    """
    p = p_mask.double()
    if normalize == "sequence":
        return 1 / (p * lengths.clamp(min=1)), (lengths > 0).sum()
    if normalize == "token":
        return 1 / p, lengths.sum()
    return torch.ones_like(p), masked.sum()
