"""The table says what each checkpoint got right, and how sure the differences are."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_llada.cli.evaluate import show
from lit_llada.errors import UserError
from lit_llada.evaluation.comparison import Answered, Comparison, evaluate
from lit_llada.evaluation.exact_match import Question
from lit_llada.prepare.own_mistakes import prepare_own_mistakes
from lit_llada.sampling.plan import Plan


def test_a_table_of_one_checkpoint_has_no_difference_and_batches_do_not_matter(
    taught: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for size in (1, 64):
        found = evaluate(taught.checkpoint, taught.data, batch_size=size, per_task=3)
        told.append(found.numbers())
    show(found)
    assert told[0] == told[1] and told[0]["differences"] == []
    assert [t["asked"] for t in told[0]["checkpoints"][0]["tasks"].values()] == [3, 3, 3, 9]
    assert "B - A" not in capsys.readouterr().out


def test_numbers_of_any_answers(capsys: pytest.CaptureFixture[str]) -> None:
    questions = [Question([1], "a", 1, "p", name) for name in "bab"]
    draw = random.Random(1)
    told = [Answered(str(i), "d", [draw.random() < 0.5 for _ in questions]) for i in range(3)]
    comparison = Comparison("title", "digest", questions, told, Plan(), 8, 50, 0)
    found = comparison.numbers()
    assert [(d["from"], d["to"]) for d in found["differences"]] == [("0", "1"), ("0", "2"), ("1", "2")]
    assert list(found["checkpoints"][0]["tasks"]) == ["a", "b", "all"]
    assert found["checkpoints"][2]["tasks"]["a"]["right"] == told[2].right[1]
    show(comparison)
    shown = capsys.readouterr().out  # wider than 80 columns, and whole
    assert "…" not in shown and all(f"{head}  (95 %)" in shown for head in ("A", "C", "B - A", "C - A", "C - B"))
    fourth = Answered("3", "d", [not right for right in told[2].right])
    show(replace(comparison, answered=[*told, fourth]))
    shown = capsys.readouterr().out
    assert "D - A  (95 %)" in shown and "C - B  (95 %)" not in shown
    hits = [sum(one.right) for one in (told[1], fourth)]
    lines = [line for line in shown.splitlines() if "all questions" in line]
    assert [line[:5] for line in lines] == ["C - B", "D - B", "D - C"]
    assert lines[1].startswith(f"D - B, all questions: {100 * (hits[1] - hits[0]) / 3:+.1f} (")


@pytest.mark.parametrize("verb", ["evaluate", "own mistakes"])
def test_the_device_is_chosen_unless_it_is_named(
    taught: Any, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for ``sample``: with a GPU (here a stand-in that refuses it) the default is the GPU."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda:99"))
    monkeypatch.setattr("lit_llada.backbone.devices.require_driver", lambda cpu: None)
    asked: list[Any] = []

    def load(*args: Any) -> Any:
        asked.append(args[-1])
        raise UserError("no such card")

    room = "evaluation.comparison" if verb == "evaluate" else "prepare.own_mistakes"
    monkeypatch.setattr(f"lit_llada.{room}.load_answerer", load)
    run: Any = evaluate if verb == "evaluate" else partial(prepare_own_mistakes, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="no such card"):
        run(taught.checkpoint, taught.data)
    assert asked == ["cuda"]
