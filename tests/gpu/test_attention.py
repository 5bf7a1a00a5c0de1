"""Every attention backend against a mask made by its definition, forward and backward; on a GPU at sizes of its own.

On a CPU ``flash`` and ``varlen`` have kernels written in plain torch, so that what packs and unpacks runs there too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lit_llada.backbone.attention import (
    AttentionMask,
    AttentionPlan,
    Backend,
    attend,
    flash_layout,
    lacks,
    plan_attention,
)
from tests.backbone.attention_reference import may_see, use_stand_ins

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on a CPU it is meant

PACKED: list[Backend] = ["flash", "varlen"]
KINDS = ["full", "documents", "padding", "documents+padding"]
# The distance from float64 as a share of its norm. bfloat16 keeps 8 bits (an error of at most 0.4 % of each number);
# scores, probabilities and their gradients are rounded on the way. A forgotten mask costs 60 % and more.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Size(NamedTuple):
    rows: int
    length: int
    width: int


def size_on(device: torch.device) -> Size:
    return Size(2, 33, 16) if device.type == "cpu" else Size(3, 301, 64)


def mask_of(kind: str, size: Size, device: torch.device) -> AttentionMask:
    """Rows of documents of random lengths; padding on the right, with holes before it."""
    generator = torch.Generator().manual_seed(7)
    shape = size.rows, size.length
    documents = (torch.rand(shape, generator=generator) < 6 / size.length).cumsum(1).to(device)
    lengths = torch.tensor([size.length // (row + 1) for row in range(size.rows)])
    padding = (torch.arange(size.length) < lengths[:, None]) & (torch.rand(shape, generator=generator) > 0.1)
    padding = padding.to(device)
    return AttentionMask(documents if "documents" in kind else None, padding if "padding" in kind else None)


def inputs(size: Size, kv_heads: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[B, T, (4 + 2 K) h]``, queries, keys and values side by side as a net makes them; and an output's gradient."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(size.rows, size.length, (4 + 2 * kv_heads) * size.width, generator=generator)
    grad = torch.randn(size.rows, size.length, 4, size.width, generator=generator)
    return x.to(device, dtype).requires_grad_(), grad.to(device, dtype)


def split(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries with 4 heads, keys, values: views into ``x``."""
    heads = x.unflatten(-1, (-1, width))
    kv_heads = (heads.shape[2] - 4) // 2
    q, k, v = heads.split([4, kv_heads, kv_heads], dim=2)
    return q, k, v


def by_definition(x: Tensor, grad: Tensor, allowed: Tensor, width: int) -> list[Tensor]:
    """The output and the gradient of ``x``, all scores written out, in float64 on the CPU."""
    x = x.detach().double().cpu().requires_grad_()
    q, k, v = (part.transpose(1, 2) for part in split(x, width))
    k, v = (part.repeat_interleave(4 // part.shape[1], dim=1) for part in (k, v))
    scores = (q @ k.mT / width**0.5).masked_fill(~allowed[:, None], -1e9)
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, x, grad.double().cpu())]


def plan_of(mask: AttentionMask, causal: bool, q: Tensor, backend: Backend) -> AttentionPlan:
    return plan_attention(mask, causal, q.shape[:2], q.shape[-1], q.dtype, q.device, backend)


def ready(backend: Backend, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the packed backends: stand-ins on a CPU, those of this machine on a GPU."""
    if device.type == "cpu":
        use_stand_ins(monkeypatch)
    elif backend in PACKED and (lacking := lacks(backend, 64, torch.bfloat16, device)):
        pytest.skip(f"{backend} needs {lacking}")


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double().cpu() - b).norm() / b.norm())


def check(backend: Backend, kind: str, causal: bool, kv_heads: int, dtype: torch.dtype, device: torch.device) -> None:
    size = size_on(device)
    mask = mask_of(kind, size, device)
    x, grad = inputs(size, kv_heads, dtype, device)
    real = torch.ones_like(grad, dtype=torch.bool) if mask.padding is None else mask.padding[..., None, None]
    grad = grad * real  # what a padded position says goes nowhere
    q, k, v = split(x, size.width)
    expected = by_definition(x, grad, may_see(mask, causal, size.rows, size.length), size.width)
    if backend == "flex" and device.type == "cpu":  # which has no backward pass there
        q, k, v, expected = q.detach(), k.detach(), v.detach(), expected[:1]
    out = attend(q, k, v, plan_of(mask, causal, q, backend))
    assert out.dtype == dtype
    assert distance(out * real, expected[0] * real.cpu()) <= BOUNDS[dtype]
    if len(expected) == 2:
        assert distance(*torch.autograd.grad(out, x, grad), expected[1]) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["eager", "sdpa", *PACKED])
def test_backend_equals_the_definition(
    device: torch.device,
    backend: Backend,
    kind: str,
    kv_heads: int,
    causal: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device.type == "cuda" and backend in PACKED and dtype == torch.float32:
        pytest.skip("half precision only")
    ready(backend, device, monkeypatch)
    check(backend, kind, causal, kv_heads, dtype, device)


@pytest.mark.parametrize(
    ("kind", "causal", "dtype"),
    [("documents+padding", False, torch.bfloat16), ("documents", True, torch.bfloat16), ("full", True, torch.float32)],
)
def test_flex_equals_the_definition(device: torch.device, kind: str, causal: bool, dtype: torch.dtype) -> None:
    """Fewer cases: on a GPU each is compiled."""
    check("flex", kind, causal, 2, dtype, device)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_layout_is_the_same_on_every_device(device: torch.device, kind: str) -> None:
    size = size_on(device)
    here, there = (flash_layout(*mask_of(kind, size, where)[:2]) for where in (device, torch.device("cpu")))
    for a, b in zip(here, there, strict=True):
        assert (a is None and b is None) or (a.device.type == device.type and torch.equal(a.cpu(), b))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["eager", "sdpa", *PACKED])
def test_nothing_waits_for_the_device(
    device: torch.device, backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the layout is given; a second time, since a library may wait when it is used first."""
    ready(backend, device, monkeypatch)
    size = size_on(device)
    mask = mask_of(kind, size, device)
    if kind != "full":
        mask = mask._replace(layout=flash_layout(mask.documents, mask.padding))
    x, grad = inputs(size, 2, torch.bfloat16, device)

    def step() -> None:
        q, k, v = split(x, size.width)
        torch.autograd.grad(attend(q, k, v, plan_of(mask, False, q, backend)), x, grad)

    step()
    with no_waiting(device):
        step()


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """An operation that waits for the GPU raises; nothing on a CPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_forgotten_mask_is_far_outside_the_bound(device: torch.device) -> None:
    size = size_on(device)
    x, grad = inputs(size, 2, torch.float32, device)
    everybody = by_definition(x, grad, torch.ones(size.rows, size.length, size.length, dtype=torch.bool), size.width)
    for kind in KINDS[1:]:
        allowed = may_see(mask_of(kind, size, device), False, size.rows, size.length)
        right = by_definition(x, grad, allowed, size.width)
        assert min(distance(a, b) for a, b in zip(everybody, right, strict=True)) > 50 * BOUNDS[torch.bfloat16]
