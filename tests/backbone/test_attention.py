"""Does every backend let a position see what the mask description says, and nothing else? Checked against loops."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llada.backbone import attention
from lit_llada.backbone.attention import AttentionMask, AttentionPlan, attend, dense_mask, flash_layout, plan_attention
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on a CPU it is meant

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2, 3, 3]])
PADDING = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 1, 1, 1]]).bool()
MASKS = {
    "full": AttentionMask(),
    "documents": AttentionMask(documents=DOCUMENTS),
    "padding": AttentionMask(padding=PADDING),
    "documents+padding": AttentionMask(DOCUMENTS, PADDING),
}
NETS = {
    "dense": {},
    "gqa": {"n_kv_heads": 2, "qk_norm": "width", "tie_embeddings": True},
    "moe": {"n_experts": 5, "experts_per_token": 2, "expert_dim": 12, "qk_norm": "head"},
}


def may_see(mask: AttentionMask, causal: bool, rows: int, length: int) -> Tensor:
    """``[B, T, T]`` by its definition, one pair at a time."""
    allowed = torch.zeros(rows, length, length, dtype=torch.bool)
    for b in range(rows):
        for query in range(length):
            for key in range(length):
                same = mask.documents is None or mask.documents[b, query] == mask.documents[b, key]
                real = mask.padding is None or mask.padding[b, key]
                allowed[b, query, key] = bool(same and real and (key <= query or not causal))
    return allowed


def attend_by_loops(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """One query of one head at a time, over the keys that it may see, in float64; zero where there is none."""
    q, k, v = q.double(), k.double(), v.double()
    out, group = torch.zeros_like(q), q.shape[2] // k.shape[2]
    for b, i, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        keys = allowed[b, i].nonzero().squeeze(1)
        if len(keys):
            p = (k[b, keys, head // group] @ q[b, i, head] / q.shape[-1] ** 0.5).softmax(-1)
            out[b, i, head] = p @ v[b, keys, head // group]
    return out


def qkv(rows: int, length: int, kv_heads: int, dtype: torch.dtype, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(rows, length, h, width, generator=generator).to(dtype) for h in (4, kv_heads, kv_heads))


def make_net(kind: str, backend: attention.Backend, **fields: object) -> Backbone:
    config = BackboneConfig(vocab_size=23, d_model=16, n_layers=2, n_heads=4, ff_dim=24, **NETS[kind], **fields)
    return Backbone(config, backend).double()


@st.composite
def layouts(draw: st.DrawFn, max_length: int = 12) -> AttentionMask:
    """Rows of whole documents, ragged padding (holes and empty rows too), either or both."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, max_length))
    flags = st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows)
    which = draw(st.sampled_from(["documents", "padding", "both"]))
    documents = torch.tensor(draw(flags)).long().cumsum(1) if which != "padding" else None
    padding = torch.tensor(draw(flags)) if which != "documents" else None
    return AttentionMask(documents, padding)


def shape_of(mask: AttentionMask) -> torch.Size:
    given = mask.documents if mask.documents is not None else mask.padding
    assert given is not None
    return given.shape


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_backend_equals_the_definition(backend: attention.Backend, kv_heads: int, kind: str, causal: bool) -> None:
    q, k, v = qkv(2, 9, kv_heads, torch.float64)
    allowed = may_see(MASKS[kind], causal, 2, 9)
    plan = plan_attention(MASKS[kind], causal, torch.Size((2, 9)), torch.float64, CPU, backend)
    sees = allowed.any(-1)
    out = attend(q, k, v, plan)
    assert out.isfinite().all()
    torch.testing.assert_close(out[sees], attend_by_loops(q, k, v, allowed)[sees], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_backend_in_narrow_dtypes(backend: attention.Backend, dtype: torch.dtype, atol: float) -> None:
    q, k, v = qkv(2, 9, 2, dtype)
    allowed = may_see(MASKS["documents"], False, 2, 9)
    out = attend(q, k, v, plan_attention(MASKS["documents"], False, torch.Size((2, 9)), dtype, CPU, backend))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), attend_by_loops(q, k, v, allowed), atol=atol, rtol=0)


@given(mask=layouts(), causal=st.booleans())
@settings(max_examples=50)
def test_dense_mask_equals_the_definition(mask: AttentionMask, causal: bool) -> None:
    rows, length = shape_of(mask)
    allowed = dense_mask(*mask, causal, length, CPU)
    assert allowed is not None
    assert torch.equal(allowed[:, 0], may_see(mask, causal, rows, length))


@given(mask=layouts(), causal=st.booleans())
@settings(max_examples=25)
def test_flex_mask_equals_the_dense_one(mask: AttentionMask, causal: bool) -> None:
    from torch.nn.attention.flex_attention import create_mask

    rows, length = shape_of(mask)
    plan = plan_attention(mask, causal, torch.Size((rows, length)), torch.float32, CPU, "flex")
    made = create_mask(plan.block_mask.mask_mod, rows, 1, length, length, device="cpu")
    assert torch.equal(made, dense_mask(*mask, causal, length, CPU))


def test_nothing_to_mask_makes_no_mask() -> None:
    shape = torch.Size((2, 9))
    for backend in ("eager", "sdpa", "flex"):
        plan = plan_attention(None, False, shape, torch.float32, CPU, backend)
        assert plan.allowed is None and plan.block_mask is None


# --- flash: its inputs, and its path with the two functions of the package replaced by loops over documents ---


def segments(mask: AttentionMask) -> tuple[list[list[int]], Tensor]:
    """Flat positions of each document in the variable-length layout."""
    index, cu = flash_layout(*mask)
    assert cu.dtype == torch.int32 and index.dtype == torch.int64
    assert cu[0] == 0 and cu[-1] == len(index)
    return [index[a:b].tolist() for a, b in zip(cu.tolist(), cu.tolist()[1:], strict=False)], index


@given(mask=layouts(), causal=st.booleans())
@settings(max_examples=200)
def test_flash_layout_says_the_same_as_the_mask(mask: AttentionMask, causal: bool) -> None:
    rows, length = shape_of(mask)
    real = torch.ones(rows, length, dtype=torch.bool) if mask.padding is None else mask.padding
    documents, index = segments(mask)
    assert torch.equal(index, real.flatten().nonzero().squeeze(1))
    rebuilt = torch.zeros(rows * length, rows * length, dtype=torch.bool)
    for place in documents:
        for i, query in enumerate(place):
            rebuilt[query, place[: i + 1] if causal else place] = True
    expected = torch.block_diag(*may_see(mask, causal, rows, length).int()).bool()
    assert torch.equal(rebuilt[index], expected[index])


def flash_stand_in(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)


def varlen_stand_in(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool
) -> Tensor:
    assert cu_q.dtype == torch.int32 and torch.equal(cu_q, cu_k) and cu_q[-1] == len(q)
    lengths = cu_q.diff()
    assert lengths.max() <= max_q == max_k
    parts = zip(*(x.split(lengths.tolist()) for x in (q, k, v)), strict=True)
    return torch.cat([flash_stand_in(*(x[None] for x in part), causal)[0] for part in parts])


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's functions in plain torch, and no demand for a GPU."""
    monkeypatch.setattr(attention, "_flash_functions", lambda: (flash_stand_in, varlen_stand_in))
    monkeypatch.setattr(attention, "_require_flash", lambda dtype, device: None)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
def test_flash_path_equals_the_definition(kind: str, causal: bool) -> None:
    q, k, v = qkv(2, 9, 2, torch.float64)
    mask = MASKS[kind]
    allowed = may_see(mask, causal, 2, 9)
    plan = plan_attention(None if kind == "full" else mask, causal, torch.Size((2, 9)), torch.float64, CPU, "flash")
    real = torch.ones(2, 9, dtype=torch.bool) if mask.padding is None else mask.padding
    expected = attend_by_loops(q, k, v, allowed)
    torch.testing.assert_close(attend(q, k, v, plan)[real], expected[real], atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("kind", NETS)
def test_flash_net_equals_the_eager_one_with_gradients(kind: str) -> None:
    tokens, mask = torch.randint(0, 23, (2, 9)), MASKS["documents+padding"]
    eager = make_net(kind, "eager")
    net = make_net(kind, "flash")
    net.load_state_dict(eager.state_dict())
    both = []
    for each in (eager, net):
        logits = each(tokens, mask)[PADDING]
        logits.square().mean().backward()
        both.append((logits, [p.grad for p in each.parameters()]))
    torch.testing.assert_close(both[0], both[1], atol=1e-11, rtol=1e-9)


def test_flash_path_of_a_batch_that_is_all_padding() -> None:
    index, cu = flash_layout(None, torch.zeros(2, 3, dtype=torch.bool))
    assert len(index) == 0 and cu.unique().tolist() == [0]


# --- leaks, through the whole net ---


def differs(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Exactly; but the products of a sparse net are cut by expert, so a stranger's choice moves the last digit."""
    return ((a - b).abs() > (1e-12 if kind == "moe" else 0)).any(-1)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash", "flex"])
@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_a_document_never_moves_another(kind: str, backend: attention.Backend, causal: bool) -> None:
    net, mask = make_net(kind, backend, causal=causal), MASKS["documents"]
    tokens = torch.randint(0, 23, (2, 9))
    before = net(tokens, mask)
    for row in range(2):
        for document in DOCUMENTS[row].unique():
            inside = torch.zeros(2, 9, dtype=torch.bool)
            inside[row] = DOCUMENTS[row] == document
            moved = differs(net(torch.where(inside, (tokens + 1) % 23, tokens), mask), before, kind)
            assert not moved[~inside].any()
            assert moved[inside].all()  # the change itself is seen
    leaky = net(torch.where(DOCUMENTS == 0, (tokens + 1) % 23, tokens))
    assert differs(leaky, net(tokens), kind)[DOCUMENTS > 0].all()  # without the mask this very test would fail


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash", "flex"])
@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_padding_moves_nothing(kind: str, backend: attention.Backend) -> None:
    net, tokens = make_net(kind, backend), torch.randint(0, 23, (2, 9))
    changed = torch.where(PADDING, tokens, (tokens + 1) % 23)
    for mask in (MASKS["padding"], MASKS["documents+padding"]):
        assert not differs(net(changed, mask), net(tokens, mask), kind)[PADDING].any()
    assert differs(net(changed), net(tokens), kind)[PADDING].all()
    alone = net(tokens[:1, :7])
    torch.testing.assert_close(net(tokens, MASKS["padding"])[:1, :7], alone, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash"])
@pytest.mark.parametrize("kind", NETS)
def test_no_gradient_crosses_documents_or_reaches_padding(kind: str, backend: attention.Backend) -> None:
    net, tokens, inputs = make_net(kind, backend), torch.randint(0, 23, (2, 9)), []
    net.embed.register_forward_hook(lambda _, args, out: inputs.append(out))
    wanted = (DOCUMENTS == 1) & PADDING
    logits = net(tokens, MASKS["documents+padding"])[wanted]
    (grad,) = torch.autograd.grad(logits.square().sum(), inputs)
    reached = (grad != 0).any(-1)
    assert torch.equal(reached, wanted)


# --- the choice of a backend, and refusals ---


@pytest.mark.parametrize(
    ("device", "dtype", "length", "package", "chosen"),
    [
        (CPU, torch.float32, attention.EAGER_LENGTH, True, "eager"),
        (CPU, torch.bfloat16, attention.EAGER_LENGTH + 1, True, "sdpa"),
        (CUDA, torch.bfloat16, 64, True, "flash"),
        (CUDA, torch.float16, 4096, True, "flash"),
        (CUDA, torch.float32, 64, True, "sdpa"),
        (CUDA, torch.bfloat16, 64, False, "sdpa"),
    ],
)
def test_auto_chooses(
    device: torch.device, dtype: torch.dtype, length: int, package: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (flash_stand_in, varlen_stand_in) if package else None
    monkeypatch.setattr(attention, "_flash_functions", lambda: found)
    plan = plan_attention(None, False, torch.Size((2, length)), dtype, device, "auto")
    assert plan == AttentionPlan(chosen, False)


@pytest.mark.parametrize(
    ("package", "device", "dtype", "named"),
    [
        (False, CUDA, torch.bfloat16, "flash-attn"),
        (True, CPU, torch.bfloat16, "GPU"),
        (True, CUDA, torch.float32, "float16 or bfloat16"),
    ],
)
def test_flash_is_refused_by_name(
    package: bool, device: torch.device, dtype: torch.dtype, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_flash_functions", lambda: (flash_stand_in, varlen_stand_in) if package else None)
    with pytest.raises(UserError, match=named) as refusal:
        plan_attention(None, False, torch.Size((1, 4)), dtype, device, "flash")
    assert "flash" in str(refusal.value) and "\n" not in str(refusal.value)


def test_flash_net_on_a_cpu_is_refused() -> None:
    with pytest.raises(UserError, match="flash"):
        make_net("dense", "flash")(torch.zeros(1, 4, dtype=torch.long))


def test_half_installed_flash_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    assert attention._flash_functions.__wrapped__() is None
