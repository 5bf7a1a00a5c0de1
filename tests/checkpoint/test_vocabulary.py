"""Special ids and chat templates are found in whichever of a folder's files they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_llada.checkpoint.source import read_files
from lit_llada.checkpoint.vocabulary import (
    end_of_turn,
    first,
    named_mask,
    read_chat_template,
    read_tokenizer,
    with_mask,
)
from lit_llada.errors import UserError
from lit_llada.text.tokenizer import Tokenizer

OTHER = {"name": "tools", "template": "D"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    Tokenizer.byte().save(tmp_path)
    return read_files(tmp_path)


def test_the_first_id_that_is_given_counts_0_too() -> None:
    assert first(None, 0, 5) == 0 and first([7, 8], 1) == 7 and first([], None) is None and first() is None


def test_the_mask_and_the_end_are_the_tokens_that_have_the_ids_asked_for(files: dict[str, str]) -> None:
    byte = Tokenizer.byte()
    plain = read_tokenizer(files)
    assert plain is not None and (plain.mask_id, plain.eos_id) == (byte.mask_id, byte.eos_id) == (257, 256)
    assert named_mask(files) == 257
    turned = read_tokenizer(files, mask_id=256, eos_id=257)
    assert turned is not None and (turned.mask_id, turned.eos_id) == (256, 257)


def test_without_a_tokenizer_there_is_none_and_the_mask_is_the_next_row() -> None:
    assert read_tokenizer({}) is None and named_mask({}) is None and end_of_turn(None) is None
    assert with_mask({"a": "b"}, 40, None) == ({"a": "b"}, 40)


def test_a_tokenizer_that_does_not_parse_is_one_line(files: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json does not parse: "):
        read_tokenizer({**files, "tokenizer.json": "{"})


def test_a_turn_ends_with_the_token_of_that_name(files: dict[str, str]) -> None:
    tokenizer = read_tokenizer(files)
    assert tokenizer is not None and end_of_turn(tokenizer) is None
    tokenizer.model.add_special_tokens(["<|role_end|>"])
    assert end_of_turn(tokenizer) == tokenizer.model.token_to_id("<|role_end|>")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, None),
        ({"chat_template.jinja": "A", "tokenizer_config.json": {"chat_template": "B"}}, "A"),
        ({"chat_template.json": {"chat_template": "C"}, "tokenizer_config.json": {"chat_template": "B"}}, "C"),
        ({"tokenizer_config.json": {"chat_template": "B"}}, "B"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "x", "template": "D"}, {"name": "default", "template": "E"}]
                }
            },
            "E",
        ),
        ({"tokenizer_config.json": {"chat_template": [OTHER]}}, None),
    ],
)
def test_a_chat_template_may_stand_in_three_places(named: dict, expected: str | None) -> None:
    files = {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}
    assert read_chat_template(files) == expected
