"""Lines typed at Python's prompt: true answers, words that are held out as words, the same lines for the same seed."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import pytest

from lit_llada.errors import UserError
from lit_llada.prepare.corpora import repl
from lit_llada.prepare.splits import Fractions

RECORDS = list(repl.repl_records(4000, 1, Fractions(0.1)))


def test_every_answer_is_what_python_prints() -> None:
    for prompt, answer, task, _ in RECORDS:
        lines = [line.removeprefix(">>> ") for line in prompt.split("\n")]
        assert len(lines) == 1 + (task in ("variable", "swap"))
        names: dict[str, object] = {}
        exec("\n".join(lines[:-1]), names)
        assert repr(eval(lines[-1], names)) == answer


def test_tasks_are_many_and_evenly_drawn_and_no_line_is_there_twice() -> None:
    counts = Counter(task for _, _, task, _ in RECORDS)
    assert set(counts) == set(repl.TASKS) and len(counts) >= 12
    assert min(counts.values()) > 0.6 * max(counts.values())
    assert len({prompt for prompt, *_ in RECORDS}) == len(RECORDS)


def test_held_out_words_are_never_trained_on() -> None:
    words = words_by_split(RECORDS)
    assert set(words) == {"train", "val"}
    assert words["val"] and not words["val"] & words["train"]
    share = len(words["val"]) / len(words["val"] | words["train"])
    assert 0.05 < share < 0.15
    assert 0.08 < sum(split == "val" for *_, split in RECORDS) / len(RECORDS) < 0.12


def words_by_split(records: Iterable[tuple[str, str, str, str]]) -> dict[str, set[str]]:
    """The words that the lines of each split hold."""
    found: dict[str, set[str]] = {}
    for prompt, _, _, split in records:
        constants = (
            node.value for node in ast.walk(ast.parse(prompt.replace(">>> ", ""))) if isinstance(node, ast.Constant)
        )
        words = {word for word in constants if isinstance(word, str) and re.fullmatch("[a-z]{3,6}", word)}
        found.setdefault(split, set()).update(words)
    return found


def test_the_words_of_a_test_are_in_no_other_split_and_were_none_of_its_training() -> None:
    records = list(repl.repl_records(4000, 1, Fractions(0.1, 0.1)))
    words = words_by_split(records)
    assert all(words[one] and not words[one] & words[other] for one, other in combinations(words, 2))
    assert set(words) == {"train", "val", "test"} and not words["test"] & words_by_split(RECORDS)["train"]
    assert all(0.08 < sum(split == name for *_, split in records) / 4000 < 0.12 for name in ("val", "test"))
    prompts = [prompt for prompt, *_ in records]
    assert len(set(prompts)) == len(prompts)


def test_the_seed_decides() -> None:
    few = list(repl.repl_records(300, 1, Fractions(0.1)))
    assert few == RECORDS[: len(few)]  # a larger size only adds to it
    assert few != list(repl.repl_records(300, 2, Fractions(0.1)))


def test_without_a_language_reference_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"val_fraction 1e-09 leaves no word on one side"):
        next(repl.repl_records(1, 1, Fractions(1e-9)))
    monkeypatch.setattr(repl, "topics", lambda: iter(()))
    with pytest.raises(UserError, match="this Python carries no language reference"):
        next(repl.repl_records(1, 1, Fractions(0.1)))
