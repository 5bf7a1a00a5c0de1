"""Sampling in a notebook: three lines, a conversation, gaps, a plan by its name, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import lit_llada
from lit_llada.checkpoint.generation import generation_path, save_plan
from lit_llada.checkpoint.load import Checkpoint, load_checkpoint
from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS, Plan
from lit_llada.sampling.sample import sample
from lit_llada.sampling.trace import Trace


def test_three_lines_from_a_path_to_texts(run_file: Path) -> None:
    checkpoint = lit_llada.load_checkpoint(run_file)
    one, two = lit_llada.sample(checkpoint, ["ab", "c"], new_tokens=32)
    assert str(one) == one.text and (one.prompt, two.prompt) == ("ab", "c")
    assert 0 < one.forwards <= one.steps <= 32 and one.tokens <= 32 and one.trace is None
    assert [one.text, two.text] == [found.text for found in sample(run_file, ["ab", "c"], new_tokens=32)]
    assert [found.text for found in sample(str(run_file), "ab", new_tokens=32)] == [one.text]


def test_an_answer_depends_on_its_number_and_the_seed_and_not_on_its_batch(checkpoint: Checkpoint) -> None:
    plan = Plan(temperature=1.0)
    three = sample(checkpoint, ["a", "bcd", "a"], plan, new_tokens=8)
    alone = sample(checkpoint, ["a", "bcd", "a"], plan, new_tokens=8, batch_size=1)
    assert [found.text for found in three] == [found.text for found in alone]
    assert three[0].text != three[2].text
    assert sample(checkpoint, "a", plan, new_tokens=8, seed=1)[0].text != three[0].text


def test_a_conversation_is_answered_in_a_chat_template(checkpoint: Checkpoint) -> None:
    asked = [[{"role": "user", "content": "hi"}], "hi"]
    talk, text = sample(checkpoint, asked, Plan(), chat="plain", new_tokens=4)
    assert talk.text == text.text  # one and the same message
    assert talk.prompt == asked[0] and text.prompt == "hi"
    assert sample(checkpoint, "hi", Plan(), new_tokens=4, trace=True)[0].trace != text.trace


def test_gaps_are_filled_and_what_was_given_stays(checkpoint: Checkpoint) -> None:
    (found,) = sample(checkpoint, "ab[...3]cd[...]", Plan(), infill=True, new_tokens=2, trace=True)
    assert found.text.startswith("ab") and "cd" in found.text
    assert isinstance(found.trace, Trace) and found.trace.start.count(checkpoint.mask_id) == 5


def test_a_plan_has_a_name_or_comes_with_the_checkpoint(checkpoint: Checkpoint) -> None:
    official = sample(checkpoint, "ab", "official", new_tokens=8)[0]
    assert (
        official.forwards == 8 and official.text == sample(checkpoint, "ab", PRESETS["official"], new_tokens=8)[0].text
    )
    checkpoint.generation = {"lit_llada": {"plan": vars(Plan(steps=2))}}
    assert sample(checkpoint, "ab", new_tokens=8)[0].forwards == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"plan": "faster"}, "unknown preset 'faster'; there are official, benchmark, fast"),
        ({"new_tokens": 0}, "new_tokens is 0; ask for at least 1"),
        ({"guidance": 1.0, "cache": "dual"}, "guidance and cache exclude each other"),
        ({"infill": True}, r"prompt 1 has no gap; mark one with \[\.\.\.\]"),
        (
            {"new_tokens": 8, "plan": Plan(block_length=3)},
            "block_length 3 does not divide the 8 new tokens of prompt 1",
        ),
    ],
)
def test_what_cannot_be_sampled_is_one_line(checkpoint: Checkpoint, options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        sample(checkpoint, "ab", **options)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_a_tokenizer_is_refused_with_the_remedy(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="sample: the checkpoint has no tokenizer; give load_checkpoint"):
        sample(replace(checkpoint, tokenizer=None), "ab")


def test_the_plan_that_was_calibrated_for_a_runs_checkpoint_is_its_own(run_file: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(run_file, tmp_path / "c.ckpt"))
    [before] = sample(copy, "a", new_tokens=32)
    save_plan(generation_path(copy), asdict(Plan(steps=2)))
    assert [sample(given, "a", new_tokens=32)[0].steps for given in (copy, load_checkpoint(copy))] == [2, 2]
    assert before.steps != 2
