"""A calibrated plan is kept beside its checkpoint, and whatever else the file says stays."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lit_llada.checkpoint.generation import generation_path, read_generation, save_plan
from lit_llada.checkpoint.load import Checkpoint
from lit_llada.errors import UserError
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.settings import (
    choose_plan,
)


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
    checkpoint.generation, checkpoint.path = {"temperature": 1}, run
    found = read_generation(checkpoint)
    assert found["temperature"] == 1
    assert choose_plan(None, found) == plan
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json"] * 3  # no .part is left


def test_a_file_of_another_form_is_left_alone(tmp_path: Path) -> None:
    for text in ("[1]", "{"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match="is not a JSON object, so it is left alone"):
            save_plan(tmp_path / "x.json", asdict(Plan()))
        assert (tmp_path / "x.json").read_text() == text
