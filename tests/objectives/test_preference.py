"""Every ELBO estimator has exactly the ELBO for its mean: proven by enumeration and quadrature on a tiny answer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_llada.errors import UserError
from lit_llada.objectives import preference
from lit_llada.objectives.coupling import aligned, answer_keys
from lit_llada.objectives.preference import (
    ESTIMATORS,
    Estimator,
    draw_masks,
    estimate,
    preference_loss,
    score,
    score_variance,
)
from lit_llada.objectives.two_pass import two_pass
from lit_llada.seeding import Stream

VARIANTS = {
    "naive": Estimator(times=1),
    "vrpo": Estimator(times=4),
    "masks": Estimator(times=2, masks=2),
    "stratified": Estimator(times=4, stratified=True),
    "stratified_masks": Estimator(times=3, masks=2, stratified=True),
    "complementary": Estimator(times=4, complementary=True),
    "both": Estimator(times=4, complementary=True, stratified=True),
    "full": Estimator(times=4, full_mask=True),
    "full_stratified": Estimator(times=4, full_mask=True, stratified=True),
    "all": Estimator(times=5, full_mask=True, stratified=True, complementary=True, coupled=True),
}


def table(length: int, seed: int = 0) -> Tensor:
    """``[2^L, L]``: log p of each token of the answer, when the tokens of a set (as bits) are masked."""
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(2**length, length, dtype=torch.float64, generator=generator).mul(5)


def value(masked: Tensor, logs: Tensor) -> Tensor:
    """``[...]`` sum of log p over the masked tokens ``[..., L]``."""
    bits = (masked.long() * 2 ** torch.arange(masked.shape[-1])).sum(-1)
    return (logs[bits] * masked).sum(-1)


def exact_elbo(logs: Tensor) -> float:
    length = logs.shape[1]
    total = 0.0
    for size in range(1, length + 1):
        for chosen in itertools.combinations(range(length), size):
            masked = torch.zeros(length, dtype=torch.bool)
            masked[list(chosen)] = True
            total += float(value(masked, logs)) / (size * math.comb(length, size))
    return total


def expectation(estimator: Estimator, length: int, logs: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """The mean of the estimate: exact over the order of the tokens, by midpoints over the noise level.

    Everything is piecewise constant in the level with breaks at multiples of 1 / (L (L - 1) n), so midpoints of a grid
    that contains them integrate exactly.
    """
    cells = 2 * length * max(length - 1, 1) * estimator.times * 4
    orders = list(itertools.permutations(range(length)))
    level = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells

    def uniforms(*keys: int | Tensor) -> Tensor:
        if Stream.COUNT in keys[:2]:
            u = level[None].expand(1 if estimator.stratified else len(keys[3]), -1)  # type: ignore[arg-type]
            return u[0][None] if estimator.stratified else u
        n = estimator.draws
        order = torch.tensor(orders[rank], dtype=torch.float64) / length
        return order.expand(n, cells, length)

    total = 0.0
    for rank in range(len(orders)):  # noqa: B007  (read by uniforms)
        monkeypatch.setattr(preference, "keyed_uniform", uniforms)
        draws = draw_masks(torch.full((cells,), length), torch.arange(cells), 0, estimator, length)
        total += float(estimate(draws, value(draws.masked, logs)).mean()) / len(orders)
    return total


@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_mean_is_the_elbo(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbiased draws are identically distributed up to their level, so one order of tokens for all draws will do."""
    logs = table(length)
    mean = expectation(VARIANTS[name], length, logs, monkeypatch)
    assert mean == pytest.approx(exact_elbo(logs), abs=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_sampled_means_agree(name: str) -> None:
    """The same through the real keys, with ragged lengths in one call."""
    repeats, lengths = 40_000, (1, 3, 5)
    for n, length in enumerate(lengths):
        logs = table(length)
        draws = draw_masks(torch.full((repeats,), length), torch.arange(repeats), 3, VARIANTS[name], 6)
        assert not draws.masked[..., length:].any()
        values = estimate(draws, value(draws.masked[..., :length], logs))
        error = float(values.std()) / repeats**0.5 + 1e-12
        assert abs(float(values.mean()) - exact_elbo(logs)) < 4.5 * error, n


def test_bernoulli_is_unbiased_too() -> None:
    """Given t, every token is masked with probability t and weighs 1 / t; its mean over t by quadrature."""
    length, logs = 3, table(3)
    nodes = torch.tensor([0.5 - 0.5 * math.sqrt(0.6), 0.5, 0.5 + 0.5 * math.sqrt(0.6)], dtype=torch.float64)
    weights = torch.tensor([5 / 18, 8 / 18, 5 / 18], dtype=torch.float64)  # exact to degree 5
    total = 0.0
    for t, w in zip(nodes, weights, strict=True):
        for bits in itertools.product([False, True], repeat=length):
            masked, k = torch.tensor(bits), sum(bits)
            if k:
                total += float(w * t**k * (1 - t) ** (length - k) / t * value(masked, logs))
    assert total == pytest.approx(exact_elbo(logs), abs=1e-12)
    draws = draw_masks(torch.full((60_000,), 3), torch.arange(60_000), 0, Estimator(2, masking="bernoulli"), 3)
    share = draws.masked.double().mean(-1)
    level = 1 / (draws.weight * 2)
    assert float((share - level).mean()) == pytest.approx(0, abs=4e-3)
    assert float(level.mean()) == pytest.approx(0.5, abs=3e-3)


def test_noise_is_shared_coupled_or_neither() -> None:
    lengths, pairs = torch.tensor([7, 7]), torch.tensor([5, 6])
    shared, apart = Estimator(4), Estimator(4, shared=False)
    keys = answer_keys(pairs, coupled=False)
    assert len(set(keys.flatten().tolist())) == 4 and torch.equal(*answer_keys(pairs, coupled=True))
    policy = draw_masks(lengths, keys[0], 0, shared, 7)
    assert torch.equal(policy.masked, draw_masks(lengths, keys[0], 0, shared, 7, role="reference").masked)
    assert not torch.equal(policy.masked, draw_masks(lengths, keys[0], 0, apart, 7, role="reference").masked)
    assert not torch.equal(policy.masked, draw_masks(lengths, keys[1], 0, shared, 7).masked)


def test_coupled_answers_are_aligned_where_they_agree() -> None:
    """Counted from the start up to the first difference, from the end after the last one."""
    tokens = torch.tensor([[7, 1, 2, 3, 4, 5, 0], [7, 1, 2, 9, 9, 4, 5], [6, 6, 6, 0, 0, 0, 0], [6, 6, 0, 0, 0, 0, 0]])
    lengths = torch.tensor([5, 2, 6, 1])
    answers = torch.arange(28).view(4, 7)[[0, 2, 1, 3], 1:]  # chosen: rows 0 and 2; rejected: rows 1 and 3
    answers = torch.where(torch.arange(6) < lengths[:, None], answers, -1)
    names = aligned(tokens, answers)
    assert names[0, :5].tolist() == [0, 1, 2, -2, -1]  # 1 2 3 4 5
    assert names[2, :6].tolist() == [0, 1, 2, 3, -2, -1]  # 1 2 9 9 4 5
    assert names[1, :2].tolist() == [0, 1] and names[3, :1].tolist() == [0]  # 6 6 and 6: one token, not two, is shared
    keys = answer_keys(torch.arange(400), coupled=True).flatten()
    places, sizes = names[[0, 2]].repeat_interleave(400, 0), torch.tensor([5, 6]).repeat_interleave(400)
    met = []
    for given in (None, places):
        masked = draw_masks(sizes, keys, 0, Estimator(8, coupled=True), 6, places=given).masked
        met.append(float((masked[:, :400, 3:5] == masked[:, 400:, 4:6]).double().mean()))
    assert met[1] > met[0] + 0.15, met


def test_names_leave_the_mean_alone() -> None:
    repeats, logs = 40_000, table(5)
    names = torch.tensor([0, 1, -3, -2, -1]).expand(repeats, 5)
    draws = draw_masks(torch.full((repeats,), 5), torch.arange(repeats), 3, ESTIMATORS["best"], 5, places=names)
    values = estimate(draws, value(draws.masked, logs))
    assert abs(float(values.mean()) - exact_elbo(logs)) < 4.5 * float(values.std()) / repeats**0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_other_masks_at_the_same_noise_levels(name: str) -> None:
    lengths, keys = torch.full((50,), 9), torch.arange(50)
    one, other = (draw_masks(lengths, keys, 0, VARIANTS[name], 9, mask_seed=seed) for seed in (None, 5))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.masked.sum(-1), other.masked.sum(-1))
    assert not torch.equal(one.masked, other.masked)


def test_complements_cover_the_answer_and_weights_are_those_of_the_counts() -> None:
    lengths = torch.tensor([6, 9])
    draws = draw_masks(lengths, torch.tensor([1, 2]), 0, Estimator(5, complementary=True, full_mask=True), 9)
    inside = torch.arange(9) < lengths[:, None]
    for j in (0, 2):
        assert torch.equal(draws.masked[j] ^ draws.masked[j + 1], inside)
        assert not (draws.masked[j] & draws.masked[j + 1]).any()
    assert torch.equal(draws.masked[4], inside)
    torch.testing.assert_close(draws.weight[4], 1 / lengths.double())


def test_score_and_losses() -> None:
    policy = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -2.0], [-2.0, -1.5]], dtype=torch.float64)
    s = score(policy, reference, beta=0.2)
    torch.testing.assert_close(s, 0.2 * torch.tensor([1.5, -0.5], dtype=torch.float64))
    torch.testing.assert_close(preference_loss(s, 0.2), torch.log1p(torch.exp(-s)))
    torch.testing.assert_close(preference_loss(s, 0.2, "ipo"), (s / 0.2 - 2.5) ** 2)


def test_presets_and_what_cannot_be_drawn() -> None:
    assert ESTIMATORS["naive"].draws == 1 and ESTIMATORS["vrpo"].draws == 8 and ESTIMATORS["vrpo"].shared
    assert ESTIMATORS["best"].draws == ESTIMATORS["vrpo"].draws and ESTIMATORS["best"].shared
    for wrong in (
        {"times": 0},
        {"complementary": True, "masks": 2},
        {"complementary": True, "times": 3},
        {"full_mask": True, "masking": "bernoulli"},
        {"full_mask": True, "times": 1},
    ):
        with pytest.raises(UserError, match="estimator"):
            replace(Estimator(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_two_passes_give_the_gradient_of_one(draws: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    inputs = torch.randn(draws, 4, 6, dtype=torch.float64, generator=generator)
    graphs = 0

    def log_likelihood(draw: int) -> tuple[Tensor, Tensor]:
        nonlocal graphs
        graphs += torch.is_grad_enabled()
        hidden = (weight @ inputs[draw]).tanh()
        return hidden.sum(0), hidden.square().mean()

    def loss(sums: Tensor) -> Tensor:
        return preference_loss(sums.sum(0)[:3] - sums.sum(0)[3:], 0.2).sum() + sums.square().mean()

    rest, sums = two_pass(log_likelihood, draws, loss, scale=2.0)
    assert graphs == draws
    (rest / 2.0).backward()
    assert weight.grad is not None
    found, weight.grad = weight.grad, None
    parts = [log_likelihood(draw) for draw in range(draws)]
    every = torch.stack([part[0] for part in parts])
    ((loss(every) + sum(part[1] for part in parts)) / 2.0).backward()
    torch.testing.assert_close(sums, every)
    torch.testing.assert_close(found, weight.grad, rtol=0, atol=1e-13)


def test_the_variance_of_the_score_is_estimated_without_bias() -> None:
    pairs, logs = 20_000, table(4, 5)
    keys = answer_keys(torch.arange(pairs), coupled=False).flatten()
    draws = draw_masks(torch.full((2 * pairs,), 4), keys, 0, Estimator(4), 4)
    sums = value(draws.masked, logs)
    chosen, rejected = estimate(draws, sums).chunk(2)
    true = float((0.2 * (chosen - rejected)).var())
    assert float(score_variance(draws, sums, 0.2).mean()) == pytest.approx(true, rel=0.03)
