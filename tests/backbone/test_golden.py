"""Forward passes equal the public reference implementations on its own checkpoint format (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.moe import balance_loss
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_net

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ["dense_a", "dense_gqa", "dense_tied", "moe_a", "moe_b"]


def states_of(net: Backbone, tokens: torch.Tensor, mask: AttentionMask) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the input of every block with the output of the last norm."""
    seen: list[torch.Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in net.blocks]
    hooks.append(net.norm.register_forward_hook(lambda _, args, out: seen.append(out)))
    logits = net(tokens, mask)
    for hook in hooks:
        hook.remove()
    return logits, torch.stack(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_hidden_states_and_router_equal_golden(name: str, attention: str, dtype: torch.dtype) -> None:
    net = load_net(GOLDEN / name, dtype)
    net.attention = attention
    golden = load_file(GOLDEN / name / "golden.safetensors")
    if json.loads((GOLDEN / name / "golden.json").read_text()).get("renormalised_topk"):
        for block in net.blocks:
            block.mlp.renormalize = True
    kind, atol = ("f32", 3e-4) if dtype == torch.float32 else ("f64", 1e-9)
    for case in sorted({key.split(".")[0] for key in golden}):
        tokens = golden[f"{case}.input_ids"]
        real = golden.get(f"{case}.attention_mask", torch.ones_like(tokens)).bool()
        logits, states = states_of(net, tokens, AttentionMask(padding=None if real.all() else real))
        torch.testing.assert_close(logits[real], golden[f"{case}.logits_{kind}"][real], atol=atol, rtol=1e-5)
        hidden = golden[f"{case}.hidden_f32"][:, real].to(dtype)
        torch.testing.assert_close(states[:, real], hidden, atol=2e-4, rtol=1e-5)
        if net.config.n_experts:
            check_router(net, tokens, real, golden, case, kind, atol)


def check_router(net, tokens, real, golden, case, kind, atol) -> None:
    _, router = net.hidden(tokens, AttentionMask(padding=real))
    router = router.unflatten(1, tokens.shape)[:, real]
    torch.testing.assert_close(
        router, golden[f"{case}.router_logits_{kind}"][:, real], atol=max(atol / 3, 1e-9), rtol=1e-5
    )
    chosen = router.softmax(-1).topk(net.config.experts_per_token).indices
    assert torch.equal(chosen, golden[f"{case}.topk_experts"][:, real])
    loss = balance_loss(router, net.config.experts_per_token)
    torch.testing.assert_close(loss.double(), golden[f"{case}.aux_loss_f64"].reshape(()), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_untouched_reference_does_not_renormalize() -> None:
    net = load_net(GOLDEN / "moe_b", torch.float64)
    golden = load_file(GOLDEN / "moe_b" / "golden.safetensors")
    torch.testing.assert_close(net(golden["c0.input_ids"]), golden["c0.logits_noren_f64"], atol=1e-9, rtol=1e-5)
