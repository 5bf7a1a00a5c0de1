"""Functions and their damaged twins: the function parses, the twin never does, and length tells nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import pytest

from lit_llada.errors import UserError
from lit_llada.prepare.corpora import stdlib, twins
from lit_llada.prepare.splits import Fractions


@pytest.fixture(autouse=True)
def _few_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "modules", lambda: islice(stdlib.modules(), 30))


@pytest.fixture(scope="module")
def records() -> list[tuple[str, str, str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "modules", lambda: islice(stdlib.modules(), 30))
        return list(twins.twin_records(400, 1, Fractions(0.3)))


def test_a_twin_differs_in_a_token_and_never_parses(records: list[tuple[str, str, str, str]]) -> None:
    assert len(records) > 50
    for prompt, code, twin, _ in records:
        assert prompt and twins.parses(code) and not twins.parses(twin)
        assert len(prompt) + len(code) <= 400
        assert len(twin) != len(code)
    longer = sum(len(twin) > len(code) for _, code, twin, _ in records)
    assert abs(longer - len(records) / 2) <= 0.05 * len(records) + 1


def test_files_are_held_out_with_their_prompts(records: list[tuple[str, str, str, str]]) -> None:
    prompts = prompts_by_split(records)
    assert set(prompts) == {"train", "val"} and not prompts["val"] & prompts["train"]


def prompts_by_split(records: list[tuple[str, str, str, str]]) -> dict[str, set[str]]:
    return {name: {prompt for prompt, _, _, split in records if split == name} for *_, name in records}


def test_a_prompt_of_several_splits_is_tested_rather_than_validated_rather_than_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    documented = {
        "train": ("of train", "of train and val", "of all"),
        "val": ("of val", "of train and val", "of all"),
        "test": ("of test", "of all"),
    }
    files = [
        (split, "".join(f'def f():\n    """{prompt}"""\n    return {split}\n' for prompt in prompts))
        for split, prompts in documented.items()
    ]
    monkeypatch.setattr(twins, "modules", lambda: iter(files))
    monkeypatch.setattr(twins.Bounds, "split_of", lambda _, name: name)
    prompts = prompts_by_split(list(twins.twin_records(400, 1, Fractions(0.3, 0.3))))
    assert prompts == {"train": {"of train"}, "val": {"of val", "of train and val"}, "test": {"of test", "of all"}}


def test_the_seed_decides_which_token(records: list[tuple[str, str, str, str]]) -> None:
    assert list(twins.twin_records(400, 1, Fractions(0.3))) == records
    other = list(twins.twin_records(400, 2, Fractions(0.3)))
    assert [record[:2] for record in other] == [record[:2] for record in records] and other != records


def test_functions_lose_docstring_and_decorators() -> None:
    text = (
        '@cache\ndef f(x):\n    """Twice x.\n\n    More.\n    """\n    return 2 * x\n\ndef g():\n    """Nothing."""\n'
    )
    assert list(twins.functions(text)) == [("Twice x.", "def f(x):\n    return 2 * x")]


@pytest.mark.parametrize("delete", [True, False])
def test_damage_keeps_all_else(delete: bool) -> None:
    code = "def f(x):\n    if x in 'ä':\n        return (x)\n    return {x: 1}"
    for seed in range(40):
        twin = twins.damaged(code, random.Random(seed), delete)
        assert twin is not None and not twins.parses(twin)
        pieces, more = (twin, code) if delete else (code, twin)
        assert subsequence(pieces, more) and len(more) - len(pieces) <= 7


def subsequence(short: str, long: str) -> bool:
    rest: Iterator[str] = iter(long)
    return all(char in rest for char in short)


def test_without_source_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "modules", lambda: iter(()))
    with pytest.raises(UserError, match="too little source of its standard library"):
        next(twins.twin_records(400, 1, Fractions(0.1)))
