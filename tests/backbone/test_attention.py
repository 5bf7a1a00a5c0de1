"""Every backend lets a position see what the mask description says, and nothing else: checked against loops."""

from __future__ import annotations

import inspect
import math
import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_llada.backbone import attention, packed
from lit_llada.backbone.attention import AttentionMask, AttentionPlan, attend, dense_mask, flash_layout, plan_attention
from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.errors import UserError
from tests.backbone.attention_reference import (
    attend_by_loops,
    dense,
    may_see,
    old_torch_varlen,
    torch_varlen,
    use_stand_ins,
    varlen,
)

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


def qkv(rows: int, length: int, kv_heads: int, dtype: torch.dtype, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return tuple(torch.randn(rows, length, h, width, generator=generator).to(dtype) for h in (4, kv_heads, kv_heads))


def plan_of(mask: AttentionMask | None, causal: bool, q: Tensor, backend: attention.Backend) -> AttentionPlan:
    return plan_attention(mask, causal, q.shape[:2], q.shape[-1], q.dtype, q.device, backend)


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
    plan = plan_of(MASKS[kind], causal, q, backend)
    sees = allowed.any(-1)
    out = attend(q, k, v, plan)
    assert out.isfinite().all()
    torch.testing.assert_close(out[sees], attend_by_loops(q, k, v, allowed)[sees], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_backend_in_narrow_dtypes(backend: attention.Backend, dtype: torch.dtype, atol: float) -> None:
    q, k, v = qkv(2, 9, 2, dtype)
    allowed = may_see(MASKS["documents"], False, 2, 9)
    out = attend(q, k, v, plan_of(MASKS["documents"], False, q, backend))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), attend_by_loops(q, k, v, allowed), atol=atol, rtol=0)


@given(mask=layouts(), causal=st.booleans())
@settings(max_examples=50)
def test_dense_mask_equals_the_definition(mask: AttentionMask, causal: bool) -> None:
    rows, length = shape_of(mask)
    allowed = dense_mask(*mask[:2], causal, length, CPU)
    assert allowed is not None
    assert torch.equal(allowed[:, 0], may_see(mask, causal, rows, length))


@given(mask=layouts(), causal=st.booleans())
@settings(max_examples=25)
def test_flex_mask_equals_the_dense_one(mask: AttentionMask, causal: bool) -> None:
    from torch.nn.attention.flex_attention import create_mask

    rows, length = shape_of(mask)
    plan = plan_of(mask, causal, torch.zeros(rows, length, 1, 8), "flex")
    made = create_mask(plan.block_mask.mask_mod, rows, 1, length, length, device="cpu")
    assert torch.equal(made, dense_mask(*mask[:2], causal, length, CPU))


def test_nothing_to_mask_makes_no_mask() -> None:
    for backend in ("eager", "sdpa", "flex"):
        plan = plan_of(None, False, torch.zeros(2, 9, 1, 8), backend)
        assert plan.allowed is None and plan.block_mask is None


# --- flash and varlen: the layout, and the path around the kernels, which are replaced by loops over documents ---


def segments(mask: AttentionMask) -> tuple[list[list[int]], Tensor]:
    """Flat positions of each document in the variable-length layout."""
    index, cu = flash_layout(*mask[:2])
    assert (index is None) == (mask.padding is None)
    index = torch.arange(math.prod(shape_of(mask))) if index is None else index
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


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_ins(monkeypatch)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_packed_path_equals_the_definition(backend: attention.Backend, kind: str, causal: bool, ready: bool) -> None:
    q, k, v = qkv(2, 9, 2, torch.float64)
    mask = MASKS[kind]
    allowed = may_see(mask, causal, 2, 9)
    if ready and kind != "full":
        mask = mask._replace(layout=flash_layout(mask.documents, mask.padding))
    plan = plan_of(None if kind == "full" else mask, causal, q, backend)
    assert mask.layout is None or (plan.real is mask.layout[0] and plan.cu_seqlens is mask.layout[1])
    real = torch.ones(2, 9, dtype=torch.bool) if mask.padding is None else mask.padding
    expected = attend_by_loops(q, k, v, allowed)
    torch.testing.assert_close(attend(q, k, v, plan)[real], expected[real], atol=1e-12, rtol=1e-12)


KERNELS = {
    "flash 2": partial(packed._call_flash, dense, varlen),
    "flash 3, with log-sum-exps": partial(packed._call_flash, dense, lambda *a, **k: (varlen(*a, **k), None)),
    "torch": partial(packed._call_varlen, torch_varlen, True),
    "torch 2.11": partial(packed._call_varlen, old_torch_varlen, False),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_interface_of_a_packed_kernel_gives_the_same(kernel: str, kv_heads: int, causal: bool) -> None:
    q, k, v = qkv(1, 9, kv_heads, torch.float64)
    cu = torch.tensor([0, 2, 3, 9], dtype=torch.int32)
    out = KERNELS[kernel](*(x[0] for x in (q, k, v)), cu, 9, causal)
    numbers = torch.arange(3).repeat_interleave(cu.diff())[None]
    expected = attend_by_loops(q, k, v, may_see(AttentionMask(numbers), causal, 1, 9))
    torch.testing.assert_close(out[None], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_packed_net_equals_the_eager_one_with_gradients(backend: attention.Backend, kind: str) -> None:
    tokens, mask = torch.randint(0, 23, (2, 9)), MASKS["documents+padding"]
    eager = make_net(kind, "eager")
    net = make_net(kind, backend)
    net.load_state_dict(eager.state_dict())
    both = []
    for each in (eager, net):
        logits = each(tokens, mask)[PADDING]
        logits.square().mean().backward()
        both.append((logits, [p.grad for p in each.parameters()]))
    torch.testing.assert_close(both[0], both[1], atol=1e-11, rtol=1e-9)


def test_layout_of_a_batch_that_is_all_padding() -> None:
    index, cu = flash_layout(None, torch.zeros(2, 3, dtype=torch.bool))
    assert index is not None and len(index) == 0 and cu.unique().tolist() == [0]


# --- leaks, through the whole net ---


def differs(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Exactly; but the products of a sparse net are cut by expert, so a stranger's choice moves the last digit."""
    return ((a - b).abs() > (1e-12 if kind == "moe" else 0)).any(-1)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash", "varlen", "flex"])
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


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash", "varlen", "flex"])
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


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flash", "varlen"])
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


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``card(capability, installed)``: as if there were such a GPU, with these of flash and varlen."""

    def call(capability: tuple[int, int], installed: str) -> None:
        kernels = {name: (lambda *_: None) if name in installed.split() else None for name in ("flash", "varlen")}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(packed, "packed_kernel", lambda backend, device: kernels[backend])
        monkeypatch.setattr(attention, "packed_kernel", lambda backend, device: kernels[backend])
        monkeypatch.setattr(attention, "flash_layout", lambda *_: (None, None))
        monkeypatch.setattr(attention, "dense_mask", lambda *_: None)

    return call


@pytest.mark.parametrize(
    ("capability", "installed", "dtype", "width", "unmasked", "masked"),
    [
        ((9, 0), "flash varlen", torch.bfloat16, 64, "flash", "flash"),
        ((8, 0), "flash varlen", torch.float16, 256, "flash", "flash"),
        ((9, 0), "varlen", torch.bfloat16, 64, "sdpa", "varlen"),
        ((9, 0), "", torch.bfloat16, 64, "sdpa", "sdpa"),
        ((7, 5), "flash varlen", torch.float16, 64, "sdpa", "sdpa"),
        ((9, 0), "flash varlen", torch.float32, 64, "sdpa", "sdpa"),
        ((9, 0), "flash varlen", torch.bfloat16, 36, "sdpa", "sdpa"),
        ((9, 0), "flash varlen", torch.bfloat16, 264, "sdpa", "sdpa"),
    ],
)
def test_auto_chooses_on_a_gpu(
    card: Any, capability: tuple[int, int], installed: str, dtype: torch.dtype, width: int, unmasked: str, masked: str
) -> None:
    card(capability, installed)
    for mask, chosen in ((None, unmasked), *((MASKS[kind], masked) for kind in MASKS if kind != "full")):
        plan = plan_attention(mask, False, torch.Size((2, 9)), width, dtype, CUDA, "auto")
        assert plan.backend == chosen


@pytest.mark.parametrize(
    ("dtype", "length", "chosen"),
    [
        (torch.bfloat16, attention.EAGER_LENGTH, "eager"),
        (torch.bfloat16, attention.EAGER_LENGTH + 1, "sdpa"),
        (torch.float64, 9, "eager"),
        (torch.float32, 9, "sdpa"),
    ],
)
def test_auto_chooses_on_a_cpu(card: Any, dtype: torch.dtype, length: int, chosen: str) -> None:
    card((9, 0), "flash varlen")
    plan = plan_attention(None, False, torch.Size((2, length)), 64, dtype, CPU, "auto")
    assert plan == AttentionPlan(chosen, False)


@pytest.mark.parametrize(
    ("backend", "capability", "installed", "device", "dtype", "width", "named"),
    [
        ("flash", (9, 0), "flash", CPU, torch.bfloat16, 64, "needs a GPU, and this run is on cpu"),
        ("varlen", (9, 0), "varlen", CPU, torch.bfloat16, 64, "needs a GPU, and this run is on cpu"),
        ("flash", (9, 0), "varlen", CUDA, torch.bfloat16, 64, "needs the flash-attn package"),
        ("varlen", (9, 0), "flash", CUDA, torch.bfloat16, 64, "needs a torch of 2.11 or newer"),
        ("flash", (7, 5), "flash", CUDA, torch.float16, 64, "compute capability 8.0 or higher, and this one has 7.5"),
        ("varlen", (7, 5), "varlen", CUDA, torch.float16, 64, "compute capability 8.0 or higher, and this one has 7.5"),
        ("flash", (9, 0), "flash", CUDA, torch.float32, 64, "needs float16 or bfloat16, not float32"),
        ("varlen", (9, 0), "varlen", CUDA, torch.float64, 64, "needs float16 or bfloat16, not float64"),
        ("flash", (9, 0), "flash", CUDA, torch.bfloat16, 264, "a multiple of 8 and at most 256, not 264"),
        ("varlen", (9, 0), "varlen", CUDA, torch.bfloat16, 36, "a multiple of 8 and at most 256, not 36"),
    ],
)
def test_a_packed_backend_is_refused_by_name(
    card: Any,
    backend: attention.Backend,
    capability: tuple[int, int],
    installed: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    named: str,
) -> None:
    card(capability, installed)
    for mask in (None, MASKS["documents"]):
        with pytest.raises(UserError, match=named) as refusal:
            plan_attention(mask, False, torch.Size((2, 9)), width, dtype, device, backend)
        assert str(refusal.value).startswith(f"attention backend {backend!r} needs ") and "\n" not in str(refusal.value)
        assert "set attention: auto" in str(refusal.value)


@pytest.mark.parametrize("backend", ["flash", "varlen"])
def test_a_packed_net_on_a_cpu_is_refused(backend: attention.Backend) -> None:
    with pytest.raises(UserError, match=backend):
        make_net("dense", backend)(torch.zeros(1, 4, dtype=torch.long))


def package(**functions: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**functions)


def test_which_flash_package_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 3 on its own GPUs, else 2; a half-installed one counts as missing."""
    two, three = (package(flash_attn_func=dense, flash_attn_varlen_func=f) for f in (varlen, torch_varlen))

    def taken(hopper: bool) -> Any:
        kernel = packed._flash_kernel.__wrapped__(hopper)
        return None if kernel is None else kernel.args[1]

    monkeypatch.setitem(sys.modules, "flash_attn", two)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", three)
    assert taken(hopper=True) is torch_varlen and taken(hopper=False) is varlen
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)  # the import fails
    assert taken(hopper=True) is varlen
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    assert taken(hopper=True) is taken(hopper=False) is None


@pytest.mark.parametrize("function", [torch_varlen, old_torch_varlen])
def test_which_varlen_is_taken(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    found = packed._varlen_kernel.__wrapped__
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", package(varlen_attn=function))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert found().args == (function, function is torch_varlen)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert found() is None
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert found() is None


def test_varlen_of_this_torch_has_the_arguments_that_it_is_given() -> None:
    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"] and "window_size" in names
