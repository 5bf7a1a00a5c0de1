"""Does the sampler draw from the distribution that it should? Against the exact one, by enumerating every path."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Order, Plan
from lit_llada.text.specials import Specials

MASK, VOCABULARY, DRAWS = 3, 4, 6000
SPECIALS = Specials(MASK)
Row = tuple[int, ...]
Law = dict[Row, float]
FREE, INFILL = (MASK, MASK, MASK), (MASK, 1, MASK, MASK)
starts = pytest.mark.parametrize("start", [FREE, INFILL], ids=["free", "infill"])


def add(law: Law, row: Row, p: float) -> None:
    law[row] = law.get(row, 0.0) + p


def drawn(table: Any, row: Row) -> Iterator[tuple[dict[int, int], float]]:
    """Every joint draw of all candidates, and its probability: anything but the mask."""
    holes = [i for i, token in enumerate(row) if token == MASK]
    q = table.logits(row)[:, :MASK].softmax(-1).tolist()
    for tokens in itertools.product(range(MASK), repeat=len(holes)):
        yield dict(zip(holes, tokens, strict=True)), math.prod(q[i][t] for i, t in zip(holes, tokens, strict=True))


def firsts(table: Any, row: Row, found: dict[int, int], order: Order, count: int) -> Iterator[tuple[Row, float]]:
    """Who may be committed, and how probable that is."""
    if order == "random":
        sets = list(itertools.combinations(found, count))
        yield from ((places, 1 / len(sets)) for places in sets)
        return
    p = table.logits(row).softmax(-1)
    top = p[:, :MASK].sort(-1, descending=True).values
    score = {
        "low_confidence": lambda i: float(p[i, found[i]]),
        "margin": lambda i: float(top[i, 0] - top[i, 1]),
        "entropy": lambda i: float((p[i] * p[i].log()).sum()),
        "left_to_right": lambda i: -i,
    }[order]
    yield tuple(sorted(found, key=score, reverse=True)[:count]), 1.0


def write(row: Row, found: dict[int, int], places: Row) -> Row:
    return tuple(found[i] if i in places else token for i, token in enumerate(row))


def exact(table: Any, start: Row, order: Order, counts: list[int]) -> Law:
    """The distribution over final rows of a sampler that commits ``counts`` tokens in its steps."""
    law: Law = {start: 1.0}
    for count in counts:
        after: Law = {}
        for row, mass in law.items():
            for found, p in drawn(table, row):
                for places, share in firsts(table, row, found, order, count):
                    add(after, write(row, found, places), mass * p * share)
        law = after
    return law


def check(denoiser: Any, start: Row, law: Law, plan: Plan, draws: int = DRAWS) -> None:
    """Chi-square of many rows against ``law``; the bound is four deviations beyond its mean, and seeds are fixed."""
    assert sum(law.values()) == pytest.approx(1.0)
    *_, state = generate(denoiser, torch.tensor([start]).expand(draws, -1), SPECIALS, plan)
    counts = Counter(map(tuple, state.canvas.tolist()))
    assert set(counts) <= {row for row, p in law.items() if p > 0}
    expected = torch.tensor([draws * p for p in law.values()])
    seen = torch.tensor([float(counts[row]) for row in law])
    big = expected >= 5
    chi = float(((seen - expected) ** 2 / expected)[big].sum() + (seen - expected)[~big].sum() ** 2 / draws)
    freedom = int(big.sum())
    assert freedom > 5 and chi < freedom + 4 * (2 * freedom) ** 0.5, (chi, freedom)


@starts
@pytest.mark.parametrize("order", ["random", "low_confidence", "margin", "entropy", "left_to_right"])
def test_one_token_a_step(Table: Any, order: Order, start: Row) -> None:
    table = Table(VOCABULARY)
    check(table, start, exact(table, start, order, [1, 1, 1]), Plan(order=order, temperature=1.0))


@starts
@pytest.mark.parametrize("order", ["random", "low_confidence", "entropy"])
def test_two_tokens_in_a_step(Table: Any, order: Order, start: Row) -> None:
    table = Table(VOCABULARY)
    check(table, start, exact(table, start, order, [2, 1]), Plan(order=order, temperature=1.0, steps=2))


def test_blocks(Table: Any) -> None:
    """The first two masks, then the third: a law of its own for the random order."""
    table, law = Table(VOCABULARY), {}
    for first in range(2):
        middle: Law = {FREE: 1.0}
        for place in (first, 1 - first, 2):
            after: Law = {}
            for row, mass in middle.items():
                for found, p in drawn(table, row):
                    add(after, write(row, found, (place,)), mass * p)
            middle = after
        for row, p in middle.items():
            add(law, row, p / 2)
    check(table, FREE, law, Plan(order="random", temperature=1.0, block_length=2))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_each_draw(temperature: float, Table: Any) -> None:
    table = Table(VOCABULARY)
    drawn_law: Law = {FREE: 1.0}
    for place in range(3):
        after: Law = {}
        for row, mass in drawn_law.items():
            q = (table.logits(row)[place, :MASK] / temperature).softmax(-1).tolist()
            for token, p in enumerate(q):
                add(after, write(row, {place: token}, (place,)), mass * p)
        drawn_law = after
    check(table, FREE, drawn_law, Plan(order="left_to_right", temperature=temperature))


@starts
def test_threshold(Table: Any, start: Row) -> None:
    """All of a joint draw that are likely enough; nobody is, so the likeliest."""
    table, bound = Table(VOCABULARY), 0.5
    law: Law = {start: 1.0}
    for _ in start:
        after: Law = {}
        for row, mass in law.items():
            p = table.logits(row).softmax(-1)
            for found, q in drawn(table, row):
                kept = tuple(i for i in found if p[i, found[i]] >= bound)
                best = tuple(sorted(found, key=lambda i: -p[i, found[i]])[:1])
                add(after, write(row, found, kept or best), mass * q)
        law = after
    check(table, start, law, Plan(count="threshold", bound=bound, temperature=1.0))


@pytest.mark.parametrize(("order", "eta"), [("random", 0.3), ("random", 1.0), ("low_confidence", 1.0)])
def test_remdm_is_its_markov_chain(Table: Any, eta: float, order: Order) -> None:
    """Each committed token goes back with sigma, and as many more are committed as go back."""
    table, start = Table(VOCABULARY), (MASK,) * 4
    law: Law = {start: 1.0}
    for so_far in range(4):  # tokens before the step; there is one more after it
        left, after = 3 - so_far, {}
        sigma = min(eta, left / max(so_far, 1))
        for row, mass in law.items():
            done = [i for i, token in enumerate(row) if token != MASK]
            for dice in itertools.product([True, False], repeat=len(done)):
                gone = [i for i, back in zip(done, dice, strict=True) if back]
                chance = math.prod(sigma if back else 1 - sigma for back in dice)
                ways = list(itertools.combinations(gone, min(len(gone), left)))  # not more than what is left to fill
                for back in ways:
                    for found, p in drawn(table, row):
                        for places, s in firsts(table, row, found, order, 1 + len(back)):
                            new = tuple(MASK if i in back else t for i, t in enumerate(write(row, found, places)))
                            add(after, new, mass * chance / len(ways) * p * s)
        law = after
    plan = Plan(order=order, temperature=1.0, remask="remdm", remask_bound=eta)
    check(table, start, law, plan)
    assert sum(abs(law[row] - p) for row, p in exact(table, start, order, [1] * 4).items()) > 0.05  # it does matter


class Conditional:
    """The perfect denoiser of a known joint distribution ``[V-1, V-1, V-1]``."""

    def __init__(self, joint: Tensor) -> None:
        self.joint, self.known = joint, {}

    def logits(self, row: Row) -> Tensor:
        index = tuple(slice(None) if t == MASK else slice(t, t + 1) for t in row)
        part = self.joint[index]
        out = torch.full((3, VOCABULARY), -torch.inf, dtype=torch.float64)
        for i, token in enumerate(row):
            if token == MASK:
                out[i, :MASK] = part.sum([j for j in range(3) if j != i]).log()
        return out

    def __call__(self, tokens: Tensor, mask: Any, rows: Tensor) -> Tensor:
        known = {row: self.logits(row) for row in map(tuple, tokens.tolist())}
        return torch.cat([known[row] for row in map(tuple, tokens.tolist())])[rows]


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_a_perfect_denoiser_gives_the_joint_distribution(order: Order) -> None:
    joint = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    joint[0, 1, 2] = 0.0  # never
    joint /= joint.sum()
    law = {row: float(joint[row]) for row in itertools.product(range(3), repeat=3)}
    check(Conditional(joint), FREE, law, Plan(order=order, temperature=1.0), draws=12000)
