"""Makes a sparse net of a trained dense one without forgetting: every expert starts as the dense MLP.

Sparse upcycling (2212.05055), with the weights scaled for a router that does not renormalise (2410.07524).
Shapes: D width, F width of the MLP and of each expert, E experts, k experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.layers import widen
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError

# Of the first logits of a router that does not renormalise, in units of rounding: with fewer, many of the
# probabilities tie; with more, their sum is no longer k/E.
ROUNDING_UNITS = 8


def upcycle(
    net: Backbone,
    n_experts: int,
    experts_per_token: int,
    *,
    renormalize: bool = False,
    dense_layers: Sequence[int] = (),
    seed: int = 0,
) -> Backbone:
    """A mixture of experts that computes what the dense ``net`` computes, until its first step of training.

    Every expert is a copy of the MLP, its down-projection divided by s, the sum of a token's k weights:

        ``sum over the chosen e of p_e * MLP(x) / s  =  MLP(x)``.

    The router has to send different tokens to different experts from the first step on. One of zeros sends all of
    them to the same k, which then see the same gradients: only rounding tells these apart. So its rows are random:

    * ``renormalize=True``: s = 1 whatever the router says, and its logits start at unit size.
    * ``renormalize=False`` (LLaDA-MoE): the weights are raw probabilities, and s = k/E only where these are uniform.
      So the logits start at a few units of rounding: too small to move s, while which experts are chosen depends on
      their order alone. Equal up to rounding, then: one to three parts in a million in float32.

    Args:
        net: a dense net without biases.
        n_experts: number E of experts.
        experts_per_token: number k of experts that each token visits.
        renormalize: divide the k weights by their sum.
        dense_layers: numbers of the layers that stay dense.
        seed: seed of the router's rows.

    Returns:
        A new net in eval mode, with tensors of its own, of the dtype and on the device of ``net``.

    Raises:
        UserError: a net that is sparse already or has biases, or numbers of experts or layers that cannot be.
    """
    if net.config.n_experts:
        raise UserError(f"upcycle: the net has {net.config.n_experts} experts already; give a dense one")
    if net.config.bias:
        raise UserError("upcycle: backbone.bias is true, and experts have no biases; give a net without")
    if n_experts < 1:
        raise UserError(f"upcycle: n_experts is {n_experts}; it must be at least 1")
    config = replace(
        net.config,
        n_experts=n_experts,
        experts_per_token=experts_per_token,
        expert_dim=net.config.ff_dim,
        shared_expert_dim=0,
        dense_layers=list(dense_layers),
        renormalize_experts=renormalize,
        expert_bias=False,
    )
    with torch.device("meta"):
        sparse = Backbone(config, net.attention)
    sparse.load_state_dict(_sparse_state(net.state_dict(), config, seed), assign=True)
    return sparse.eval()


def _sparse_state(dense: dict[str, Tensor], config: BackboneConfig, seed: int) -> dict[str, Tensor]:
    """The dense net's tensors, copied, with the MLPs of the sparse layers as experts ``[E, in, out]`` and a router."""
    generator = torch.Generator().manual_seed(seed)
    total = 1.0 if config.renormalize_experts else config.experts_per_token / config.n_experts
    state = {name: tensor.clone() for name, tensor in dense.items()}
    for layer in filter(config.is_sparse, range(config.n_layers)):
        mlp = f"blocks.{layer}.mlp."
        gate_up, down = state.pop(mlp + "gate_up.weight").T, state.pop(mlp + "down.weight").T / total
        state[mlp + "gate_up"], state[mlp + "down"] = (w.repeat(config.n_experts, 1, 1) for w in (gate_up, down))
        state[mlp + "router.weight"] = _router(config, generator, widen(down).dtype).to(down)
    return state


def _router(config: BackboneConfig, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """``[E, D]``, normal; ``dtype`` is the one that the probabilities will be computed in."""
    size = 1.0 if config.renormalize_experts else ROUNDING_UNITS * torch.finfo(dtype).eps
    rows = torch.randn(config.n_experts, config.d_model, generator=generator, dtype=dtype)
    return rows * (size / math.sqrt(config.d_model))
