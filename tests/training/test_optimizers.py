"""Which parameter decays, which one is Muon's, and does a saved optimiser go on as if nothing had happened?"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from lit_llada.training.optimizers import MuonWithAdamW, OptimizerName, make_optimizer

NAMES: list[OptimizerName] = ["adamw", "muon"]


def make_net() -> Backbone:
    fields: dict[str, Any] = {"bias": True, "qk_norm": "head", "n_experts": 3, "expert_dim": 8, "dense_layers": [0]}
    fields |= {"expert_bias": True, "shared_expert_dim": 4}
    net = Backbone(BackboneConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, ff_dim=12, **fields))
    net.init_weights(seed=3)
    return net


def make(net: nn.Module, name: OptimizerName, lr: float = 1e-2) -> Optimizer:
    return make_optimizer(net, name, lr, 0.1, (0.9, 0.95))


def train(net: Backbone, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net.nll(tokens, tokens.flip(1), torch.arange(12))[0].mean().backward()
        optimizer.step()


def members(net: nn.Module, optimizer: Optimizer) -> list[dict[str, dict[str, Any]]]:
    """Each group as name -> options."""
    names = {id(p): name for name, p in net.named_parameters()}
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return [
        {names[id(p)]: o for p in group["params"]} for group, o in zip(optimizer.param_groups, options, strict=True)
    ]


def equal_nets(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_once_and_norms_and_biases_do_not_decay(name: OptimizerName) -> None:
    net = make_net()
    groups = members(net, make(net, name))
    assert sorted(key for group in groups for key in group) == sorted(dict(net.named_parameters()))
    for key, options in (item for group in groups for item in group.items()):
        spared = "norm" in key or key.endswith("bias")
        assert options["weight_decay"] == (0.0 if spared else 0.1), key
        assert spared == (net.get_parameter(key).ndim == 1)
        assert options["lr"] == 1e-2


def test_muon_gets_the_matrices_inside_the_blocks() -> None:
    net = make_net()
    optimizer = make(net, "muon")
    muon = {key for group in members(net, optimizer) for key, options in group.items() if options["muon"]}
    expected = {key for key, p in net.named_parameters() if key.startswith("blocks.") and p.ndim > 1}
    assert muon == expected - {"blocks.1.mlp.router.weight"}
    assert len(muon) == 2 * 2 + 2 + 2 + 2  # two attentions, one dense mlp, the experts, a shared expert


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_are_left_out(name: OptimizerName) -> None:
    net = make_net()
    net.embed.requires_grad_(False)
    assert "embed.weight" not in {key for group in members(net, make(net, name)) for key in group}


def test_muon_without_a_matrix_is_refused() -> None:
    net = make_net()
    net.blocks.requires_grad_(False)
    with pytest.raises(UserError, match="muon"):
        make(net, "muon")


def test_adamw_step_equals_torch() -> None:
    ours, theirs = make_net(), make_net()
    spared = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": [p for p in theirs.parameters() if p.ndim > 1]}, {"params": spared, "weight_decay": 0.0}]
    plain = AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    train(ours, make(ours, "adamw"), range(3))
    train(theirs, plain, range(3))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_muon_step_equals_its_two_halves() -> None:
    ours, theirs = make_net(), make_net()
    optimizer = make(ours, "muon")
    inner = {key for group in members(ours, optimizer) for key, options in group.items() if options["muon"]}
    matrices = [p for key, p in theirs.named_parameters() if key in inner and p.ndim == 2]
    stacks = [p for p in theirs.parameters() if p.ndim == 3]
    experts = [nn.Parameter(p.detach()[e]) for p in stacks for e in range(len(p))]  # views of the same numbers
    others = [p for key, p in theirs.named_parameters() if key not in inner]
    muon = Muon([*matrices, *experts], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    split = [{"params": [p for p in others if p.ndim > 1]}, {"params": [p for p in others if p.ndim == 1]}]
    split[1]["weight_decay"] = 0.0
    adamw = AdamW(split, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    train(ours, optimizer, range(3))

    class Both:
        def zero_grad(self) -> None:
            theirs.zero_grad()

        def step(self) -> None:
            for expert, grad in zip(experts, (g for p in stacks for g in p.grad), strict=True):
                expert.grad = grad
            muon.step()
            adamw.step()

    train(theirs, Both(), range(3))  # type: ignore[arg-type]
    assert equal_nets(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_optimiser_goes_on_bit_by_bit(name: OptimizerName) -> None:
    net = make_net()
    optimizer = make(net, name)
    train(net, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(net, optimizer, range(3, 6))

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = make_net()
    again.load_state_dict(state["net"])
    resumed = make(again, name, lr=0.5)  # the saved rate wins here; the module sets it anew before each step
    resumed.load_state_dict(state["optimizer"])
    assert {group["lr"] for group in resumed.param_groups} == {1e-2}
    train(again, resumed, range(3, 6))
    assert equal_nets(net, again)

    fresh = make_net()
    fresh.load_state_dict(state["net"])
    train(fresh, make(fresh, name), range(3, 6))
    assert not equal_nets(net, fresh)  # without the state it is another run


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_set_on_the_groups_counts(name: OptimizerName) -> None:
    net = make_net()
    before, optimizer = copy.deepcopy(net), make(net, name)
    train(net, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    middle = copy.deepcopy(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(net, optimizer, range(1, 2))
    assert equal_nets(net, middle) and not equal_nets(net, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_run_with_gradients(name: OptimizerName) -> None:
    net = make_net()
    optimizer, tokens = make(net, name), torch.zeros(1, 4, dtype=torch.long)

    def closure() -> torch.Tensor:
        loss = net.nll(tokens, tokens, torch.arange(4))[0].mean()
        loss.backward()
        return loss

    with torch.no_grad():
        before = copy.deepcopy(net)
        assert optimizer.step(closure).requires_grad
    assert not equal_nets(net, before)


def test_one_state_dict_holds_both_halves() -> None:
    net = make_net()
    optimizer = make(net, "muon")
    assert isinstance(optimizer, MuonWithAdamW)
    train(net, optimizer, range(1))
    assert len(optimizer.state_dict()["state"]) == len(list(net.parameters()))
    assert all("momentum_buffer" in s or "exp_avg_sq" in s for s in optimizer.state.values())
