"""Mixture of experts: the router, the experts by grouped GEMM, and the two losses that keep routing healthy.

Shapes: N tokens, D width, E experts, k experts per token, F width of an expert.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llada.backbone.layers import SwiGLU, widen


class Routing(NamedTuple):
    """What a router decides for each token, shapes as those of its logits ``[..., E]``."""

    probabilities: Tensor  # [..., E] softmax over all experts, without the bias
    weights: Tensor  # [..., k] probabilities of the chosen experts, with the bias
    chosen: Tensor  # [..., k] int64 numbers of the chosen experts


def route(logits: Tensor, k: int, bias: Tensor | None = None) -> Routing:
    """Choose k experts for each token: a softmax over all experts, in float32 or wider, and only then the top k.

    Args:
        logits: ``[..., E]``, from the router.
        k: experts per token.
        bias: added to the probabilities, in the choice and in the weights; of the shape of the logits or broadcast.
    """
    probabilities = widen(logits).softmax(-1)
    weights, chosen = (probabilities if bias is None else probabilities + bias).topk(k, dim=-1)
    return Routing(probabilities, weights, chosen)


class MoE(nn.Module):
    """``sum over the k chosen experts of p_e * SwiGLU_e(x)``, plus an optional expert that every token visits.

    The router is a softmax over all experts, in float32, and only then the top k. The k weights are the raw
    probabilities (they sum to less than one) unless ``renormalize``. No capacity: no token is ever dropped.
    Expert weights are stacked, gate first: ``gate_up [E, D, 2F]`` and ``down [E, F, D]``.
    """

    def __init__(
        self, width: int, hidden: int, n_experts: int, k: int, *, renormalize: bool, bias: bool, shared_hidden: int
    ) -> None:
        super().__init__()
        self.k, self.renormalize = k, renormalize
        self.router = nn.Linear(width, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(n_experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.shared = SwiGLU(width, shared_hidden) if shared_hidden else None
        self.expert_bias: Tensor | None
        # Added to the probabilities, in the choice and in the weights, as the published code does.
        self.register_buffer("expert_bias", torch.zeros(n_experts) if bias else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, D]`` -> the same shape, and the router's logits ``[B*T, E]``."""
        flat = x.flatten(0, -2)
        logits = self.router(flat)
        weights, chosen = self._route(logits)
        if torch.is_autocast_enabled(x.device.type):  # autocast does not know grouped_mm
            flat = flat.to(torch.get_autocast_dtype(x.device.type))
        out = self._experts(flat, weights.to(flat.dtype), chosen)
        if self.shared is not None:
            out = out + self.shared(flat)
        return out.view(x.shape), logits

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen experts, both ``[N, k]``."""
        _, weights, chosen = route(logits, self.k, self.expert_bias)
        if self.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def _experts(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Sort the N*k visits by expert, run every expert on its run of rows, and bring the results home."""
        order = chosen.flatten().argsort(stable=True)
        home = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        counts = expert_counts(chosen, self.router.out_features)
        gate_up, down = self.gate_up.to(x.dtype), self.down.to(x.dtype)
        matmul = _grouped if grouped_applies(gate_up, down) else _split
        gate, up = matmul(_Dispatch.apply(x, order // self.k, home.view_as(chosen)), gate_up, counts).chunk(2, dim=-1)
        # The weights meet the hidden layer rather than the output: it is the narrower side.
        hidden = F.silu(gate) * up * weights.flatten()[order, None]
        return _Collect.apply(matmul(hidden, down, counts), order // self.k, home.view_as(chosen))


class _Dispatch(torch.autograd.Function):
    """Every token to its k visits, ``[N, D]`` -> ``[N*k, D]``; the gradient comes home as the results do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, home: Tensor) -> Tensor:
        ctx.save_for_backward(home)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _sum_visits(grads[0], *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    """The sum of each token's k visits, ``[N*k, D]`` -> ``[N, D]``; the gradient goes out as the tokens do."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, token: Tensor, home: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return _sum_visits(out, home)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, *ctx.saved_tensors), None, None


def _sum_visits(rows: Tensor, home: Tensor) -> Tensor:
    """``rows[home].sum(1)`` without the ``[N, k, D]`` in between."""
    return F.embedding_bag(home, rows, mode="sum")


def expert_counts(chosen: Tensor, n_experts: int) -> Tensor:
    """How many visits each expert gets, int64 ``[E]``; without a wait for the device, unlike ``bincount``."""
    flat = chosen.flatten()
    return flat.new_zeros(n_experts).scatter_add(0, flat, torch.ones_like(flat))


def grouped_applies(*weights: Tensor) -> bool:
    """Whether ``grouped_mm`` takes these weights and their inputs: no float64, rows of a multiple of 16 bytes."""
    return all(w.dtype != torch.float64 and all(n * w.element_size() % 16 == 0 for n in w.shape[1:]) for w in weights)


def _grouped(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if x.dtype == torch.float32 and torch.compiler.is_compiling():
        return _grouped_uncompiled(x, weight, counts)
    return F.grouped_mm(x, weight, offs=counts.cumsum(0, dtype=torch.int32))


@torch.compiler.disable
def _grouped_uncompiled(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """For float32, which the kernels multiply but the compiler's rules for shapes refuse."""
    return F.grouped_mm(x, weight, offs=counts.cumsum(0, dtype=torch.int32))


@torch.compiler.disable  # the host reads the counts
def _split(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The plain path: one matrix product an expert."""
    parts = x.split(counts.tolist())
    return torch.cat([part @ w for part, w in zip(parts, weight, strict=True)])


def balance_loss(router_logits: Tensor, k: int) -> Tensor:
    """``E * sum_e s_e q_e``: s_e the share of tokens with e among their k, q_e the mean probability of e.

    Both means run over all layers and tokens together, as the published code has it; k when balanced.

    Args:
        router_logits: ``[layers, tokens, E]``.
        k: experts per token.
    """
    p, _, chosen = route(router_logits.flatten(0, 1), k)
    share = expert_counts(chosen, p.shape[-1]).to(p.dtype) / len(p)
    return p.shape[-1] * (share * p.mean(0)).sum()


def z_loss(router_logits: Tensor) -> Tensor:
    """``mean over layers and tokens of logsumexp(router logits)^2``: keeps the logits from drifting off."""
    return widen(router_logits).logsumexp(-1).square().mean()
