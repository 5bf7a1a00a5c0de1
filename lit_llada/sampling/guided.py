"""Classifier-free guidance: a net listens to its prompt more closely, without a trained unconditional model."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Denoiser, View
from lit_llada.sampling.predictor import Predictor


class Guided(Predictor):
    """``u + (scale + 1)(c - u)``: logits c of the canvas, and u of the same canvas with its prompt masked.

    Unsupervised classifier-free guidance (2502.09992, equation 16; Nie et al., 2024). One call of the net holds both
    halves, so it costs two rows for each.

    Args:
        net: the mask predictor, in eval mode.
        scale: strength of the guidance; 0 changes nothing.
        mask_id: id of the mask, which hides the prompt.

    Raises:
        UserError: the net is a predictor already, such as a cached one.
    """

    def __init__(self, net: Denoiser, scale: float, mask_id: int) -> None:
        if isinstance(net, Predictor):
            raise UserError(
                f"sampling: guidance asks a net about canvases that {type(net).__name__} does not know; guidance and a"
                " cache exclude each other"
            )
        self.net, self.scale, self.mask_id = net, scale, mask_id

    def __call__(self, view: View) -> Tensor:
        """Logits ``[R, V]``."""
        hidden = view.tokens.masked_fill(view.given, self.mask_id)
        both = torch.cat((view.tokens, hidden))
        mask = None if view.real is None else AttentionMask(padding=view.real.repeat(2, 1))
        positions = torch.cat((view.positions, view.positions + view.tokens.numel()))
        conditional, free = self.net(both, mask, positions).chunk(2)
        return free + (self.scale + 1) * (conditional - free)
