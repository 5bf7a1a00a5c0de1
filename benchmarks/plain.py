"""What do we compare with? The same net written plainly in PyTorch, as modelling code usually is, same weights.

Logits for every position, cross-entropy over all of them, separate projections, ``scaled_dot_product_attention``, and a
Python loop over the experts (``nonzero``, ``index_add_``). Autocast, fused AdamW and batch are those of the other side.
Shapes: B batch, T tokens, D width, V vocabulary, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.moe import MoE
from lit_llada.backbone.transformer import Backbone


class PlainNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class PlainAttention(nn.Module):
    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.width, self.grouped = c.head_width, c.kv_heads < c.n_heads
        q, kv = c.n_heads * c.head_width, c.kv_heads * c.head_width
        self.q_proj, self.o_proj = nn.Linear(c.d_model, q, bias=False), nn.Linear(q, c.d_model, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(c.d_model, kv, bias=False) for _ in range(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (-1, self.width)).transpose(1, 2) for y in projected)
        q, k = ((y.float() * cos + rotate_half(y.float()) * sin).to(y.dtype) for y in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.grouped)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class PlainMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainMoE(nn.Module):
    """``[B, T, D]`` -> the same, and the router's logits ``[B*T, E]``; the experts one after the other."""

    def __init__(self, width: int, hidden: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.gate = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(PlainMLP(width, hidden) for _ in range(n_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(0, 1)
        logits = self.gate(flat)
        weights, chosen = logits.softmax(-1, dtype=torch.float).topk(self.k, dim=-1)
        weights = weights.to(logits.dtype)
        out = torch.zeros_like(flat, dtype=logits.dtype)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return out.view(x.shape), logits

    @torch.no_grad()
    def copy_from(self, moe: MoE) -> PlainMoE:
        """Take the weights of ours."""
        self.gate.weight.copy_(moe.router.weight)
        for expert, gate_up, down in zip(self.experts, moe.gate_up, moe.down, strict=True):
            expert.gate_proj.weight.copy_(gate_up.chunk(2, dim=-1)[0].T)
            expert.up_proj.weight.copy_(gate_up.chunk(2, dim=-1)[1].T)
            expert.down_proj.weight.copy_(down.T)
        return self


class PlainBlock(nn.Module):
    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (PlainNorm(c.d_model, c.norm_eps) for _ in range(2))
        self.self_attn, self.mlp = PlainAttention(c), PlainMLP(c.d_model, c.ff_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class PlainTransformer(nn.Module):
    """The dense net: ``[B, T]`` tokens -> ``[B, T, V]`` logits."""

    def __init__(self, c: BackboneConfig) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocabulary, c.d_model)
        self.layers = nn.ModuleList(PlainBlock(c) for _ in range(c.n_layers))
        self.norm = PlainNorm(c.d_model, c.norm_eps)
        self.lm_head = nn.Linear(c.d_model, c.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        c, x = self.config, self.embed_tokens(tokens)
        frequency = c.rope_theta ** (-torch.arange(0, c.head_width, 2, device=x.device).float() / c.head_width)
        angle = torch.arange(tokens.shape[1], device=x.device).float()[:, None] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = angle.cos(), angle.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))

    @torch.no_grad()
    def copy_from(self, net: Backbone) -> PlainTransformer:
        """Take the weights of ours."""
        self.embed_tokens.weight.copy_(net.embed.weight)
        self.lm_head.weight.copy_(net.head.weight)  # type: ignore[union-attr]
        for mine, its in zip(self.layers, net.blocks, strict=True):
            a, m = mine.self_attn, mine.mlp
            for linear, part in zip(
                (a.q_proj, a.k_proj, a.v_proj), its.attn.qkv.weight.split(its.attn.widths), strict=True
            ):
                linear.weight.copy_(part)
            a.o_proj.weight.copy_(its.attn.out.weight)
            for linear, part in zip((m.gate_proj, m.up_proj), its.mlp.gate_up.weight.chunk(2), strict=True):
                linear.weight.copy_(part)
            m.down_proj.weight.copy_(its.mlp.down.weight)
        return self


def plain_loss(logits: Tensor, tokens: Tensor, masked: Tensor, p_mask: Tensor) -> Tensor:
    """The bound in nats per token: cross-entropy in float32 at every position, those that are not masked times zero."""
    nll = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)
    return (nll * masked / p_mask[:, None]).sum() / tokens.numel()


def plain_noise(tokens: Tensor, mask_id: int, eps: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy tokens, masked ``[B, T]`` and p_mask ``[B]`` as the published training guideline draws them."""
    p_mask = (1 - eps) * torch.rand(len(tokens), device=tokens.device) + eps
    masked = torch.rand(tokens.shape, device=tokens.device) < p_mask[:, None]
    return torch.where(masked, mask_id, tokens), masked, p_mask
