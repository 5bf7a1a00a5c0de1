"""``calibrate``: from questions to a plan that the next command takes, and nothing saved when nothing is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lit_llada.cli.main import main


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
