"""Do the sorted, grouped experts compute what a loop over tokens does, forward and backward? And the two losses."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llada.backbone import moe
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.layers import SwiGLU
from lit_llada.backbone.moe import MoE, balance_loss, expert_counts, grouped_applies, z_loss
from lit_llada.backbone.transformer import Backbone

OPTIONS = {
    "published": {},
    "renormalized": {"renormalize": True},
    "biased": {"bias": True},
    "shared": {"shared_hidden": 24},
    "all": {"renormalize": True, "bias": True, "shared_hidden": 24},
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}


def make_moe(dtype: torch.dtype = torch.float64, *, width: int = 16, hidden: int = 8, k: int = 2, **options) -> MoE:
    layer = MoE(width, hidden, 6, k, **{"renormalize": False, "bias": False, "shared_hidden": 0, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, parameter.shape[-2] ** -0.5)
        if layer.expert_bias is not None:
            layer.expert_bias.copy_(torch.linspace(0.4, -0.1, 6))
    return layer.to(dtype)


def by_loops(layer: MoE, x: Tensor, logits: Tensor) -> Tensor:
    """The definition, token by token and expert by expert; the choice is made from the given logits."""
    rows = []
    for token, scores in zip(x.flatten(0, -2), logits, strict=True):
        p = scores.softmax(-1)
        if layer.expert_bias is not None:
            p = p + layer.expert_bias.to(p.dtype)
        chosen = sorted(range(len(p)), key=lambda e: -p[e].item())[: layer.k]
        total = sum(p[e] for e in chosen) if layer.renormalize else 1.0
        row = torch.zeros_like(token)
        for e in chosen:
            gate, up = (token @ layer.gate_up[e]).chunk(2)
            row = row + p[e] / total * ((F.silu(gate) * up) @ layer.down[e])
        rows.append(row if layer.shared is None else row + layer.shared(token))
    return torch.stack(rows).view(x.shape)


def compare_with_loops(layer: MoE, tokens: Tensor, tolerance: float) -> None:
    """Output and the gradient of every weight, of the router and of the input; relative to the largest entry."""
    wide = make_moe(
        torch.promote_types(tokens.dtype, torch.float32),
        width=tokens.shape[-1],
        hidden=layer.down.shape[1],
        k=layer.k,
        renormalize=layer.renormalize,
        bias=layer.expert_bias is not None,
        shared_hidden=layer.shared.down.in_features if layer.shared is not None else 0,
    )
    wide.load_state_dict(layer.state_dict())
    direction = torch.randn_like(tokens)
    x, wide_x = (t.detach().clone().requires_grad_() for t in (tokens, tokens.to(wide.down.dtype)))
    out, logits = layer(x)
    # In bfloat16 the logits are rounded: hand the loop the same ones, yet let their gradient reach its router.
    wide_logits = wide.router(wide_x).flatten(0, -2)
    wide_logits = wide_logits + (logits.to(wide_logits.dtype) - wide_logits).detach()
    expected = by_loops(wide, wide_x, wide_logits)
    assert out.dtype == tokens.dtype and logits.shape == (tokens.shape[:-1].numel(), 6)
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    pairs = {"out": (out, expected), "x": (x.grad, wide_x.grad)}
    pairs |= {name: (a.grad, b.grad) for (name, a), b in zip(layer.named_parameters(), wide.parameters(), strict=True)}
    for name, (got, want) in pairs.items():
        assert got is not None and want is not None, name
        error = (got.to(want.dtype) - want).abs().max() / want.abs().max().clamp(min=0.1)  # k 1 renormalised: a true 0
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize(
    ("grouped", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32), (False, torch.float64)],
)
def test_equals_the_loop(
    grouped: bool, dtype: torch.dtype, k: int, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_moe(dtype, k=k, **OPTIONS[options])
    if grouped:
        assert grouped_applies(layer.gate_up, layer.down)
    monkeypatch.setattr(moe, "grouped_applies", lambda *weights: grouped)
    compare_with_loops(layer, torch.randn(2, 9, 16).to(dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "hidden"), [(16, 1), (16, 2), (16, 4), (16, 6), (16, 12), (10, 8), (12, 8), (7, 5)])
def test_any_width_runs(width: int, hidden: int, dtype: torch.dtype) -> None:
    compare_with_loops(
        make_moe(dtype, width=width, hidden=hidden), torch.randn(2, 9, width).to(dtype), TOLERANCES[dtype]
    )


def test_grouped_applies_where_it_pays() -> None:
    wide = torch.empty(4, 256, 512, dtype=torch.bfloat16, device="meta"), torch.empty(4, 256, 256, device="meta")
    assert grouped_applies(*wide)
    assert not grouped_applies(wide[0].double())
    assert not grouped_applies(torch.empty(4, 8, 12, dtype=torch.bfloat16))
    assert not grouped_applies(torch.empty(4, 12, 8, dtype=torch.bfloat16))


def crowd(layer: MoE) -> Tensor:
    """Tokens that all want experts 0 and 1, most of them."""
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:2] = torch.tensor([[6.0], [5.0]])
    return torch.rand(3, 40, 16).to(layer.down.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_token_is_dropped_and_idle_experts_get_no_gradient(dtype: torch.dtype) -> None:
    layer = make_moe(dtype)
    x = crowd(layer)
    out, logits = layer(x)
    assert expert_counts(layer._route(logits)[1], 6).tolist() == [120, 120, 0, 0, 0, 0]
    assert (out != 0).any(-1).all()
    compare_with_loops(layer, x, TOLERANCES[dtype])
    for weight in (layer.gate_up, layer.down):
        assert weight.grad is not None
        assert weight.grad[:2].abs().amin(-1).gt(0).any() and not weight.grad[2:].any()


def test_bias_acts_in_the_choice_and_in_the_weights() -> None:
    layer = make_moe(bias=True)
    assert layer.expert_bias is not None
    layer.expert_bias.copy_(torch.tensor([0, 0, 0, 0, 2.0, 3.0]))
    logits = torch.randn(7, 6).double()
    weights, chosen = layer._route(logits)
    assert chosen.tolist() == [[5, 4]] * 7
    torch.testing.assert_close(weights, logits.softmax(-1)[:, [5, 4]] + torch.tensor([3.0, 2.0]))
    assert "expert_bias" not in dict(layer.named_parameters()) and "expert_bias" in layer.state_dict()


@pytest.mark.parametrize("renormalize", [False, True])
def test_weights_sum_to_one_only_when_asked(renormalize: bool) -> None:
    total = make_moe(renormalize=renormalize)._route(torch.randn(20, 6).double())[0].sum(-1)
    assert torch.allclose(total, torch.ones(20).double()) if renormalize else (total < 1).all()


def test_autocast_on_a_cpu() -> None:
    layer = make_moe(torch.float32, shared_hidden=24)
    x = torch.randn(2, 9, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out, logits = layer(x)
        out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    with torch.no_grad():
        expected = by_loops(layer, x, logits.float())
    assert (out - expected).abs().max() < 2e-2 * expected.abs().max()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters()
    )


@torch.no_grad()
def test_dense_layers_stay_dense() -> None:
    fields = {"d_model": 16, "n_layers": 3, "n_heads": 2, "ff_dim": 24, "n_experts": 6, "expert_dim": 8}
    net = Backbone(BackboneConfig(vocab_size=11, dense_layers=[0], **fields))
    assert [type(block.mlp) for block in net.blocks] == [SwiGLU, MoE, MoE]
    _, router = net.hidden(torch.zeros(2, 5, dtype=torch.long))
    assert router is not None and router.shape == (2, 10, 6)
    dense = Backbone(BackboneConfig(vocab_size=11, dense_layers=[0, 1, 2], **fields))
    assert dense.hidden(torch.zeros(2, 5, dtype=torch.long))[1] is None


# --- counts and losses ---


@given(st.lists(st.integers(0, 6), max_size=30))
@settings(max_examples=50)
def test_expert_counts(visits: list[int]) -> None:
    seen = Counter(visits)
    counts = expert_counts(torch.tensor(visits, dtype=torch.long), 7)
    assert counts.dtype == torch.int64 and counts.tolist() == [seen[e] for e in range(7)]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_balance_loss_is_k_when_balanced(k: int) -> None:
    turns = torch.stack([torch.arange(8).roll(i) for i in range(8)]).double()  # every expert is each rank's once
    torch.testing.assert_close(balance_loss(turns.repeat(2, 1, 1), k), torch.tensor(float(k)).double())


def test_balance_loss_of_a_collapsed_router_approaches_the_number_of_experts() -> None:
    logits = torch.zeros(2, 5, 8).double()
    logits[..., 3] = 50
    torch.testing.assert_close(balance_loss(logits, 1), torch.tensor(8.0).double())


@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.data())
@settings(max_examples=25)
def test_losses_equal_their_definitions(layers: int, tokens: int, experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, experts))
    logits = torch.randn(layers, tokens, experts, dtype=torch.float64)
    share, mean, squares = [0.0] * experts, [0.0] * experts, 0.0
    everyone = [row.tolist() for row in logits.flatten(0, 1)]
    for row in everyone:
        z = math.log(sum(math.exp(s) for s in row))
        squares += z * z / len(everyone)
        for e in range(experts):
            mean[e] += math.exp(row[e] - z) / len(everyone)
            share[e] += (e in sorted(range(experts), key=lambda i: -row[i])[:k]) / len(everyone)
    expected = experts * sum(s * q for s, q in zip(share, mean, strict=True))
    assert balance_loss(logits, k).item() == pytest.approx(expected, rel=1e-12)
    assert z_loss(logits).item() == pytest.approx(squares, rel=1e-12)


def test_losses_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.randn(2, 50, 8).bfloat16()
    for loss in (balance_loss(logits, 2), z_loss(logits)):
        assert loss.dtype == torch.float32
    torch.testing.assert_close(balance_loss(logits, 2), balance_loss(logits.float(), 2))
    torch.testing.assert_close(z_loss(logits), z_loss(logits.float()))


def test_balance_loss_pushes_towards_balance() -> None:
    logits = torch.randn(2, 64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits[..., 0] += 2
    logits.requires_grad_()
    balance_loss(logits, 2).backward()
    assert logits.grad is not None and logits.grad[..., 0].sum() > 0 > logits.grad[..., 1:].sum()
