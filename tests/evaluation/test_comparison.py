"""The table says what each checkpoint got right, and how sure the differences are."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_llada.cli.evaluate import show
from lit_llada.cli.main import main
from lit_llada.data.folder import read_records
from lit_llada.evaluation.comparison import Answered, Comparison, evaluate
from lit_llada.evaluation.exact_match import Question
from lit_llada.evaluation.intervals import interval, paired_difference
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.prepare.documents import prepare_text
from lit_llada.sampling.plan import Plan


def answers(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


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


def test_a_plan_of_blocks(taught: Any, tmp_path: Path) -> None:
    for plan in ({"block_length": 4}, {"count": "threshold", "bound": 0.5}, {"steps": 2}):
        words = [word for name, value in plan.items() for word in (f"--{name}", str(value))]
        out = str(tmp_path / "o.json")
        assert main(["evaluate", taught.checkpoint, "--data", taught.data, "--out", out, *words]) == 0
        told = json.loads(Path(out).read_text())
        assert told["checkpoints"][0]["tasks"]["easy"]["share"] == 1.0
        assert plan.items() <= told["plan"].items()


def test_the_paired_interval() -> None:
    # Questions that both get right, or both wrong, tell the two apart the less the more there are of them.
    d, low, high = paired_difference(*answers(0, 0, 20, 0))
    assert d == 1 and low > 0.7 and high == pytest.approx(1)
    assert paired_difference(*answers(10, 0, 0, 10))[0] == 0
    for cells in ((5, 3, 8, 4), (0, 2, 9, 1), (7, 0, 0, 0), (0, 0, 0, 7)):
        first, second = answers(*cells)
        d, low, high = paired_difference(first, second)
        back = paired_difference(second, first)
        assert -1 - 1e-9 <= low <= d <= high <= 1 + 1e-9
        assert back == pytest.approx((-d, -high, -low))
    # Newcombe (1998): 36 both, 12 and 2 one of them, none neither.
    assert paired_difference(*answers(36, 2, 12, 0)) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)
    # Agreement makes it narrower than two independent samples would be.
    alike, other = paired_difference(*answers(40, 2, 8, 50)), paired_difference(*answers(21, 21, 27, 31))
    assert alike[0] == pytest.approx(other[0]) and alike[2] - alike[1] < 0.7 * (other[2] - other[1])


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    n, cells = 24, (0.4, 0.1, 0.25, 0.25)
    found = 0.0
    for counts in itertools.product(range(n + 1), repeat=3):
        if (rest := n - sum(counts)) >= 0:
            whole = (*counts, rest)
            chance = math.factorial(n) * math.prod(p**k / math.factorial(k) for p, k in zip(cells, whole, strict=True))
            if chance > 1e-7:
                _, low, high = paired_difference(*answers(*whole))
                found += chance * (low <= cells[2] - cells[1] <= high)
    assert 0.94 < found < 0.97


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
