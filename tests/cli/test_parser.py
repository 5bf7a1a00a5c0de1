"""A wrong command line is one line that names the word, with the name that was probably meant."""

from __future__ import annotations

import pytest

from lit_llada.cli.parser import Parser, causes, reason
from lit_llada.errors import UserError


@pytest.fixture
def parser() -> Parser:
    parser = Parser()
    parser.add_argument("--new_tokens", type=int, default=8)
    parser.add_argument("--model.lr", type=float, default=0.1)
    return parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--new_token", "3"], r"did you mean new_tokens"),
        (["--model.l", "3"], r"did you mean lr"),
        (["--new_tokens", "many"], r"new_tokens: .*many"),
    ],
)
def test_the_line_names_the_word(parser: Parser, words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        parser.parse_args(words)
    assert "\n" not in str(error.value)


def test_names_are_those_of_every_level(parser: Parser) -> None:
    assert {"new_tokens", "model", "lr"} <= parser.known_names()


def test_the_reason_is_taken_out_of_all_that_was_tried() -> None:
    told = (
        'Parser key "model": Does not validate against any of the Union subtypes\nErrors:\n'
        "  - Expected a <class 'NoneType'>\n  - Parser key \"lr\": Expected a <class 'float'>. Got value: abc\n"
        "Given value type: <class 'str'>"
    )
    assert reason(told) == "model: lr: Expected a float. Got value: abc"


def test_causes_are_found_through_chains_and_ranks_and_each_once() -> None:
    inner, outer, rank = KeyError("a"), ValueError("b"), OSError("c")
    outer.__cause__ = inner
    inner.__context__ = outer
    outer.failures = {0: (rank, None)}  # type: ignore[attr-defined]
    assert sorted(type(cause).__name__ for cause in causes(outer)) == ["KeyError", "OSError", "ValueError"]
