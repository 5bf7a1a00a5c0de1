"""Collects wrong answers of a net: it is asked in rounds, until there are enough of each task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from lit_llada.evaluation.exact_match import Question, Reply, by_task, shuffled
from lit_llada.seeding import mix

# Questions and their noise -> the number of each and its reply, in any order.
Answerer = Callable[[list[Question], list[int]], Iterable[tuple[int, Reply]]]
Asker = Callable[[list[int]], dict[int, list[Reply]]]  # numbers of questions -> what was answered to each
COUNTED = ("prompts", "drawn", "right", "wrong", "unended", "kept")


class Found(NamedTuple):
    """Pairs, and how they were found.

    Attributes:
        pairs: number of the question, its rejected answer; one task after the other, and again.
        counts: task -> how many prompts were asked, and of the answers drawn how many were right, wrong, without an
            end (that makes ``drawn``); and how many pairs were kept.
    """

    pairs: list[tuple[int, str]]
    counts: dict[str, dict[str, int]]


def asker(questions: Sequence[Question], answer: Answerer, samples: int, seed: int) -> Asker:
    """Asker each question ``samples`` times; the noise depends on the seed, the question's number and the sample's."""

    def ask(numbers: list[int]) -> dict[int, list[Reply]]:
        each = [(number, sample) for number in numbers for sample in range(samples)]
        seeds = [mix(mix(seed, number), sample, 1_009) for number, sample in each]
        said = dict(answer([questions[number] for number, _ in each], seeds))
        return {number: [said[i * samples + j] for j in range(samples)] for i, number in enumerate(numbers)}

    return ask


def find_wrong(
    questions: Sequence[Question],
    ask: Asker,
    size: int,
    limit: int,
    seed: int,
    usable: Callable[[Reply], bool],
    mixed: bool = False,
) -> Found:
    """Asker in rounds until there are enough wrong answers of each task, or no prompt may be asked any more.

    Args:
        questions: questions of all tasks.
        ask: see :data:`Asker`.
        size: pairs at most. A task that has too few leaves its share to the others.
        limit: prompts at most, shared evenly among the tasks.
        seed: seed of the order of the prompts.
        usable: whether a wrong answer may be the rejected one of a pair.
        mixed: only prompts that were also answered right.
    """
    groups = by_task(questions)
    share = math.ceil(limit / len(groups))
    waiting = {name: shuffled(numbers, name, seed)[:share] for name, numbers in groups.items()}
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in groups}
    counts: dict[str, Counter[str]] = {name: Counter(dict.fromkeys(COUNTED, 0)) for name in groups}
    while asking := _next_round(waiting, found, counts, size):
        numbers = [number for name, some in asking.items() for number in some]
        for number, said in ask(numbers).items():
            question = questions[number]
            count = counts[question.task]
            count.update(["prompts", *(_judge(reply, question) for reply in said)])
            count["drawn"] += len(said)
            wrong = [reply.text for reply in said if reply.text != question.answer and usable(reply)]
            if not mixed or any(reply.text == question.answer for reply in said):
                found[question.task] += [(number, text) for text in wrong[:1]]
    in_turn = [pair for turn in zip_longest(*found.values()) for pair in turn if pair is not None][:size]
    for number, _ in in_turn:
        counts[questions[number].task]["kept"] += 1
    return Found(in_turn, {name: dict(count) for name, count in counts.items()})


def _next_round(
    waiting: dict[str, list[int]],
    found: dict[str, list[tuple[int, str]]],
    counts: dict[str, Counter[str]],
    size: int,
) -> dict[str, list[int]]:
    """Take from each task as many prompts as, by what it gave so far, will bring it to the common level."""
    live = [name for name, numbers in waiting.items() if numbers]
    if not live:
        return {}
    level = math.ceil((size - sum(len(pairs) for name, pairs in found.items() if name not in live)) / len(live))
    taken = {}
    for name in live:
        have, asked = len(found[name]), counts[name]["prompts"]
        if (short := level - have) > 0:
            most = math.ceil(short * (asked + 1) / (have + 1))
            taken[name], waiting[name] = waiting[name][:most], waiting[name][most:]
    return taken


def _judge(reply: Reply, question: Question) -> str:
    return "right" if reply.text == question.answer else "wrong" if reply.ended else "unended"
