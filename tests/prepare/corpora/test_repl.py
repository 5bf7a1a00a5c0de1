"""Lines typed at Python's prompt: true answers, words that are held out as words, the same lines for the same seed."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from lit_llada.errors import UserError
from lit_llada.prepare.corpora import repl

RECORDS = list(repl.repl_records(4000, seed=1, share=0.1))


def test_every_answer_is_what_python_prints() -> None:
    for prompt, answer, template, _ in RECORDS:
        lines = [line.removeprefix(">>> ") for line in prompt.split("\n")]
        assert len(lines) == 1 + (template in ("variable", "swap"))
        names: dict[str, object] = {}
        exec("\n".join(lines[:-1]), names)
        assert repr(eval(lines[-1], names)) == answer


def test_templates_are_many_and_evenly_drawn_and_no_line_is_there_twice() -> None:
    counts = Counter(template for _, _, template, _ in RECORDS)
    assert set(counts) == set(repl.TASKS) and len(counts) >= 12
    assert min(counts.values()) > 0.6 * max(counts.values())
    assert len({prompt for prompt, *_ in RECORDS}) == len(RECORDS)


def test_held_out_words_are_never_trained_on() -> None:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for prompt, _, _, held_out in RECORDS:
        constants = (
            node.value for node in ast.walk(ast.parse(prompt.replace(">>> ", ""))) if isinstance(node, ast.Constant)
        )
        sides[held_out] |= {word for word in constants if isinstance(word, str) and re.fullmatch("[a-z]{3,6}", word)}
    assert sides[True] and not sides[True] & sides[False]
    share = len(sides[True]) / len(sides[True] | sides[False])
    assert 0.05 < share < 0.15
    assert 0.08 < sum(held for *_, held in RECORDS) / len(RECORDS) < 0.12


def test_the_seed_decides() -> None:
    few = list(repl.repl_records(300, 1, 0.1))
    assert few == RECORDS[: len(few)]  # a larger size only adds to it
    assert few != list(repl.repl_records(300, 2, 0.1))


def test_without_a_language_reference_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"val_fraction 1e-09 leaves no word on one side"):
        next(repl.repl_records(1, 1, 1e-9))
    monkeypatch.setattr(repl, "topics", lambda: iter(()))
    with pytest.raises(UserError, match="this Python carries no language reference"):
        next(repl.repl_records(1, 1, 0.1))
