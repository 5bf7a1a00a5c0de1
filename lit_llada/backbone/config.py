"""The architecture: one dataclass for both families, the named sizes, and parameter and FLOP arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from lit_llada.errors import UserError


@dataclass
class BackboneConfig:
    """The architecture of a bidirectional pre-norm Transformer, dense (LLaDA) or sparse (LLaDA-MoE).

    A layer is a mixture of experts when ``n_experts > 0`` and its number is not in ``dense_layers``.

    Args:
        vocab_size: rows of the embedding and of the head; None takes the size of the data's tokenizer.
        d_model: width D of the residual stream.
        n_layers: number of blocks.
        n_heads: query heads H.
        n_kv_heads: key/value heads K, a divisor of H (grouped-query attention); None means H.
        head_dim: width of one head; None means D / H.
        ff_dim: width of the dense SwiGLU.
        n_experts: experts E of a sparse layer; 0 makes the net dense.
        experts_per_token: experts k that each token visits.
        expert_dim: SwiGLU width of one expert.
        shared_expert_dim: width of an expert that every token visits; 0 for none.
        dense_layers: numbers of the layers that stay dense in a sparse net.
        renormalize_experts: divide the k router weights by their sum (LLaDA-MoE does not).
        expert_bias: a per-expert bias on the router's probabilities, in the choice and in the weights.
        causal: attend to the past only: the autoregressive baseline.
        qk_norm: RMSNorm of queries and keys before the rotation: per head, over the whole width, or none.
        tie_embeddings: the head is the embedding matrix.
        qkv_bias: biases on the query, key and value projections.
        bias: biases on every linear map outside experts and router.
        norm_eps: epsilon of every RMSNorm.
        rope_theta: base of the rotary embedding.
        rope_fraction: share of each head that rotates, from its first dimension on.
        rope_full_precision: rotate in float32 (LLaDA) or in the working dtype (LLaDA-MoE).
        init: "mitchell" (truncated normal, 1/sqrt(fan-in), residual outputs damped by depth) or "normal".
        init_std: standard deviation of the "normal" scheme.
    """

    vocab_size: int | None = None
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int | None = None
    head_dim: int | None = None
    ff_dim: int = 768
    n_experts: int = 0
    experts_per_token: int = 2
    expert_dim: int = 0
    shared_expert_dim: int = 0
    dense_layers: list[int] = field(default_factory=list)
    renormalize_experts: bool = False
    expert_bias: bool = False
    causal: bool = False
    qk_norm: Literal["none", "head", "width"] = "none"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    bias: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_fraction: float = 1.0
    rope_full_precision: bool = True
    init: Literal["mitchell", "normal"] = "mitchell"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built, by the name of the field.

        Raises:
            UserError: a size that is not positive, or does not divide where it must.
        """
        least = dict.fromkeys(("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ff_dim"), 1)
        for name, bound in (least | {"n_experts": 0, "shared_expert_dim": 0}).items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"backbone.{name} is {value}; it must be at least {bound}")
        if not 0 <= self.rope_fraction <= 1:
            raise UserError(f"backbone.rope_fraction is {self.rope_fraction}; it must lie in 0..1")
        if self.head_dim is None and self.d_model % self.n_heads:
            raise UserError(f"backbone.d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.kv_heads:
            raise UserError(f"backbone.n_heads {self.n_heads} is not a multiple of n_kv_heads {self.kv_heads}")
        if self.rotary_dim % 2:
            raise UserError(f"backbone: the rotated width of a head is {self.rotary_dim}; it must be even")
        if self.n_experts and not 1 <= self.experts_per_token <= self.n_experts:
            raise UserError(
                f"backbone.experts_per_token {self.experts_per_token} must lie in 1..n_experts ({self.n_experts})"
            )
        if self.n_experts and self.expert_dim < 1:
            raise UserError("backbone.expert_dim is 0; a net with experts needs their width")
        if any(not 0 <= layer < self.n_layers for layer in self.dense_layers):
            raise UserError(f"backbone.dense_layers {self.dense_layers} names a layer outside 0..{self.n_layers - 1}")

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def rotary_dim(self) -> int:
        return int(self.head_width * self.rope_fraction)

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer is a mixture of experts."""
        return self.n_experts > 0 and layer not in self.dense_layers

    def _attention_parameters(self) -> int:
        d, q, kv = self.d_model, self.n_heads * self.head_width, self.kv_heads * self.head_width
        norms = {"none": 0, "head": 2 * self.head_width, "width": q + kv}[self.qk_norm]
        biases = (q + 2 * kv if self.qkv_bias or self.bias else 0) + (d if self.bias else 0)
        return d * (q + 2 * kv) + q * d + norms + biases

    def _mlp_parameters(self, layer: int, *, active: bool) -> int:
        d = self.d_model
        if not self.is_sparse(layer):
            return 3 * d * self.ff_dim + (2 * self.ff_dim + d if self.bias else 0)
        experts = self.experts_per_token if active else self.n_experts
        return 3 * d * (experts * self.expert_dim + self.shared_expert_dim) + d * self.n_experts

    def non_embedding_parameters(self, *, active: bool = False) -> int:
        """Parameters of the blocks and the last norm; with ``active`` only those that one token meets."""
        blocks = sum(
            self._attention_parameters() + self._mlp_parameters(i, active=active) + 2 * self.d_model
            for i in range(self.n_layers)
        )
        return blocks + self.d_model

    def parameter_count(self, *, active: bool = False) -> int:
        """All parameters; with ``active`` those that one token meets, with one vocabulary matrix (the papers' count).

        Raises:
            UserError: the vocabulary is not set yet.
        """
        matrices = 1 if self.tie_embeddings or active else 2
        bias = self.vocabulary if self.bias and not self.tie_embeddings else 0
        return self.non_embedding_parameters(active=active) + matrices * self.vocabulary * self.d_model + bias

    @property
    def vocabulary(self) -> int:
        """``vocab_size``, once it is known."""
        if self.vocab_size is None:
            raise UserError("backbone.vocab_size is not set; give it, or give data whose tokenizer tells it")
        return self.vocab_size

    def flops_per_token(self, length: int, head_share: float = 0.5) -> float:
        """Floating-point operations of one token's forward pass at sequence length ``length``.

        Two per active weight, plus attention's ``4 L H h``; ``head_share`` is the part of the tokens that meet the
        vocabulary (masked ones only: one half on average for t ~ U[0, 1)). A training step costs three times as much.
        """
        attention = 4 * length * self.n_heads * self.head_width * self.n_layers
        if self.causal:
            attention //= 2
        matmuls = 2 * self.non_embedding_parameters(active=True) + 2 * head_share * self.vocabulary * self.d_model
        return float(matmuls + attention)


_LLADA_8B = BackboneConfig(vocab_size=126_464, d_model=4096, n_layers=32, n_heads=32, ff_dim=12_288)

SIZES: dict[str, BackboneConfig] = {
    # The embedded demo: minutes on two CPU cores, bytes as tokens. The sparse one has the same active width.
    "demo": BackboneConfig(d_model=192, n_layers=4, n_heads=3, ff_dim=512, rope_theta=10_000.0),
    "moe_demo": BackboneConfig(
        d_model=192, n_layers=4, n_heads=3, ff_dim=512, n_experts=8, experts_per_token=2, expert_dim=256,
        qk_norm="head", rope_theta=10_000.0,
    ),
    # A ladder for scaling studies, shaped like the smallest SMDM ones (6M, 19M, 85M, 302M without embeddings).
    "6m": BackboneConfig(d_model=256, n_layers=6, n_heads=4, ff_dim=1024),
    "19m": BackboneConfig(d_model=384, n_layers=8, n_heads=6, ff_dim=1536),
    "113m": BackboneConfig(d_model=768, n_layers=12, n_heads=12, ff_dim=3072),
    "336m": BackboneConfig(d_model=1024, n_layers=20, n_heads=16, ff_dim=4096),
    # Published: LLaDA (2502.09992, Table 5) and LLaDA-MoE (2509.24389).
    "1b": BackboneConfig(vocab_size=126_464, d_model=2048, n_layers=22, n_heads=32, n_kv_heads=4, ff_dim=5634),
    "8b": _LLADA_8B,
    "moe_7b_a1b": BackboneConfig(
        vocab_size=157_184, d_model=2048, n_layers=16, n_heads=16, ff_dim=8192, n_experts=64, experts_per_token=8,
        expert_dim=1024, qk_norm="head", rope_theta=50_000.0, rope_full_precision=False, init="normal",
    ),
    # Shaped like iLLaDA-8B (2606.25331): LLaDA's width with grouped queries and a tied head.
    "illada_8b": replace(_LLADA_8B, n_kv_heads=8, ff_dim=14_336, tie_embeddings=True),
}  # fmt: skip
