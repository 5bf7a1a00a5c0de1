"""The engine against a second sampler, written from the rules alone: one row, one position, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llada.objectives.noise import keyed_uniform
from lit_llada.sampling.canvas import Reason
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Plan
from lit_llada.seeding import Stream
from lit_llada.text.specials import Specials

Row = list[int]
Ask = Callable[[Row], list[list[float]]]
VOCABULARY, MASK, EOS, EOT, SPECIALS = 13, 12, 11, 10, Specials(12, 11, 10, (9, 3))


def uniform(*keys: int) -> float:
    return float(keyed_uniform(torch.tensor(keys[0]), *keys[1:]))


class Guess(NamedTuple):
    token: int
    p: float
    entropy: float
    turn: tuple[float, ...]  # the smallest goes first
    late: bool


def guess(logits: list[float], place: int, step: int, seed: int, plan: Plan) -> Guess:
    """What the model would write at one place."""
    ends = [EOS] if plan.official else [EOS, EOT]
    if plan.eos == "never":
        logits = [-math.inf if v in ends else x for v, x in enumerate(logits)]
    allowed = {v: x for v, x in enumerate(logits) if v not in (MASK, *SPECIALS.forbidden) and x > -math.inf}
    if plan.temperature:
        u = keyed_uniform(torch.tensor(seed), step, place, Stream.TOKEN, torch.arange(len(logits))).tolist()
        allowed = {v: x - plan.temperature * math.log(-math.log(u[v])) for v, x in allowed.items()}
    token = max(allowed, key=lambda v: (allowed[v], -v))
    gone = ([EOT] if plan.temperature else [EOS, EOT]) if plan.official and plan.eos == "last" else []
    weight = [0.0 if v in gone else math.exp(x) for v, x in enumerate(logits)]
    p = [w / sum(weight) for w in weight]
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    best, second = sorted((p[v] for v in allowed), reverse=True)[:2]
    first = {
        "low_confidence": -p[token],
        "random": -uniform(seed, step, place, Stream.TURN),
        "margin": second - best,
        "entropy": entropy,
        "left_to_right": place,
    }[plan.order]
    late = plan.eos == "last" and not plan.official and token in (EOS, EOT)
    return Guess(token, p[token], entropy, (late, first, place), late)


def choose(guesses: dict[int, Guess], count: int, plan: Plan) -> tuple[list[int], bool]:
    """Who is committed, and whether that is only the best of those who all failed."""
    turn = sorted(guesses, key=lambda i: guesses[i].turn)
    if plan.count == "quota":
        return turn[:count], False
    bound = {"threshold": 0.9, "factor": 1.0, "frechet": 1.0, "entropy_bound": 0.1}[plan.count]
    bound = bound if plan.bound is None else plan.bound
    ready = [i for i in turn if not guesses[i].late] or turn  # nobody waits for end tokens where nothing else is left
    if plan.count == "threshold":
        kept = [i for i in ready if guesses[i].p >= bound]
    else:
        kept = []
        for n in range(1, len(ready) + 1):
            doubts = [1 - guesses[i].p for i in ready[:n]]
            entropies = [guesses[i].entropy for i in ready[:n]]
            if (
                (plan.count == "factor" and (n + 1) * max(doubts) < bound)
                or (plan.count == "frechet" and sum(doubts) + max(doubts) < bound)
                or (plan.count == "entropy_bound" and sum(entropies) - max(entropies) <= bound)
            ):
                kept = ready[:n]
    return (kept, False) if kept or not turn else (turn[:1], True)


def blocks_of(row: Row, plan: Plan) -> list[list[int]]:
    holes = [i for i, token in enumerate(row) if token == MASK]
    if plan.block_length is None:
        return [holes] if holes else []
    if plan.aligned:
        starts = sorted({i // plan.block_length for i in holes})
        return [[i for i in holes if i // plan.block_length == start] for start in starts]
    return [holes[n : n + plan.block_length] for n in range(0, len(holes), plan.block_length)]


def shares(masks: int, number: int, blocks: int, plan: Plan) -> list[int]:
    """How many of a block's masks are filled in each of its steps."""
    if plan.count != "quota":
        return [1] if plan.official else []
    steps = masks if plan.steps is None else plan.steps // blocks + (number < plan.steps % blocks)
    counts = [masks // steps + (i < masks % steps) for i in range(steps)]
    return counts if plan.official else [n for n in counts if n]


class Walk:
    """One row on its way; ``states`` are (canvas, reasons, confidences, entropies, forwards) after each step."""

    def __init__(self, ask: Ask, start: Row, plan: Plan, seed: int) -> None:
        self.ask, self.plan, self.seed = ask, plan, seed
        self.row, self.forwards = list(start), 0
        self.sure = [float(token != MASK) for token in start]
        self.entropy = [0.0] * len(start)
        self.states: list[tuple[Any, ...]] = []
        self.look([Reason.NONE] * len(start))
        blocks = blocks_of(start, plan)
        for number, block in enumerate(blocks):
            behind = range(block[-1] + 1, len(start))
            solid = any(start[i] != MASK for i in behind)
            counts = shares(len(block), number, len(blocks), plan)
            step = 0
            while step < len(counts) or self.open(block):
                self.step(block, counts, step, [] if solid else list(behind))
                step += 1
            if not self.open(range(len(start))):
                break

    def open(self, places: Any) -> list[int]:
        return [i for i in places if self.row[i] == MASK]

    def look(self, reasons: list[Reason]) -> None:
        self.states.append((list(self.row), reasons, list(self.sure), list(self.entropy), self.forwards))

    def step(self, block: list[int], counts: list[int], step: int, behind: list[int]) -> None:
        plan, number, reasons = self.plan, len(self.states) - 1, [Reason.NONE] * len(self.row)
        logits = self.ask(self.row)
        self.forwards += 1
        guesses = {i: guess(logits[i], i, number, self.seed, plan) for i in self.open(block)}
        # A block from which tokens were taken back may need more steps than were planned: all like the last ones.
        count = counts[step] if step < len(counts) else (len(block) // len(counts) if counts else 0)
        left = len(block) - sum(counts[: step + 1])
        back = self.remdm(block, left, number) if plan.remask == "remdm" else []
        kept, forced = choose(guesses, count + len(back), plan)
        for i in back:
            self.put(i, MASK, 0.0, 0.0)
            reasons[i] = Reason.REMASKED
        for i in kept:
            self.put(i, guesses[i].token, guesses[i].p, guesses[i].entropy)
            reasons[i] = Reason.FORCED if forced else Reason.SELECTED
        if plan.remask == "verify":
            for i in self.doubted(sorted(kept), guesses):
                self.put(i, MASK, 0.0, 0.0)
                reasons[i] = Reason.REMASKED
        if plan.stop_at_eos and not self.open(block) and {self.row[i] for i in block} & {EOS, EOT}:
            for i in self.open(behind):
                self.row[i], reasons[i] = EOS, Reason.ENDED
        self.look(reasons)

    def put(self, place: int, token: int, p: float, entropy: float) -> None:
        self.row[place], self.sure[place], self.entropy[place] = token, p, entropy

    def remdm(self, block: list[int], left: int, number: int) -> list[int]:
        done = [i for i in block if self.row[i] != MASK]
        cap = 0.1 if self.plan.remask_bound is None else self.plan.remask_bound
        dice = sorted((uniform(self.seed, number, i, Stream.BACK), i) for i in done)
        return [i for u, i in dice if u < min(cap, left / len(done))][:left]

    def doubted(self, kept: list[int], guesses: dict[int, Guess]) -> list[int]:
        bound = 0.9 if self.plan.remask_bound is None else self.plan.remask_bound
        surest = max(kept, key=lambda i: guesses[i].p, default=None)
        wrong = []
        for i in kept:
            if i != surest:
                self.forwards += 1
                again = self.ask([MASK if j == i else token for j, token in enumerate(self.row)])[i]
                if math.exp(again[self.row[i]]) / sum(map(math.exp, again)) < bound:
                    wrong.append(i)
        return wrong


def guided(ask: Ask, start: Row, scale: float) -> Ask:
    def both(row: Row) -> list[list[float]]:
        if not scale:
            return ask(row)
        free = ask([MASK if given != MASK else token for token, given in zip(row, start, strict=True)])
        return [[u + (scale + 1) * (c - u) for c, u in zip(*x, strict=True)] for x in zip(ask(row), free, strict=True)]

    return both


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    official, eos = draw(st.integers(0, 3)) == 0, draw(st.sampled_from(["free", "last", "never"]))
    count = draw(st.sampled_from(["quota", "quota", "threshold", "factor", "frechet", "entropy_bound"]))
    quota, block = count == "quota", draw(st.none() | st.integers(1, 8))
    orders = ["low_confidence", "random", "left_to_right"]  # the published late EOS knows no others
    orders += [] if official and eos == "last" else ["margin", "entropy"]
    return Plan(
        steps=draw(st.none() | st.integers(14, 20) | st.integers(1, 6)) if quota else None,
        block_length=block,
        aligned=block is not None and draw(st.booleans()),
        order=draw(st.sampled_from(orders)),
        count=count,
        bound=None if quota else draw(st.none() | st.floats(0.05, 2.0)),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
        remask=draw(st.sampled_from(["none", "remdm", "remdm", "verify"] if quota else ["none", "verify"])),
        remask_bound=draw(st.sampled_from([None, 0.3, 1.0, 1.0])),
        eos=eos,
        stop_at_eos=draw(st.booleans()),
        official=official,
    )


batches = st.integers(6, 14).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([MASK] * 5 + [0, 1, EOS]), min_size=n, max_size=n), max_size=3)
)


@settings(max_examples=250)
@given(batches.filter(bool), plans(), st.sampled_from([0.0, 0.0, 1.0]), st.integers(0, 99), st.booleans())
def test_engine_and_reference_agree_on_every_state(
    Table: Any, tiny: Any, batch: list[Row], plan: Plan, scale: float, seed: int, net: bool
) -> None:
    blocks = max(len(blocks_of(row, plan)) for row in batch)
    if plan.steps is not None and plan.steps < blocks:
        plan = replace(plan, steps=blocks)
    denoiser = tiny(VOCABULARY, dtype=torch.float64) if net else Table(VOCABULARY, favour={EOS: 1.0})
    if net:  # for masks alone a net says the same everywhere, but for rounding
        batch = [[1, *row[1:]] for row in batch]
    model = Guided(denoiser, scale, MASK) if scale else denoiser
    canvas, seeds = torch.tensor(batch), seed + 5 * torch.arange(len(batch))
    states = list(generate(model, canvas, SPECIALS, plan, seeds=seeds, details=True))

    @torch.no_grad()
    def ask(row: Row) -> list[list[float]]:
        return denoiser(torch.tensor([row]), None, torch.arange(len(row))).tolist()

    walks = [Walk(guided(ask, row, scale), row, plan, int(seeds[i])).states for i, row in enumerate(batch)]
    assert len(states) == max(map(len, walks))
    for step, state in enumerate(states):
        for i, walk in enumerate(walks):
            row, reasons, sure, entropy, forwards = walk[min(step, len(walk) - 1)]
            assert state.canvas[i].tolist() == row, step
            assert state.reason[i].tolist() == (reasons if step < len(walk) else [0] * len(row)), step
            assert state.confidence[i].tolist() == pytest.approx(sure, abs=1e-6)
            assert state.entropy[i].tolist() == pytest.approx(entropy, abs=1e-6)
            assert int(state.forwards[i]) == forwards
