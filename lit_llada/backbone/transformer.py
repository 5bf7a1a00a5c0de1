"""The Transformer: its blocks, its two outputs (logits, or nll of masked positions), and the initialisation.

Pre-norm residual blocks without a time input. The published nets have no biases and full attention; the config also
allows biases and a causal mask. See 2502.09992 (dense) and 2509.24389 (sparse).
Shapes: B batch, T tokens, D width, H heads, K key/value heads, h head width, V vocabulary, R selected positions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from lit_llada.backbone.attention import AttentionMask, AttentionPlan, Backend, attend, plan_attention
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.head import chunked_nll, weighted_nll
from lit_llada.backbone.kv_cache import KVView
from lit_llada.backbone.layers import RMSNorm, SwiGLU, rotary_table, rotate
from lit_llada.backbone.moe import MoE
from lit_llada.seeding import mix


class Attention(nn.Module):
    """Multi-head or grouped-query attention with rotary positions and optional normalisation of queries and keys."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.widths = [heads * config.head_width for heads in (config.n_heads, config.kv_heads, config.kv_heads)]
        bias = config.bias or config.qkv_bias
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=bias)  # one matrix: queries, keys, values
        self.out = nn.Linear(self.widths[0], config.d_model, bias=config.bias)
        if config.qk_norm != "none":
            q, k = [config.head_width] * 2 if config.qk_norm == "head" else self.widths[:2]
            self.q_norm, self.k_norm = RMSNorm(q, config.norm_eps), RMSNorm(k, config.norm_eps)

    def forward(self, x: Tensor, table: Tensor, plan: AttentionPlan, positions: Tensor | None = None) -> Tensor:
        c = self.config
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        if c.qk_norm == "width":
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = (part.unflatten(-1, (-1, c.head_width)) for part in (q, k, v))
        if c.qk_norm == "head":
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k = (rotate(part, table, c.rope_full_precision) for part in (q, k))
        return self.out(_select(attend(q, k, v, plan).flatten(-2), positions))


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; the mlp is one SwiGLU or a mixture of experts."""

    def __init__(self, config: BackboneConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp: nn.Module = (
            MoE(
                config.d_model,
                config.expert_dim,
                config.n_experts,
                config.experts_per_token,
                renormalize=config.renormalize_experts,
                bias=config.expert_bias,
                shared_hidden=config.shared_expert_dim,
            )
            if config.is_sparse(layer)
            else SwiGLU(config.d_model, config.ff_dim, bias=config.bias)
        )

    def forward(
        self, x: Tensor, table: Tensor, plan: AttentionPlan, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, T, D]`` -> the same, and the router's logits ``[B*T, E]`` of a sparse block.

        With ``positions`` (flat, ``[R]``) only these go on after having looked at all the others: ``[R, D]``.
        """
        x = _select(x, positions) + self.attn(self.attn_norm(x), table, plan, positions)
        y = self.mlp(self.mlp_norm(x))
        y, router = y if isinstance(y, tuple) else (y, None)
        return x + y, router


class Backbone(nn.Module):
    """A mask predictor: reads the whole sequence, says for every position which token belongs there.

    Args:
        config: the architecture, its vocabulary set.
        attention: the backend; ``auto`` picks by device, dtype and length.
    """

    def __init__(self, config: BackboneConfig, attention: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.attention: Backend = attention
        self.checkpointing = False  # recompute every block in the backward pass
        self.fused = False  # compile the head's softmax
        self.residual: torch.dtype | None = None  # of the residual stream; None for that of the norms
        self.embed = nn.Embedding(config.vocabulary, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocabulary, bias=config.bias)
        if not self.embed.weight.is_meta:
            self.init_weights()

    def forward(
        self,
        tokens: Tensor,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: KVView | None = None,
    ) -> Tensor:
        """Logits.

        Args:
            tokens: ``[B, T]``, with mask tokens where something is to be predicted.
            mask: who sees whom; None for full attention.
            positions: ``[R]``, flat, ``b*T + i``: only these meet the vocabulary.
            cache: keys and values of whole rows; ``tokens`` may be a part of these then, ``mask`` is about the whole.

        Returns:
            ``[B, T, V]``, or ``[R, V]`` with ``positions``.
        """
        x, _ = self.hidden(tokens, mask, positions, cache)
        return F.linear(self.norm(x), *self._head())

    def nll(
        self, noisy: Tensor, targets: Tensor, positions: Tensor, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``-log p(targets | noisy)`` at the selected positions; no other one meets the vocabulary.

        Args:
            noisy: ``[B, T]`` with mask tokens.
            targets: ``[B, T]`` clean ids.
            positions: ``[R]``, flat, ``b*T + i``.
            mask: who sees whom.

        Returns:
            nats ``[R]`` (float32 or wider), and the router's logits ``[sparse layers, B*T, E]`` of a sparse net.
        """
        x, router = self.hidden(noisy, mask, positions)
        return chunked_nll(self.norm(x), *self._head(), targets.flatten()[positions], self.fused), router

    def weighted_nll(
        self, noisy: Tensor, targets: Tensor, positions: Tensor, scale: Tensor, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``sum over positions of scale * nll``: cheaper than :meth:`nll` where the weights are known beforehand.

        Args:
            noisy, targets, positions, mask: see :meth:`nll`.
            scale: ``[R]``; it gets no gradient.

        Returns:
            a scalar, the nats ``[R]`` without a graph, and the router's logits of a sparse net.
        """
        x, router = self.hidden(noisy, mask, positions)
        loss, nll = weighted_nll(self.norm(x), *self._head(), targets.flatten()[positions], scale, self.fused)
        return loss, nll, router

    def hidden(
        self,
        tokens: Tensor,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: KVView | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after the last block, ``[B, T, D]``, and the router's logits of a sparse net.

        With ``positions`` only these, ``[R, D]``; the others' part in a dense last block is not computed.
        """
        c, device = self.config, tokens.device
        weight = self.embed.weight
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype
        plan = plan_attention(mask, c.causal, tokens.shape, c.head_width, dtype, device, self.attention, cache)
        length = tokens.shape[1] if cache is None else cache.length
        table = rotary_table(length, c.rotary_dim, c.rope_theta, dtype, device)
        if cache is not None and cache.positions is not None:
            table = table[:, cache.positions]
        early = positions is not None and not c.is_sparse(c.n_layers - 1)  # a router's losses are over all tokens
        # Norms keep their dtype where matrices are held in a narrower one, and so does the residual stream.
        x, routers = self.embed(tokens).to(self.residual or self.norm.weight.dtype), []
        for layer, block in enumerate(self.blocks):
            inputs = (x, table, plan.at(layer), positions if early and layer == c.n_layers - 1 else None)
            if self.checkpointing and torch.is_grad_enabled():
                x, router = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x, router = block(*inputs)
            if router is not None:
                routers.append(router)
        return x if early else _select(x, positions), torch.stack(routers) if routers else None

    def _head(self) -> tuple[Tensor, Tensor | None]:
        return (self.embed.weight, None) if self.head is None else (self.head.weight, self.head.bias)

    def init_weights(self, seed: int | None = None) -> None:
        """Set every parameter and buffer; also what makes a net real that was built on the meta device.

        Each tensor is drawn by a generator of its own, seeded by (seed, its place in the net), and a sharded one keeps
        its part of it: the same seed gives the same net on one process and on any number of shards.

        ============== ============================================= =====================
        parameter      "mitchell" (cut at three deviations)          "normal"
        ============== ============================================= =====================
        embedding      1 / sqrt(D)                                   init_std
        linear, head   1 / sqrt(fan-in)                              init_std
        residual out   1 / sqrt(2 fan-in (layer + 1))                init_std
        norms, biases  1, 0                                          1, 0
        ============== ============================================= =====================

        Args:
            seed: None takes the process's initial seed (what ``seed_everything`` sets).
        """
        seed = torch.initial_seed() if seed is None else seed
        for buffer in self.buffers():
            buffer.data.zero_()
        for number, (name, parameter) in enumerate(self.named_parameters()):
            with torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif "norm" in name.rsplit(".", 2)[-2]:
                    parameter.fill_(1.0)
                else:
                    generator = torch.Generator(parameter.device).manual_seed(mix(seed, number))
                    _fill(parameter, self._std(name, parameter), self.config.init == "mitchell", generator)

    def _std(self, name: str, parameter: Tensor) -> float:
        if self.config.init == "normal":
            return self.config.init_std
        if name == "embed.weight":
            return 1 / math.sqrt(self.config.d_model)
        fan_in = parameter.shape[-2 if parameter.ndim == 3 else -1]  # stacked experts are [E, in, out]
        if name.endswith(("attn.out.weight", "down.weight", "mlp.down")):
            fan_in *= 2 * (int(name.split(".")[1]) + 1)
        return 1 / math.sqrt(fan_in)


def _select(x: Tensor, positions: Tensor | None) -> Tensor:
    """``[B, T, D]`` -> what stands at these flat positions, ``[R, D]``; without ``positions`` all of it."""
    return x if positions is None else x.flatten(0, 1)[positions]


def _fill(parameter: Tensor, std: float, cut: bool, generator: torch.Generator) -> None:
    """Draw the whole tensor, keep this shard's part."""
    full = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    if cut:
        nn.init.trunc_normal_(full, 0.0, std, -3 * std, 3 * std, generator=generator)
    else:
        nn.init.normal_(full, 0.0, std, generator=generator)
    if isinstance(parameter, DTensor):
        full = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(full)
