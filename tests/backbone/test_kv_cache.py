"""A forward of a part of each row, over a cache that is exact, gives that part of the whole forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.backbone.attention import AttentionMask
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.kv_cache import KVCache, KVView
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
POSITIONS = torch.tensor([[6, 2, 3], [0, 4, 4]])  # in any order, and one may come twice
PADDING = torch.arange(9) < torch.tensor([[9], [5]])


def make_net(backend: Any = "eager", **fields: Any) -> Backbone:
    config = BackboneConfig(vocab_size=23, d_model=16, n_layers=2, n_heads=4, ff_dim=24, **fields)
    return Backbone(config, backend).double().eval()


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa", "flex"])
@pytest.mark.parametrize("fields", [{}, {"n_kv_heads": 2, "qk_norm": "width"}, {"rope_fraction": 0.5}], ids=str)
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_a_part_of_an_unchanged_row(fields: dict[str, Any], backend: Any, padded: bool) -> None:
    net, tokens, mask = make_net(backend, **fields), torch.randint(23, (2, 9)), AttentionMask(padding=PADDING)
    cache, ids, chosen = KVCache(5, 11), torch.tensor([3, 1]), mask if padded else None
    whole = net(tokens, chosen)
    assert torch.equal(net(tokens, chosen, cache=KVView(cache, ids, 9)), whole)
    part = tokens.gather(1, POSITIONS)
    expected = whole.gather(1, POSITIONS[..., None].expand(-1, -1, 23))
    view = KVView(cache, ids, 9, POSITIONS)
    torch.testing.assert_close(net(part, chosen, cache=view), expected, atol=1e-12, rtol=0)
    positions = torch.tensor([4, 0])
    torch.testing.assert_close(
        net(part, chosen, positions, view), expected.flatten(0, 1)[positions], atol=1e-12, rtol=0
    )


@torch.no_grad()
def test_a_part_that_is_everything_sees_its_own_new_tokens() -> None:
    net, cache, ids = make_net(), KVCache(2, 9), torch.arange(2)
    net(torch.randint(23, (2, 9)), cache=KVView(cache, ids, 9))
    tokens, everywhere = torch.randint(23, (2, 9)), torch.arange(9).expand(2, 9)
    torch.testing.assert_close(net(tokens, cache=KVView(cache, ids, 9, everywhere)), net(tokens), atol=1e-12, rtol=0)


@torch.no_grad()
def test_under_autocast_the_cache_is_of_the_working_dtype() -> None:
    net, cache, ids, tokens = make_net().float(), KVCache(2, 9), torch.arange(2), torch.randint(23, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        whole = net(tokens, cache=KVView(cache, ids, 9))
        part = net(tokens[:, 2:5], cache=KVView(cache, ids, 9, torch.arange(2, 5).expand(2, 3)))
    assert cache.layer(0, whole)[0].dtype == torch.bfloat16
    torch.testing.assert_close(part.float(), whole[:, 2:5].float(), atol=0.05, rtol=0)


def test_causal_nets_and_documents_are_refused() -> None:
    tokens, view = torch.zeros(1, 4, dtype=torch.int64), KVView(KVCache(1, 4), torch.tensor([0]), 4)
    with pytest.raises(UserError, match="leave out causal and documents"):
        make_net(causal=True)(tokens, cache=view)
    with pytest.raises(UserError, match="leave out causal and documents"):
        make_net()(tokens, AttentionMask(documents=tokens), cache=view)
