"""The net as a whole: are its two ways out the same function, and does it start, round and train as it says?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone

KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "gqa_tied": {"n_kv_heads": 2, "qk_norm": "width", "tie_embeddings": True},
    "biased": {"bias": True, "rope_fraction": 0.5},
    "moe": {
        "n_experts": 5,
        "experts_per_token": 2,
        "expert_dim": 12,
        "shared_expert_dim": 8,
        "expert_bias": True,
        "qk_norm": "head",
        "dense_layers": [0],
        "init": "normal",
    },
}
SMALL, LARGE = 50, 2048


def config(kind: str = "dense", vocabulary: int = SMALL, **fields: Any) -> BackboneConfig:
    base = {"d_model": 16, "n_layers": 2, "n_heads": 4, "ff_dim": 24}
    return BackboneConfig(vocab_size=vocabulary, **base | KINDS[kind] | fields)


def make_net(kind: str = "dense", vocabulary: int = SMALL, **fields: Any) -> Backbone:
    return Backbone(config(kind, vocabulary, **fields)).double()


def batch(vocabulary: int = SMALL, rows: int = 2, length: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randint(0, vocabulary, (rows, length)), torch.randint(0, vocabulary, (rows, length))


def gradients(net: Backbone, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert found.keys() == dict(net.named_parameters()).keys()
    return found


# --- the two ways out ---


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_nll_is_the_cross_entropy_of_the_logits_with_its_gradients(kind: str, vocabulary: int) -> None:
    net, (noisy, targets) = make_net(kind, vocabulary), batch(vocabulary)
    mask = AttentionMask(documents=(torch.arange(7) > 3).long().expand(2, 7))
    positions = torch.tensor([0, 3, 4, 9, 13])
    weights = torch.rand(5).double()
    nll, router = net.nll(noisy, targets, positions, mask)
    plain = F.cross_entropy(net(noisy, mask).flatten(0, 1), targets.flatten(), reduction="none")[positions]
    torch.testing.assert_close(nll, plain, atol=1e-12, rtol=1e-12)
    loss, again, _ = net.weighted_nll(noisy, targets, positions, weights, mask)
    torch.testing.assert_close((loss, again), ((plain * weights).sum(), plain), atol=1e-12, rtol=1e-12)
    theirs = gradients(net, (plain * weights).sum())
    for ours in (gradients(net, (nll * weights).sum()), gradients(net, loss)):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    assert (router is None) == (kind != "moe")
    with torch.no_grad():  # another path of the head
        torch.testing.assert_close(net.nll(noisy, targets, positions, mask)[0], plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_selected_rows_are_those_of_all(kind: str) -> None:
    net, (tokens, _) = make_net(kind), batch()
    positions = torch.tensor([12, 0, 5, 5])
    torch.testing.assert_close(
        net(tokens, positions=positions), net(tokens).flatten(0, 1)[positions], atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_loss_and_zero_gradients(kind: str, vocabulary: int) -> None:
    net, (noisy, targets) = make_net(kind, vocabulary), batch(vocabulary)
    none = torch.zeros(0, dtype=torch.long)
    nll, _ = net.nll(noisy, targets, none)
    assert nll.shape == (0,) and net(noisy, positions=none).shape == (0, vocabulary)
    loss, again, _ = net.weighted_nll(noisy, targets, none, torch.zeros(0))
    assert again.shape == (0,) and float(loss) == 0
    for total in (nll.sum(), loss):
        assert not any(grad.any() for grad in gradients(net, total).values())
    with torch.no_grad():
        assert net.nll(noisy, targets, none)[0].shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing_and_recomputes(kind: str) -> None:
    net, (noisy, targets) = make_net(kind), batch()
    calls: list[int] = []
    net.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for net.checkpointing in (False, True):
        nll, _ = net.nll(noisy, targets, torch.arange(14))
        results.append((nll.detach(), gradients(net, nll.sum())))
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)
    assert len(calls) == 3  # once plainly, twice with recomputation
    with torch.no_grad():
        net(noisy)
    assert len(calls) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_compiled_block_by_block_is_the_same_net(kind: str) -> None:
    from lit_llada.training.sharding import compile_blocks

    net, (noisy, targets) = make_net(kind), batch()
    compiled = copy.deepcopy(net)
    compile_blocks(compiled)
    assert compiled.state_dict().keys() == net.state_dict().keys()
    both = []
    for each in (net, compiled):
        nll, _ = each.nll(noisy, targets, torch.arange(14))
        both.append((nll.detach(), gradients(each, nll.sum())))
    torch.testing.assert_close(both[0], both[1], atol=1e-10, rtol=1e-8)


@torch.no_grad()
def test_tied_embeddings_are_one_matrix() -> None:
    net, (tokens, _) = make_net("gqa_tied"), batch()
    assert net.head is None and "head.weight" not in net.state_dict()
    x = net.norm(net.hidden(tokens)[0])
    torch.testing.assert_close(net(tokens), x @ net.embed.weight.T)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_causal_net_does_not_see_the_future_and_a_bidirectional_one_does(kind: str) -> None:
    tokens, _ = batch()
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % SMALL
    for causal in (True, False):
        net = make_net(kind, causal=causal)
        moved = ((net(later) - net(tokens)).abs() > 1e-12).any(-1)
        assert moved[:, 4:].all() and moved[:, :4].all() != causal and moved[:, :4].any() != causal


@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_is_close_to_float32(kind: str, full_precision: bool) -> None:
    net, (tokens, targets) = make_net(kind, LARGE, rope_full_precision=full_precision).float(), batch(LARGE, length=33)
    positions = torch.arange(0, 66, 2)
    exact, _ = net.nll(tokens, targets, positions)
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = net.nll(tokens, targets, positions)
    assert nll.dtype == torch.float32
    assert (nll - exact).abs().mean() < 0.03 < exact.mean()
    wanted, got = gradients(net, exact.mean()), gradients(net, nll.mean())
    wanted, got = (torch.cat([g.flatten() for g in each.values()]) for each in (wanted, got))
    assert F.cosine_similarity(wanted, got, dim=0) > 0.99


# --- the start, and the way to a file and back ---


def equal(a: Backbone, b: Backbone) -> bool:
    (x, y) = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_the_start(kind: str) -> None:
    torch.manual_seed(7)
    first = Backbone(config(kind))
    torch.manual_seed(7)
    torch.randn(100)  # what was drawn before does not matter
    Backbone(config("biased"))
    second = Backbone(config(kind))
    with torch.device("meta"):
        third = Backbone(config(kind))
    third.to_empty(device="cpu")
    for tensor in third.state_dict().values():
        tensor.fill_(float("nan"))
    third.init_weights()
    assert equal(first, second) and equal(first, third)
    third.init_weights(seed=8)
    assert not torch.equal(first.embed.weight, third.embed.weight)
    third.init_weights(seed=7)
    assert equal(first, third)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_tensors_start_alike(kind: str) -> None:
    first = [p.flatten()[:8] for p in Backbone(config(kind)).parameters() if p.ndim > 1]
    signs = [tuple((x / x.norm()).tolist()) for x in first]
    assert len(set(signs)) == len(signs)


@pytest.mark.parametrize("init", ["mitchell", "normal"])
def test_standard_deviations_are_those_of_the_table(init: str) -> None:
    fields = {"d_model": 64, "ff_dim": 96, "n_experts": 8, "expert_dim": 32, "shared_expert_dim": 48, "head_dim": 24}
    c = config("biased", 300, n_layers=3, dense_layers=[1], qk_norm="head", init=init, init_std=0.03, **fields)
    net, cut = Backbone(c), 0.9866  # of a normal cut at three deviations
    widths = {"gate_up": 64, "down": 32, "shared.gate_up.weight": 64, "shared.down.weight": 48, "router.weight": 64}
    widths |= {"attn.qkv.weight": 64, "attn.out.weight": 96, "mlp.gate_up.weight": 64, "mlp.down.weight": 96}
    seen = 0
    for name, p in net.named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.full_like(p, 0.0 if name.endswith("bias") else 1.0)), name
            continue
        if init == "normal":
            std = 0.03
        elif name in ("embed.weight", "head.weight"):
            std = 64**-0.5 * cut
        else:
            key = max((k for k in widths if name.endswith(k)), key=len)
            depth = 2 * (int(name.split(".")[1]) + 1) if ".out" in key or "down" in key else 1
            std = (widths[key] * depth) ** -0.5 * cut
            assert p.abs().max() <= 3 * std / cut * 1.0001, name
        assert p.std().item() == pytest.approx(std, rel=4 / (2 * p.numel()) ** 0.5), name
        assert p.mean().abs() < 4 * std / p.numel() ** 0.5, name
        seen += 1
    assert seen == 2 + 2 * 3 + 2 + 2 * 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_net_is_about_uniform_or_at_least_sane(kind: str) -> None:
    net, (noisy, targets) = make_net(kind), batch(rows=8)
    with torch.no_grad():
        nll, _ = net.nll(noisy, targets, torch.arange(56))
    assert 3.9 - 0.3 < nll.mean() < 3.9 + 1.5  # log(50) = 3.91


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_state_dict_round_trip(kind: str, tmp_path) -> None:
    net, other, (tokens, _) = make_net(kind), make_net(kind, init_std=0.1), batch()
    other.init_weights(seed=99)
    assert not equal(net, other)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert equal(net, other) and torch.equal(net(tokens), other(tokens))
