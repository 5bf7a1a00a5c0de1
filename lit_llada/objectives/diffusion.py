"""What is minimised? The masked-diffusion bound on the negative log-likelihood, from per-token losses.

Pre-training (2502.09992, Equation 3 and Algorithm 1):

    L = E_{t, masks} [ 1/p_mask * sum_{i masked} -log p(x_i | noisy) ] >= -log p(x)          (nats per sequence)

The sum and the number of tokens it is to be divided by are kept apart: numbers of tokens are added up over processes
and accumulation steps before the division, so there is never a mean of means.
"""

from __future__ import annotations

from torch import Tensor


def bound_sum(nll: Tensor, rows: Tensor, p_mask: Tensor, length: int) -> Tensor:
    """``sum over masked tokens of nll / p_mask``: the loss before it is divided by the number of tokens.

    Divide by *all* tokens that could have been masked, not by the masked ones.

    Args:
        nll: ``[R]`` nats of the masked tokens.
        rows: ``[R]`` their flat positions ``b * length + i``.
        p_mask: ``[B]`` masking probability of each sample.
        length: T.

    Returns:
        a scalar, nats.
    """
    return (nll / p_mask.to(nll.dtype)[rows // length]).sum()
