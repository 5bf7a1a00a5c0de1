"""How is a net made to listen to its prompt? Classifier-free guidance without a trained unconditional model."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.sampling.canvas import Denoiser, View


class Guided:
    """``u + (scale + 1)(c - u)``: logits c of the canvas, and u of the same canvas with its prompt masked.

    Unsupervised classifier-free guidance (2502.09992, equation 16; Nie et al., 2024). One call of the net holds both
    halves, so it costs two rows for each.

    Args:
        denoiser: the mask predictor.
        scale: 0 changes nothing.
        mask_id: what hides the prompt.
    """

    def __init__(self, denoiser: Denoiser, scale: float, mask_id: int) -> None:
        self.denoiser, self.scale, self.mask_id = denoiser, scale, mask_id

    def at(self, view: View) -> Tensor:
        """Logits ``[R, V]`` for a sampler's view."""
        hidden = view.tokens.masked_fill(view.given, self.mask_id)
        both = torch.cat((view.tokens, hidden))
        mask = None if view.real is None else AttentionMask(padding=view.real.repeat(2, 1))
        conditional, free = self.denoiser(both, mask, torch.cat((view.rows, view.rows + view.tokens.numel()))).chunk(2)
        return free + (self.scale + 1) * (conditional - free)
