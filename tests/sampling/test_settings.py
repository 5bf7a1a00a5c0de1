"""Which plan counts: the command line over a preset over what calibrate left over ``fast``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lit_llada.checkpoint.generation import generation_path, read_generation, save_plan
from lit_llada.checkpoint.load import Checkpoint
from lit_llada.cli.options import add_options, given
from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError
from lit_llada.files import writing
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


def test_a_saved_plan_is_read_again_and_leaves_the_rest_alone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = generation_path(tmp_path)
    path.write_text('{"eos_token_id": 5, "lit_llada": {"plan": {}}}')
    plan = Plan(count="threshold", bound=0.7)
    save_plan(path, asdict(plan))
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == 5
    assert choose_plan(None, written) == plan

    run = tmp_path / "step=1.ckpt"
    save_plan(generation_path(run), asdict(plan))
    assert (tmp_path / "step=1.ckpt.generation.json").is_file()
    checkpoint.generation = {"temperature": 1}
    found = read_generation(checkpoint, str(run))
    assert found["temperature"] == 1
    assert choose_plan(None, found) == plan
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json"] * 3  # no .part is left


def test_a_file_of_another_form_is_left_alone(tmp_path: Path) -> None:
    for text in ("[1]", "{"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match="is not a JSON object, so it is left alone"):
            save_plan(tmp_path / "x.json", asdict(Plan()))
        assert (tmp_path / "x.json").read_text() == text


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    def broken() -> None:
        with writing(tmp_path / "a") as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="cannot be written: No such file"), writing(tmp_path / "gone" / "a"):
        pass


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
