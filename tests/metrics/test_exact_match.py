"""Right answers are counted by task."""

from __future__ import annotations

from typing import Any

import torch

from lit_llada.metrics.exact_match import RightByTask

FIRST = torch.tensor([True, False, True]), ["reverse", "add", "add"]
SECOND = torch.tensor([True]), ["add"]


def make() -> RightByTask:
    return RightByTask(["add", "reverse", "add", "never"])


def test_right_and_asked_by_task() -> None:
    match = make()
    match.update(*FIRST)
    match.update(*SECOND)
    match.update(torch.zeros(0, dtype=torch.bool), [])
    assert match.compute() == {"add": (2, 3), "reverse": (1, 1), "never": (0, 0)}


def test_a_reset_forgets() -> None:
    match = make()
    match.update(*FIRST)
    match.reset()
    match.update(*SECOND)
    assert match.compute()["add"] == (1, 1)


def test_two_ranks_compute_what_one_process_does(on_ranks: Any) -> None:
    one, *two = on_ranks(make, [FIRST, SECOND])
    assert one == {"add": (2, 3), "reverse": (1, 1), "never": (0, 0)} and two == [one, one]


def alone(rank: int) -> Any:
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    match = RightByTask(["add"], sync_on_compute=False)
    match.update(torch.tensor([rank == 0]), ["add"])
    return match.compute()


def test_ranks_that_answer_the_same_questions_are_not_added(forked: Any) -> None:
    assert forked(alone, 2) == [{"add": (1, 1)}, {"add": (0, 1)}]
