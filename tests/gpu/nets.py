"""Small nets, what they read, and how far two results are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone

VOCABULARY = 67
DENSE = BackboneConfig(VOCABULARY, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, ff_dim=64)
MOE = BackboneConfig(VOCABULARY, d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32)
CONFIGS = {"dense": DENSE, "moe": MOE}


def net_of(kind: str, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The same weights on every device: they are drawn on the CPU."""
    net = Backbone(CONFIGS[kind])
    net.init_weights(3)
    return net.to(device, dtype)


def batch_of(rows: int, length: int, device: torch.device, seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens ``[B, T]``, flat masked positions ``[R]`` and their float64 weights: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY - 1, (rows, length), generator=generator)
    masked = (torch.rand(rows, length, generator=generator) < 0.4).flatten().nonzero().squeeze(1)
    scale = 0.5 + torch.rand(len(masked), generator=generator, dtype=torch.float64)
    return tokens.to(device), masked.to(device), scale.to(device)


def loss_and_gradients(net: Backbone, tokens: Tensor, positions: Tensor, scale: Tensor) -> list[Tensor]:
    """The weighted loss with the router's logits in it, and the gradient of every parameter."""
    noisy = tokens.flatten().index_fill(0, positions, VOCABULARY - 1).view_as(tokens)
    loss, _, router = net.weighted_nll(noisy, tokens, positions, scale)
    total = loss if router is None else loss + router.square().mean()
    return [total.detach(), *torch.autograd.grad(total, [*net.parameters()])]


def distance(a: Tensor, b: Tensor) -> float:
    """As a share of the norm of ``b``, computed in float64 on the CPU."""
    a, b = (x.detach().double().cpu() for x in (a, b))
    return float((a - b).norm() / b.norm())
