"""Is the arithmetic true? Counts of the published sizes, of nets built on the meta device, and counted FLOPs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lit_llada.backbone.config import SIZES, BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError

# papers: total, non-embedding, active with one vocabulary matrix
PUBLISHED = {
    "1b": (1_487_243_264, 969_246_720, None),
    "8b": (8_015_581_184, 6_979_588_096, None),
    "moe_7b_a1b": (7_356_880_896, 6_713_055_232, 1_397_823_488),
}
ARM_7B = BackboneConfig(
    vocab_size=126_464, d_model=4096, n_layers=28, n_heads=32, n_kv_heads=8, ff_dim=13_440, causal=True
)


def built(config: BackboneConfig) -> Backbone:
    with torch.device("meta"):
        return Backbone(config)


def numel(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def met_by_a_token(net: Backbone) -> int:
    """All but the experts beyond the chosen ones, and one vocabulary matrix."""
    c = net.config
    idle = sum(
        (c.n_experts - c.experts_per_token) * p[0].numel() for p in net.parameters() if p.ndim == 3
    )  # only experts are stacked
    return numel(net) - idle - (0 if net.head is None else net.embed.weight.numel())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    total, inner, active = PUBLISHED[name]
    config, net = SIZES[name], built(SIZES[name])
    assert config.parameter_count() == numel(net) == total
    assert config.non_embedding_parameters() == numel(net.blocks) + numel(net.norm) == inner
    if active is not None:
        assert config.parameter_count(active=True) == met_by_a_token(net) == active


def test_published_counts_of_variants() -> None:
    assert SIZES["moe_7b_a1b"].non_embedding_parameters(active=True) == 1_075_910_656
    assert ARM_7B.non_embedding_parameters() == 5_798_858_752
    assert ARM_7B.parameter_count() == numel(built(ARM_7B)) == 6_834_851_840
    assert numel(built(SIZES["8b"]).blocks[0]) == 218_112_000


@pytest.mark.parametrize("name", SIZES)
def test_every_size_counts_what_it_builds(name: str) -> None:
    config = SIZES[name] if SIZES[name].vocab_size else replace(SIZES[name], vocab_size=258)
    net = built(config)
    assert config.parameter_count() == numel(net)
    assert config.parameter_count(active=True) == met_by_a_token(net)


def test_the_two_demos_have_the_same_active_width() -> None:
    dense, sparse = SIZES["demo"], SIZES["moe_demo"]
    assert sparse.experts_per_token * sparse.expert_dim == dense.ff_dim
    router = 2 * sparse.d_model * sparse.n_experts * sparse.n_layers
    norms = 2 * 2 * sparse.head_width * sparse.n_layers
    dense, sparse = replace(dense, vocab_size=258), replace(sparse, vocab_size=258)
    assert sparse.flops_per_token(256) == dense.flops_per_token(256) + router + norms


@st.composite
def configs(draw: st.DrawFn) -> BackboneConfig:
    kv_heads, group, head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))
    own_width = draw(st.booleans())
    layers, sparse = draw(st.integers(1, 3)), draw(st.booleans())
    experts = draw(st.integers(1, 5)) if sparse else 0
    flag = st.booleans()
    return BackboneConfig(
        vocab_size=draw(st.integers(1, 40)),
        d_model=draw(st.integers(1, 30)) if own_width else head * group * kv_heads,
        n_layers=layers,
        n_heads=group * kv_heads,
        n_kv_heads=None if group == 1 and draw(flag) else kv_heads,
        head_dim=head if own_width else None,
        ff_dim=draw(st.integers(1, 20)),
        n_experts=experts,
        experts_per_token=draw(st.integers(1, max(experts, 1))),
        expert_dim=draw(st.integers(1, 9)),
        shared_expert_dim=draw(st.integers(0, 5)),
        dense_layers=draw(st.lists(st.integers(0, layers - 1), unique=True)),
        expert_bias=draw(flag),
        causal=draw(flag),
        qk_norm=draw(st.sampled_from(["none", "head", "width"])),
        tie_embeddings=draw(flag),
        qkv_bias=draw(flag),
        bias=draw(flag),
    )


@given(configs())
@settings(max_examples=200)
def test_arithmetic_equals_the_net(config: BackboneConfig) -> None:
    net = built(config)
    assert config.parameter_count() == numel(net)
    assert config.parameter_count(active=True) == met_by_a_token(net)
    assert config.non_embedding_parameters() == numel(net.blocks) + numel(net.norm)


@given(configs())
@settings(max_examples=10)
@torch.no_grad()
def test_what_is_accepted_runs(config: BackboneConfig) -> None:
    logits = Backbone(config).double()(torch.zeros(2, 3, dtype=torch.long))
    assert logits.shape == (2, 3, config.vocabulary) and logits.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"d_model": 0}, "d_model"),
        ({"n_layers": 0}, "n_layers"),
        ({"n_heads": 0}, "n_heads"),
        ({"ff_dim": -1}, "ff_dim"),
        ({"n_heads": 3}, "n_heads"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"n_kv_heads": 0}, "n_kv_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 7}, "rotated width"),
        ({"rope_fraction": 1.5}, "rope_fraction"),
        ({"n_experts": -1}, "n_experts"),
        ({"n_experts": 4, "expert_dim": 8, "experts_per_token": 5}, "experts_per_token"),
        ({"n_experts": 4, "expert_dim": 8, "experts_per_token": 0}, "experts_per_token"),
        ({"n_experts": 4}, "expert_dim"),
        ({"n_experts": 4, "expert_dim": 8, "shared_expert_dim": -1}, "shared_expert_dim"),
        ({"dense_layers": [6]}, "dense_layers"),
        ({"dense_layers": [-1]}, "dense_layers"),
    ],
)
def test_bad_shapes_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as refusal:
        BackboneConfig(**fields)
    assert "\n" not in str(refusal.value)


def test_a_missing_vocabulary_is_refused_by_name() -> None:
    for ask in (BackboneConfig().parameter_count, lambda: BackboneConfig().vocabulary, lambda: built(BackboneConfig())):
        with pytest.raises(UserError, match="vocab_size"):
            ask()


SPARSE = {"n_experts": 6, "expert_dim": 16, "experts_per_token": 2, "shared_expert_dim": 8, "dense_layers": [1]}


@pytest.mark.parametrize(
    ("share", "options"),
    [
        (1.0, {}),
        (1.0, {"n_kv_heads": 1, "head_dim": 10}),
        (1.0, {"tie_embeddings": True}),
        (1.0, SPARSE),
        (0.25, SPARSE),  # a dense last block does less than its share: it skips the positions that nobody asked for
    ],
)
@torch.no_grad()
def test_flops_equal_the_counted_ones(options: dict[str, Any], share: float) -> None:
    config = BackboneConfig(vocab_size=50, d_model=32, n_layers=3, n_heads=4, ff_dim=64, **options)
    net, tokens = Backbone(config, "eager").double(), torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(tokens, positions=torch.arange(int(share * tokens.numel())))
    norms = sum(p.numel() for p in net.parameters() if p.ndim == 1)  # counted as two operations each, and no product
    assert config.flops_per_token(16, share) * tokens.numel() == counter.get_total_flops() + 2 * norms * tokens.numel()


def test_training_costs_three_forward_passes() -> None:
    config = BackboneConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, ff_dim=64)
    net, tokens = Backbone(config, "eager").double(), torch.zeros(2, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(tokens).sum().backward()
    assert 3 * config.flops_per_token(16, 1.0) * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_causal_attention_costs_half() -> None:
    config = BackboneConfig(vocab_size=50)
    attention = config.flops_per_token(512) - config.flops_per_token(0)
    causal = replace(config, causal=True)
    assert causal.flops_per_token(512) - causal.flops_per_token(0) == attention / 2
