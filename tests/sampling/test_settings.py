"""Which plan counts: the command line over a preset over what calibrate left over ``fast``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.cli.options import add_options, given
from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS, Plan
from lit_llada.sampling.predictor import Plain
from lit_llada.sampling.settings import (
    Settings,
    change_plan,
    choose_plan,
)


def parsed(*words: str) -> dict:
    parser = Parser()
    add_options(parser)
    return given(parser.parse_args(words).as_dict())


def test_only_what_was_given_changes_and_null_is_a_value() -> None:
    assert parsed() == {}
    settings = Settings(PRESETS["fast"]).changed(**parsed("--block_length", "null", "--new_tokens", "7"))
    assert settings == Settings(replace(PRESETS["fast"], block_length=None), new_tokens=7)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--count", "quoat"], "count: Expected one of"),
        (["--block_lenght", "4"], "did you mean block_length"),
        (["--temperature", "hot"], "temperature: Expected a float. Got value: hot"),
    ],
)
def test_wrong_options_are_one_line(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        parsed(*words)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"guidance": 1.0, "cache": "dual"}, "guidance and cache exclude each other"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        Settings().changed(**changes)


def test_the_plan_comes_from_the_preset_or_the_checkpoint_or_is_fast() -> None:
    left = {"lit_llada": {"plan": {"count": "threshold", "bound": 0.8, "block_length": 8}}}
    assert choose_plan(None, {}) == PRESETS["fast"]
    assert choose_plan(None, left) == Plan(count="threshold", bound=0.8, block_length=8)
    assert choose_plan("official", left) == PRESETS["official"]
    with pytest.raises(UserError, match="unknown preset 'slow'; there are official"):
        choose_plan("slow", {})
    for wrong in ({"plan": {"speed": 1}}, {"more": 1}):
        with pytest.raises(UserError, match="saved plan is not one of this version"):
            choose_plan(None, {"lit_llada": wrong})


def test_another_rule_comes_with_its_own_bound() -> None:
    plan = Plan(count="threshold", bound=0.8)
    assert change_plan(plan, count="factor").limit == 1.0
    assert change_plan(plan, count="factor", bound=0.5).limit == 0.5
    assert change_plan(plan, count="threshold", block_length=4).limit == 0.8


def test_seeds_differ_by_number_and_by_seed() -> None:
    seeds = [Settings(seed=seed).prompt_seed(number) for seed in range(-2, 3) for number in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_every_value_is_in_words() -> None:
    text = Settings(PRESETS["fast"]).in_words()
    assert "* count threshold" in text
    assert "  order low_confidence" in text
    assert "  new_tokens 128" in text


def test_guidance_wraps_the_net(checkpoint: Checkpoint) -> None:
    plain = Settings().predictor(checkpoint.net, 257)
    assert isinstance(plain, Plain) and plain.net is checkpoint.net
    assert type(Settings(guidance=1.0).predictor(checkpoint.net, 257)).__name__ == "Guided"
