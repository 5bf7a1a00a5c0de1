"""What is measured of an estimator is what enumeration of every mask of a tiny answer says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lit_llada.data.batch import AnswerBatch
from lit_llada.evaluation.variance import Ask, measure, split, well_known
from lit_llada.objectives.preference import Estimator

BETA = 0.5
LENGTHS = (4, 3)  # of the chosen and the rejected answer


def batch_of(pairs: int, first: int = 0, ids: tuple[list[int], list[int]] = ([0, 1, 2, 3], [4, 5, 6])) -> AnswerBatch:
    """The same pair again and again, each with noise of its own."""
    width = max(map(len, ids))
    tokens = torch.tensor([answer + [9] * (width - len(answer)) for answer in ids]).repeat_interleave(pairs, 0)
    place = torch.arange(2 * pairs * width).view(2 * pairs, width)
    inside = torch.arange(width) < torch.tensor([len(answer) for answer in ids]).repeat_interleave(pairs)[:, None]
    keys = (first + torch.arange(pairs)).repeat(2)
    return AnswerBatch(tokens, torch.zeros_like(tokens), torch.where(inside, place, -1), keys, keys)


def table(seed: int) -> Tensor:
    """``[2, 16, 4]``: log p of each token of both answers, when the tokens of a set (as bits) are masked."""
    return -torch.rand(2, 16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(8)


POLICY, REFERENCE = table(0), table(1)


def lookup(logs: Tensor) -> Ask:
    def ask(batch: AnswerBatch, masked: Tensor) -> Tensor:
        bits = (masked.long() * 2 ** torch.arange(masked.shape[1])).sum(1)
        side = torch.arange(2).repeat_interleave(len(masked) // 2)
        return (logs[side, bits, : masked.shape[1]] * masked).sum(1)

    return ask


def every_mask(length: int) -> Iterator[tuple[int, float, Tensor]]:
    """A number of tokens, the probability of a mask, and the mask; ``[4]``."""
    for size in range(1, length + 1):
        for chosen in itertools.combinations(range(length), size):
            masked = torch.zeros(4, dtype=torch.bool)
            masked[list(chosen)] = True
            yield size, 1 / (length * math.comb(length, size)), masked


def enumerated(logs: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every mask of an answer: number of tokens, probability, and what a single draw with it estimates."""
    length, found = LENGTHS[side], []
    for size, probability, masked in every_mask(length):
        bits = int((masked.long() * 2 ** torch.arange(4)).sum())
        found.append((float(size), probability, length / size * (logs[side, bits] * masked).sum()))
    sizes, probabilities, values = (
        torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in column]) for column in zip(*found, strict=True)
    )
    return sizes, probabilities, values


def parts(logs: Tensor, side: int) -> tuple[float, float]:
    """V_t and V_y of one draw, by definition."""
    sizes, probabilities, values = enumerated(logs, side)
    mean, between, within = float((probabilities * values).sum()), 0.0, 0.0
    for size in range(1, LENGTHS[side] + 1):
        p, x = probabilities[sizes == size], values[sizes == size]
        level = float((p * x).sum() / p.sum())
        between += float(p.sum()) * (level - mean) ** 2
        within += float((p * (x - level) ** 2).sum())
    return between, within


def all_pairs(policy: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and score of every two masks of chosen and rejected answer, one draw, shared."""
    (_, p, chosen), (_, q, rejected) = (enumerated(policy - REFERENCE, side) for side in (0, 1))
    return (p[:, None] * q).flatten(), BETA * (chosen[:, None] - rejected).flatten()


def moments(p: Tensor, x: Tensor) -> tuple[float, float]:
    mean = (p * x).sum()
    return float(mean), float((p * (x - mean).square()).sum())


def exact_losses(pairs: int) -> list[Tensor]:
    p, scores = all_pairs(POLICY)
    return [-(p * scores).sum().sigmoid().log().expand(pairs)]


@pytest.mark.parametrize(("times", "masks"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_both_parts_of_the_variance_are_those_of_the_enumeration(times: int, masks: int) -> None:
    """V_t / n_t + V_y / (n_t n_y), Lemma 5, with V_t + V_y the variance of one draw."""
    (t0, y0), (t1, y1) = (parts(POLICY - REFERENCE, side) for side in (0, 1))
    v_t, v_y = BETA**2 * (t0 + t1), BETA**2 * (y0 + y1)
    assert v_t > 0.1 * v_y and v_t + v_y == pytest.approx(moments(*all_pairs(POLICY))[1], rel=1e-12)
    found = measure(
        [batch_of(4000)], lookup(POLICY), lookup(REFERENCE), Estimator(times, masks), exact_losses(4000), beta=BETA
    )
    assert float(found.between.mean()) == pytest.approx(v_t / times, rel=0.06)
    assert float(found.within.mean()) == pytest.approx(v_y / (times * masks), rel=0.03)


def test_unshared_noise_adds_both_models_up() -> None:
    each = [parts(logs, side) for logs in (POLICY, REFERENCE) for side in (0, 1)]
    apart = Estimator(2, shared=False)
    found = measure([batch_of(4000)], lookup(POLICY), lookup(REFERENCE), apart, exact_losses(4000), beta=BETA)
    assert float(found.between.mean()) == pytest.approx(BETA**2 * sum(t for t, _ in each) / 2, rel=0.06)
    assert float(found.within.mean()) == pytest.approx(BETA**2 * sum(y for _, y in each) / 2, rel=0.03)


def test_stratified_levels_leave_only_what_masks_do() -> None:
    """As many levels as the answers have tokens: each number of masked tokens comes once."""
    ids = ([0, 1, 2, 3], [4, 5, 6, 7])
    for stratified in (False, True):
        found = measure(
            [batch_of(2000, ids=ids)], lookup(POLICY), lookup(REFERENCE), Estimator(4, stratified=stratified),
            [torch.zeros(2000)], beta=BETA,
        )  # fmt: skip
        share = float(found.between.mean() / found.score.mean())
        assert abs(share) < 0.02 if stratified else share > 0.1


def test_loss_and_its_bias_are_those_of_the_enumeration() -> None:
    p, scores = all_pairs(POLICY)
    mean, variance = moments(p, -scores.sigmoid().log())
    known = exact_losses(20_000)
    found = measure(
        [batch_of(20_000)], lookup(POLICY), lookup(REFERENCE), Estimator(1), known, beta=BETA, repeats=4
    )  # fmt: skip
    assert float(found.loss.mean()) == pytest.approx(variance, rel=0.03)
    assert float(found.bias.mean()) == pytest.approx(mean - float(known[0][0]), rel=0.03) and mean > float(known[0][0])
    away = (p * (-scores.sigmoid().log() - known[0][0]).abs()).sum()
    assert float(found.distance.mean()) == pytest.approx(float(away), rel=0.03)
    row = found.means()
    assert row["holds"] and row["distance"] < row["root"] and row["loss"] < 4 * row["score"]
    assert not found._replace(loss=5 * found.score).means()["holds"]
    assert not found._replace(distance=1.1 * found.score.sqrt()).means()["holds"]


def test_a_large_budget_knows_the_loss() -> None:
    known = well_known([batch_of(500)], lookup(POLICY), lookup(REFERENCE), Estimator(256), beta=BETA)[0]
    p, scores = all_pairs(POLICY)
    assert float(known.mean()) == pytest.approx(float(exact_losses(1)[0]), abs=0.02)
    slope = float((p * scores).sum().neg().sigmoid())
    assert float(known.std()) == pytest.approx(slope * (moments(p, scores)[1] / 256) ** 0.5, rel=0.2)


def test_the_gradients_variance_is_that_of_the_enumeration() -> None:
    logs = POLICY.clone().requires_grad_()
    p, scores = all_pairs(logs)
    each = [torch.autograd.grad(-s.sigmoid().log(), logs, retain_graph=True)[0].flatten() for s in scores]
    gradients = torch.stack(each)
    exact = float((p[:, None] * (gradients - (p[:, None] * gradients).sum(0)).square()).sum())
    batches = [batch_of(2, first=2 * i) for i in range(40)]
    found = measure(
        batches, lookup(logs), lookup(REFERENCE), Estimator(1), exact_losses(2) * 40,
        beta=BETA, repeats=8, parameters=[logs],
    )  # fmt: skip
    assert len(found.gradient) == 40
    assert float(found.gradient.mean()) == pytest.approx(exact / 2, rel=0.1)  # two pairs with noise of their own


def test_equal_answers_have_no_variance_if_coupled() -> None:
    """The rejected answer has a token more at its beginning; what does not see it gives the score no noise."""
    ids = ([1, 2, 3], [0, 1, 2, 3])
    gain = torch.tensor([0.0, 3.0, -2.0, 1.0])

    def ask(batch: AnswerBatch, masked: Tensor) -> Tensor:
        own = batch.tokens.flatten()[batch.answers.clamp(min=0)]
        return (gain[own.clamp(max=3)] * masked).sum(1).double()

    def none(batch: AnswerBatch, masked: Tensor) -> Tensor:
        return torch.zeros(len(masked), dtype=torch.float64)

    apart, coupled = (
        float(measure([batch_of(3000, ids=ids)], ask, none, Estimator(2, coupled=c), [torch.zeros(3000)]).score.mean())
        for c in (False, True)
    )
    assert coupled < 0.5 * apart


def test_split_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(3, 1, 50_000, generator=generator, dtype=torch.float64) * 2
    values = groups + torch.randn(3, 2, 50_000, generator=generator, dtype=torch.float64)
    between, within = split(values)
    assert float(between.mean()) == pytest.approx(4, rel=0.02) and float(within.mean()) == pytest.approx(1, rel=0.02)
    assert (between < 0).any()
