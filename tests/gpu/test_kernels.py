"""Grouped products, gradients, the chunked head and the keyed noise: each against a plainer way to compute it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_llada.backbone import head, moe
from lit_llada.backbone.head import chunked_nll, weighted_nll
from lit_llada.objectives.coupling import draw_pairs
from lit_llada.objectives.noise import mask_tokens, sample_times
from lit_llada.objectives.preference import Estimator, draw_masks
from tests.gpu.nets import batch_of, distance, loss_and_gradients, net_of

# Shares of the norm. The nll is float32 or wider, whatever the products are.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_are_one_product_an_expert(device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(37, 32, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(5, 32, 48, generator=generator).to(device, dtype).requires_grad_()
    slopes = torch.randn(37, 48, generator=generator).to(device, dtype)
    counts = torch.tensor([4, 0, 20, 13, 0], device=device)  # experts without a visitor too
    assert moe.grouped_applies(weight)
    found, plain = (
        [out.detach(), *torch.autograd.grad(out, (x, weight), slopes)]
        for out in (moe._grouped(x, weight, counts), moe._split(x, weight, counts))
    )
    for a, b in zip(found, plain, strict=True):
        assert distance(a, b) <= BOUNDS[dtype]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_gradients_are_the_cpus(device: torch.device, kind: str) -> None:
    """In float64, where the experts take the plain path."""
    here, there = (loss_and_gradients(net_of(kind, torch.float64, d), *batch_of(3, 24, d)) for d in (device, CPU))
    for a, b in zip(here, there, strict=True):
        assert a.device.type == device.type
        assert distance(a, b) <= 1e-11


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "fused"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_chunked_head_is_full_logits(
    device: torch.device, dtype: torch.dtype, bias: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three chunks, the last one shorter; against float64 on the CPU, from the same rounded inputs."""
    monkeypatch.setattr(head, "LEAST_POSITIONS", 32)
    monkeypatch.setattr(head, "CHUNK_LOGITS", {device.type: 1})
    generator = torch.Generator().manual_seed(6)
    x, weight, offset, scale = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((75, 32), (300, 32), (300,), (75,))
    )
    weight, targets = weight / 32**0.5, torch.randint(300, (75,), generator=generator)
    inputs = [x, weight, offset] if bias else [x, weight]

    exact = [part.double().requires_grad_() for part in inputs]
    nll = F.cross_entropy(F.linear(*exact), targets, reduction="none")  # type: ignore[arg-type]
    wanted = [nll, *torch.autograd.grad((nll * scale).sum(), exact)]

    real = [part.to(device).requires_grad_() for part in inputs]
    arguments = (real[0], real[1], real[2] if bias else None, targets.to(device))
    scale = scale.to(device)
    loss, first = weighted_nll(*arguments, scale, fused)
    second = chunked_nll(*arguments, fused)
    for found, total in ((first, loss), (second, (second * scale).sum())):
        for a, b in zip((found, *torch.autograd.grad(total, real)), wanted, strict=True):
            assert distance(a, b) <= BOUNDS[dtype]


@pytest.mark.parametrize("masking", ["bernoulli", "fixed_count"])
@pytest.mark.parametrize("sampler", ["iid", "stratified", "antithetic"])
def test_noise_of_text_is_the_cpus_bit_for_bit(device: torch.device, sampler: str, masking: str) -> None:
    tokens, _, _ = batch_of(7, 40, CPU)
    maskable, keys = tokens != 3, torch.arange(7) * 10**12 + 5

    def noise(where: torch.device) -> list[torch.Tensor]:
        t = sample_times(keys.to(where), 9, sampler=sampler, strata=4)
        return [t, *mask_tokens(tokens.to(where), maskable.to(where), t, keys.to(where), 66, 9, masking=masking)]

    assert_equal(noise(device), noise(CPU))


@pytest.mark.parametrize(
    "estimator",
    [
        Estimator(4),
        Estimator(2, 2, masking="bernoulli", shared=False),
        Estimator(4, stratified=True, complementary=True, coupled=True),
        Estimator(3, full_mask=True),
    ],
    ids=["paper", "bernoulli", "best", "full_mask"],
)
def test_noise_of_pairs_is_the_cpus_bit_for_bit(device: torch.device, estimator: Estimator) -> None:
    tokens, _, _ = batch_of(4, 20, CPU)
    answers = 20 * torch.arange(4)[:, None] + torch.arange(5, 17)
    answers[1, 7:], answers[2, 9:] = -1, -1
    keys = torch.tensor([3, 2**40])

    def noise(where: torch.device) -> list[torch.Tensor]:
        pairs = draw_pairs(tokens.to(where), answers.to(where), keys.to(where), 9, estimator, role="reference")
        lengths = (answers >= 0).sum(1).to(where)
        return [*pairs, *draw_masks(lengths, torch.arange(4, device=where), 9, estimator, 12, mask_seed=8)]

    assert_equal(noise(device), noise(CPU))


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.cpu(), b)
