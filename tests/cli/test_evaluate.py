"""``evaluate``: tables of one and of several checkpoints, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_llada.cli.main import main
from lit_llada.data.folder import read_records
from lit_llada.evaluation.intervals import interval
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.prepare.documents import prepare_text


def test_one_table_for_two_checkpoints(
    taught: Any, untaught: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "table.json")
    assert main(["evaluate", untaught, "--data", taught.data, "--compare", taught.checkpoint, "--out", out]) == 0
    shown = capsys.readouterr().out
    told = json.loads(Path(out).read_text())
    asked = [record.task for record in read_records(taught.data, "val")]
    nothing, much = (one["tasks"] for one in told["checkpoints"])
    assert list(much) == ["easy", "half", "hard", "all"]
    odd = [r.prompt for r in read_records(taught.data, "val") if r.task == "half" and r.answer == "x"]
    assert [much[name]["right"] for name in ("easy", "half", "hard")] == [asked.count("easy"), len(odd), 0]
    assert 0 < len(odd) < asked.count("half")
    assert much["all"]["asked"] == len(asked) and much["all"]["right"] == asked.count("easy") + len(odd)
    assert nothing["all"]["right"] == 0
    assert much["all"]["interval"] == pytest.approx(interval(much["all"]["right"], len(asked)))
    [moved] = told["differences"]
    assert (moved["from"], moved["to"]) == (untaught, taught.checkpoint)
    assert moved["tasks"]["all"]["difference"] == pytest.approx(much["all"]["share"])
    assert moved["tasks"]["all"]["interval"][0] > 0 and moved["tasks"]["hard"]["difference"] == 0
    assert told["checkpoints"][0]["digest"] != told["checkpoints"][1]["digest"]
    lines = [line.split() for line in shown.splitlines()]
    assert ["easy", str(asked.count("easy")), "0.0"] in [line[:3] for line in lines]
    assert "…" not in shown
    assert f"B  {taught.checkpoint}" in shown and "+100.0" in shown and "B - A" in shown


def test_a_plan_of_blocks(taught: Any, tmp_path: Path) -> None:
    for plan in ({"block_length": 4}, {"count": "threshold", "bound": 0.5}, {"steps": 2}):
        words = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
        out = str(tmp_path / "o.json")
        assert main(["evaluate", taught.checkpoint, "--data", taught.data, "--out", out, *words]) == 0
        told = json.loads(Path(out).read_text())
        assert told["checkpoints"][0]["tasks"]["easy"]["share"] == 1.0
        assert plan.items() <= told["plan"].items()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("C --data gone", "no data folder gone"),
        ("C --data text", "text holds text, not questions with one right answer"),
        ("C --data pairs", "pairs holds preference, not questions with one right answer"),
        ("C --data other", "C and other are of different vocabularies (the checkpoint's has 258 ids, the data's 270)"),
        ("gone.ckpt", "gone.ckpt: no such file or folder"),
        ("C --per_task 0", "--per_task is 0; it must be at least 1"),
        ("C --new_tokens 6 --block_length 4", "block_length 4 does not divide the 6 new tokens"),
        ("C --steps 3 --count threshold", "count threshold decides the number of steps by itself"),
        ("C --ema true", "holds no averaged weights"),
        ("C --device cuda:99", "--device cuda:99 is not here"),
        ("C --out gone/x.json", "gone/x.json cannot be written"),
        ("", "checkpoint"),
    ],
)
def test_every_mistake_is_one_line(
    taught: Any,
    words: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lit_llada.text.tokenizer import Tokenizer

    monkeypatch.chdir(tmp_path)
    Path("C").symlink_to(taught.checkpoint)
    Path("q.jsonl").write_text("".join(json.dumps({"prompt": f"p{n}", "answer": "a"}) + "\n" for n in range(20)))
    if "text" in words:
        prepare_text(["q.jsonl"], "text", field="prompt", workers=1)
    if "pairs" in words:
        Path("p.jsonl").write_text(
            "".join(json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(20))
        )
        prepare_preference(["p.jsonl"], "pairs", workers=1)
    if "other" in words:
        Tokenizer.train_bpe(["some text to learn from"] * 3, 270).save("vocabulary")
        prepare_chat(["q.jsonl"], "other", tokenizer="vocabulary", workers=1)
    where = [] if "--data" in words else ["--data", taught.data]
    assert main(["evaluate", *words.split(), *where]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and line in told
