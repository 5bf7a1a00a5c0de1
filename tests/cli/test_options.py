"""Every field of settings and plan is an option, said in the words of its class, and counts only where it is given."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lit_llada.cli.options import add_options, add_plan, given, read_plan
from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.settings import Settings


def parse(*words: str, plan_only: bool = False) -> dict:
    parser = Parser()
    (add_plan if plan_only else add_options)(parser)
    return parser.parse_args([*words]).as_dict()


def test_every_field_is_an_option_with_its_words() -> None:
    parser = Parser()
    add_options(parser)
    said = {action.dest: action.help for action in parser._actions}
    names = {field.name for cls in (Settings, Plan) for field in fields(cls)} - {"plan"}
    assert names <= said.keys() and all(said[name] for name in names)
    assert "``" not in " ".join(map(str, said.values())) and "(default: 128)" in said["new_tokens"]


def test_only_what_is_given_counts() -> None:
    assert given(parse()) == {}
    assert given(parse("--new_tokens", "8", "--eos", "last")) == {"new_tokens": 8, "eos": "last"}
    assert given({"new_tokens": 8, "out": "x"}) == {"new_tokens": 8}


def test_a_plan_is_taken_out_of_the_options_and_blocks_stop_at_the_end() -> None:
    options = parse("--block_length", "4", "--count", "factor", plan_only=True) | {"seed": 1}
    assert read_plan(options) == Plan(block_length=4, count="factor", stop_at_eos=True)
    assert options == {"seed": 1}
    assert read_plan(parse(plan_only=True)) == Plan()
    assert not read_plan(parse("--block_length", "4", "--stop_at_eos", "false", plan_only=True)).stop_at_eos


@pytest.mark.parametrize("words", [("--count", "all"), ("--order", "likely"), ("--new_tokens", "many")])
def test_another_value_is_one_line_that_names_the_option(words: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=words[0][2:]) as error:
        parse(*words)
    assert "\n" not in str(error.value)
