"""The cheapest plan that is good enough is found, said with its uncertainty, and taken up by the next command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lit_llada.cli.main import main
from lit_llada.errors import UserError
from lit_llada.evaluation.calibration import (
    KnownAnswer,
    Point,
    choose_point,
    measure_plan,
    plans_to_try,
    read_questions,
)
from lit_llada.evaluation.intervals import interval
from lit_llada.sampling.plan import PRESETS, Plan
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.sample import Sample


def point(right: int, forwards: float, bound: float | None = None) -> Point:
    plan = Plan() if bound is None else Plan(count="threshold", bound=bound)
    return Point(plan, right, 100, forwards, 10.0)


def test_the_fewest_forwards_within_the_tolerance() -> None:
    points = [point(80, 32), point(70, 4, 0.5), point(79, 8, 0.8), point(81, 12, 0.9)]
    assert choose_point(points, 1.0) is points[2]
    assert choose_point(points, 0.5) is points[3]
    assert choose_point(points, 10.0) is points[1]
    assert choose_point(points[:2], 1.0) is points[0]
    with pytest.raises(UserError, match="answers none of the 100 questions"):
        choose_point([point(0, 32), point(0, 1, 0.5)], 1.0)


def test_wilson_intervals() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), table I
    assert interval(10, 10)[1] == pytest.approx(1.0)


def test_one_token_a_step_comes_first_and_keeps_the_rest_of_the_plan() -> None:
    one, *others = plans_to_try(PRESETS["fast"], ["threshold", "factor"], None)
    assert one == Plan(block_length=32, stop_at_eos=True)
    assert [(p.count, p.limit) for p in others] == [(c, b) for c in ("threshold", "factor") for b in RULES[c].sweep]
    assert [p.limit for p in plans_to_try(Plan(steps=4), ["frechet"], [0.5])[1:]] == [0.5]
    for counts, bounds in ((["threshold", "factor"], [0.5]), (["threshold"], []), ([], None)):
        with pytest.raises(UserError):
            plans_to_try(Plan(), counts, bounds)  # type: ignore[arg-type]


def test_an_answer_is_right_if_it_is_the_same_text() -> None:
    questions = [KnownAnswer("", "a b"), KnownAnswer("", " c\n"), KnownAnswer("", "d")]
    samples = [Sample("", text, len(text), True, 1, i + 1, 0.1) for i, text in enumerate((" a b", "c", "e"))]
    found = measure_plan(Plan(), questions, samples)
    assert (found.right, found.asked, found.forwards, found.tokens) == (2, 3, 2.0, 2.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "is empty"), ('{"prompt": "a"}', "record 1 has no text 'answer'; it needs prompt and answer")],
)
def test_wrong_questions(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=line):
        read_questions(str(tmp_path / "q.jsonl"))


def test_from_questions_to_the_next_command(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(run_file, "c.ckpt")
    size = ["--new_tokens", "8", "--block_length", "8"]
    assert main(["sample", "c.ckpt", *"abcdef", *size, "--preset", "official", "--out", "a.jsonl"]) == 0
    told = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    records = [{"prompt": one["prompt"], "answer": one["text"]} for one in told]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("c.ckpt.generation.json").write_text('{"theirs": 1}')

    # Random weights are never sure: a bound of 0 takes everything at once and is wrong, one of 1 is one token a step.
    words = ["--data", "q.jsonl", *size, "--bounds", "[0,1]"]
    capsys.readouterr()
    assert main(["calibrate", "c.ckpt", *words]) == 0
    out = capsys.readouterr().out
    assert "6 questions" in out
    assert "* one token a step" in out
    assert "100.0" in out
    assert "a difference of 1 is noise" in out
    found = json.loads(Path("c.ckpt.calibration.json").read_text())
    assert [(p["count"], p["bound"]) for p in found["points"]] == [("quota", None), ("threshold", 0), ("threshold", 1)]
    one, everything, careful = found["points"]
    assert (one["forwards"], everything["forwards"], careful["forwards"]) == (8, 1, 8)
    assert one["accuracy"] == careful["accuracy"] == 1.0 > everything["accuracy"]
    assert Path("c.ckpt.calibration.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads(Path("c.ckpt.generation.json").read_text())
    assert saved["theirs"] == 1
    assert saved["lit_llada"]["plan"]["count"] == "quota"
    assert not list(Path().glob("*.part"))

    assert main(["calibrate", "c.ckpt", *words, "--tolerance", "100"]) == 0
    capsys.readouterr()
    assert main(["sample", "c.ckpt", "a", *size]) == 0
    assert json.loads(capsys.readouterr().out)["forwards"] == 1


def test_nothing_is_saved_when_nothing_is_right(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(run_file, "c.ckpt")
    Path("q.jsonl").write_text('{"prompt": "a", "answer": "surely not this"}')
    words = ["--data", "q.jsonl", "--new_tokens", "4", "--block_length", "4", "--bounds", "[0.5]"]
    assert main(["calibrate", "c.ckpt", *words]) == 2
    assert "answers none of the 1 questions" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["c.ckpt", "q.jsonl"]
