"""Does the sparse net compute what the dense one does, and do its experts part ways once it trains?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.moe import balance_loss, expert_counts, z_loss
from lit_llada.backbone.transformer import Backbone
from lit_llada.backbone.upcycle import upcycle
from lit_llada.errors import UserError
from lit_llada.training.optimizers import make_optimizer

CONFIG = BackboneConfig(vocab_size=61, d_model=32, n_layers=3, n_heads=4, ff_dim=48)
EXPERTS, K = 8, 2
# Of the largest logit. The second is that of bfloat16 itself.
TOLERANCES = {torch.float32: 4e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2}


def make_net(dtype: torch.dtype = torch.float32, **changes) -> Backbone:
    return Backbone(replace(CONFIG, **changes)).to(dtype)


def make_tokens() -> Tensor:
    return torch.randint(0, 61, (4, 24))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 2, "qk_norm": "head", "qkv_bias": True},
        {"tie_embeddings": True, "init": "normal", "init_std": 0.1},
    ],
    ids=["plain", "grouped", "tied"],
)
@torch.no_grad()
def test_the_same_function_before_the_first_step(changes: dict, renormalize: bool, dtype: torch.dtype) -> None:
    net, tokens = make_net(dtype, **changes), make_tokens()
    sparse = upcycle(net, EXPERTS, K, renormalize=renormalize)
    expected, logits = net(tokens), sparse(tokens)
    assert logits.dtype == dtype and not sparse.training
    assert (logits - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()
    # Not because the MLPs do nothing.
    for block in net.blocks:
        block.mlp.down.weight.zero_()
    assert (net(tokens) - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("renormalize", [False, True])
@torch.no_grad()
def test_tokens_go_to_many_experts_at_once(renormalize: bool, dtype: torch.dtype) -> None:
    sparse = upcycle(make_net(dtype), EXPERTS, K, renormalize=renormalize)
    _, router = sparse.hidden(make_tokens())
    for logits in router:
        p = logits.to(torch.promote_types(dtype, torch.float32)).softmax(-1)
        chosen = expert_counts(p.topk(K).indices, EXPERTS) > 0
        assert chosen.sum() > EXPERTS / 2  # by a router of zeros K of them
    assert not torch.equal(router[0].topk(K).indices, router[1].topk(K).indices), "each layer has a router of its own"


@pytest.mark.parametrize("renormalize", [False, True])
def test_experts_part_ways_in_training(renormalize: bool) -> None:
    sparse = upcycle(make_net(), EXPERTS, K, renormalize=renormalize).train()
    down = sparse.blocks[1].mlp.down
    assert all(torch.equal(down[0], expert) for expert in down)
    optimizer, tokens = make_optimizer(sparse, "adamw", 1e-3, 0.1, (0.9, 0.95)), make_tokens()
    losses = []
    for _ in range(10):
        nll, router = sparse.nll(tokens, tokens, torch.arange(tokens.numel()))
        assert balance_loss(router, K).isfinite() and z_loss(router).isfinite()
        loss = nll.mean() + 0.01 * balance_loss(router, K)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for block in sparse.blocks:
        for weight in (block.mlp.gate_up, block.mlp.down, block.mlp.router.weight[:, None]):
            apart = torch.cdist(weight.flatten(1), weight.flatten(1)) / weight.norm(dim=(1, 2)).mean()
            assert apart[~torch.eye(EXPERTS, dtype=torch.bool)].min() > 1e-3


def test_parameters_are_those_that_the_config_counts() -> None:
    sparse = upcycle(make_net(), EXPERTS, K)
    config = sparse.config
    assert sum(p.numel() for p in sparse.parameters()) == config.parameter_count()
    assert (config.n_experts, config.experts_per_token, config.expert_dim) == (EXPERTS, K, CONFIG.ff_dim)
    assert not config.renormalize_experts and upcycle(make_net(), 4, 1, renormalize=True).config.renormalize_experts
    assert all(p.requires_grad for p in sparse.parameters())


@torch.no_grad()
def test_some_layers_may_stay_dense() -> None:
    net, tokens = make_net(torch.float64), make_tokens()
    sparse = upcycle(net, EXPERTS, K, dense_layers=[0, 2])
    assert [sparse.config.is_sparse(i) for i in range(3)] == [False, True, False]
    assert torch.equal(sparse.blocks[0].mlp.down.weight, net.blocks[0].mlp.down.weight)
    torch.testing.assert_close(sparse(tokens), net(tokens), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_the_dense_net_is_left_alone() -> None:
    net, tokens = make_net(), make_tokens()
    before = net(tokens)
    sparse = upcycle(net, EXPERTS, K)
    for parameter in sparse.parameters():
        parameter.zero_()
    assert torch.equal(net(tokens), before) and net.training


def test_the_seed_decides_the_router() -> None:
    net = make_net()
    first, again, other = (upcycle(net, EXPERTS, K, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], other[name])} == {
        f"blocks.{i}.mlp.router.weight" for i in range(3)
    }


@pytest.mark.parametrize(
    ("changes", "numbers", "options", "words"),
    [
        ({"bias": True}, (8, 2), {}, "bias is true"),
        ({"n_experts": 4, "expert_dim": 8}, (8, 2), {}, "has 4 experts already"),
        ({}, (0, 1), {}, "n_experts is 0"),
        ({}, (4, 5), {}, "experts_per_token 5 must lie in 1..n_experts"),
        ({}, (4, 2), {"dense_layers": [3]}, "names a layer outside"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(changes: dict, numbers: tuple, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        upcycle(make_net(**changes), *numbers, **options)
