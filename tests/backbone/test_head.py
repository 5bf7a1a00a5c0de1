"""The chunked cross-entropy of the head against full logits and autograd: losses, gradients, precision and memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import peak_memory
from lit_llada.backbone import head
from lit_llada.backbone.head import chunked_nll, weighted_nll

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "LEAST_POSITIONS", 64)
    monkeypatch.setattr(head, "CHUNK_LOGITS", {"cpu": 1})


def inputs(
    positions: int, width: int, vocabulary: int, bias: bool, dtype: torch.dtype = torch.float32, certain: float = 1.0
) -> Inputs:
    """Random x, W, b, targets and weights of both signs; ``certain`` scales the logits."""
    generator = torch.Generator().manual_seed(positions + vocabulary)
    x, weight, offset = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((positions, width), (vocabulary, width), (vocabulary,))
    )
    with torch.no_grad():
        weight.mul_(certain / width**0.5)
    targets = torch.randint(vocabulary, (positions,), generator=generator)
    return x, weight, offset if bias else None, targets, torch.randn(positions, generator=generator).to(dtype)


def both_ways(case: Inputs, fused: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Loss and nll with the weights known beforehand, and afterwards."""
    later = chunked_nll(*case[:4], fused)
    return [weighted_nll(*case, fused), ((later * case[4].to(later.dtype)).sum(), later)]


def gradients(loss: Tensor, case: Inputs) -> list[Tensor]:
    return list(torch.autograd.grad(3 * loss, [part for part in case[:3] if part is not None]))


@pytest.mark.parametrize("positions", [1, 64, 131])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_it_is_full_logits_and_autograd(dtype: torch.dtype, tolerance: float, bias: bool, positions: int) -> None:
    case = inputs(positions, 24, 500, bias, dtype)
    exact = [None if x is None else (x.double() if x.is_floating_point() else x) for x in case]
    nll = F.cross_entropy(F.linear(*exact[:3]), exact[3], reduction="none")  # type: ignore[arg-type]
    wanted = (nll * exact[4]).sum()
    slopes = gradients(wanted, exact)
    for loss, found in both_ways(case):
        assert loss.dtype == found.dtype == dtype
        assert (found - nll).abs().max() <= tolerance * (1 + nll.abs().max())
        assert (loss - wanted).abs() <= tolerance * (1 + nll.abs().sum())
        for got, want in zip(gradients(loss, case), slopes, strict=True):
            assert got.dtype == dtype
            assert (got - want).norm() <= tolerance * (1 + want.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_losses_and_gradients_are_float32_and_within_bfloat16(bias: bool) -> None:
    case = inputs(300, 32, 2048, bias)
    nll = F.cross_entropy(F.linear(*case[:3]), case[3], reduction="none")
    slopes = gradients((nll * case[4]).sum(), case)
    with torch.autocast("cpu", torch.bfloat16):
        ways = both_ways(case)
    for loss, found in ways:
        assert loss.dtype == found.dtype == torch.float32
        assert (found - nll).abs().max() < 0.06  # bfloat16 logits of up to 4 are rounded by up to 0.008
        assert (found - nll).mean().abs() < 0.004  # but to neither side
        for got, want in zip(gradients(loss, case), slopes, strict=True):
            assert got.dtype == torch.float32
            assert (got - want).norm() < 0.01 * want.norm()


def test_bfloat16_weights_get_bfloat16_gradients_that_were_added_up_in_float32() -> None:
    x, weight, _, _, _ = (None if part is None else part for part in inputs(4096, 8, 64, False))
    x, weight = (part.detach().bfloat16().requires_grad_() for part in (x, weight))
    targets = torch.arange(4096) % 2  # each of two tokens is every second target
    case = (x, weight, None, targets, torch.ones(4096))
    wide = (x.detach().float().requires_grad_(), weight.detach().float().requires_grad_(), *case[2:])
    nll = F.cross_entropy(F.linear(*wide[:2]), targets, reduction="none")
    slopes = gradients(nll.sum(), wide)
    for loss, _ in both_ways(case):
        for got, want in zip(gradients(loss, case), slopes, strict=True):
            assert got.dtype == torch.bfloat16
            assert (got.float() - want).norm() < 0.01 * want.norm()


def test_a_certain_prediction_keeps_its_small_gradient() -> None:
    """1 - p of a p close to 1 has few digits left in float32, and a nll that is a difference of large numbers too."""
    case = inputs(64, 16, 40, False, certain=20.0)
    best = F.linear(case[0], case[1]).argmax(1)
    case = (*case[:3], best, torch.ones(64))
    exact = [part.detach().double().requires_grad_() for part in case[:2]]
    nll = F.cross_entropy(F.linear(*exact), best, reduction="none")
    certain = (nll > 1e-4) & (nll < 1e-2)
    assert certain.sum() > 5
    (wanted,) = torch.autograd.grad(nll.sum(), exact[:1])
    for loss, _ in both_ways(case):
        (got,) = torch.autograd.grad(loss, case[:1])
        error = (got - wanted).norm(dim=1) / wanted.norm(dim=1)  # of each position
        assert error[certain].max() < 1e-2


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_the_gradients_that_are_needed_are_made(frozen: int) -> None:
    case = inputs(70, 8, 30, True)
    full = gradients(both_ways(case)[0][0], case)
    case[frozen].requires_grad_(False)  # type: ignore[union-attr]
    for loss, _ in both_ways(case):
        loss.mul(3).backward()
        for number, part in enumerate(case[:3]):
            assert part is not None
            assert (part.grad is None) if number == frozen else torch.allclose(part.grad, full[number], atol=1e-5)
            part.grad = None


def test_without_gradients_it_is_the_same_loss_and_keeps_nothing() -> None:
    case = inputs(70, 8, 30, True)
    with torch.no_grad():
        for loss, found in both_ways(case):
            torch.testing.assert_close(found, chunked_nll(*case[:4]).detach())
            assert not loss.requires_grad


def test_a_second_backward_pass_is_refused() -> None:
    loss, _ = weighted_nll(*inputs(8, 4, 10, False))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_memory_is_a_chunk_and_the_gradients(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 2,048 positions are masked: the logits of all of them would be 256 MiB in float32."""
    monkeypatch.setattr(head, "LEAST_POSITIONS", 256)
    positions, width, vocabulary = 1024, 64, 32_768
    case = inputs(positions, width, vocabulary, False)
    full = 2 * positions * vocabulary * 4
    gradient = vocabulary * width * 4

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            loss, _ = weighted_nll(*case)
        torch.autograd.grad(loss, case[:2])  # type: ignore[arg-type]

    chunk = 256 * vocabulary * 4 * (1 if dtype is torch.float32 else 2)  # logits and softmax have two dtypes there
    assert peak_memory(step) < min(full / 3, 1.1 * chunk + 3 * gradient)
