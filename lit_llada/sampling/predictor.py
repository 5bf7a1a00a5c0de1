"""A predictor answers the questions of a sampler: a plain net, and the base of guided and cached ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.sampling.canvas import Denoiser, View


class Predictor(ABC):
    """Logits for a view, and what a sampler has to know of whoever gives them.

    Attributes:
        cached: whether something of each row is kept from step to step. Such a predictor can neither be asked about
            copies of a row (``remask: verify``) nor about rows that grow (``length: rho_eos``).
        least_forwards: with ``official: true``, the forwards that a block takes at least.
    """

    cached: bool = False
    least_forwards: int = 1

    @abstractmethod
    def __call__(self, view: View) -> Tensor:
        """Logits ``[R, V]`` for the view's positions."""


class Plain(Predictor):
    """A net that is asked about every canvas as a whole.

    Args:
        net: the mask predictor, in eval mode.
    """

    def __init__(self, net: Denoiser) -> None:
        self.net = net

    def __call__(self, view: View) -> Tensor:
        """Logits ``[R, V]``; a plain net needs to know the canvases and their padding only."""
        return self.net(view.tokens, padding_mask(view), view.positions)


def predictor_of(net: Denoiser | Predictor) -> Predictor:
    """A predictor as it is, and of a bare net the plain one."""
    return net if isinstance(net, Predictor) else Plain(net)


def padding_mask(view: View) -> AttentionMask | None:
    """Who sees whom in a view: nobody sees padding."""
    return None if view.real is None else AttentionMask(padding=view.real)
