"""A checkpoint and its folder of questions become a folder of pairs: right answers, and the wrong ones it gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_llada.cli.main import main
from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.folder import DataFolder, read_records
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import Reply
from lit_llada.prepare.documents import check_prepared
from lit_llada.prepare.own_mistakes import prepare_own_mistakes, usable_in
from lit_llada.sampling.plan import Plan
from lit_llada.text.tokenizer import Tokenizer

OPTIONS: dict[str, Any] = {"size": 12, "samples": 2, "plan": Plan(temperature=0.3), "workers": 1}


def rows(folder: str | Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, split, "records.jsonl").read_text().splitlines()]


def test_pairs_are_right_and_the_models_own_wrong_answers(taught: Any, tmp_path: Path) -> None:
    out = prepare_own_mistakes(taught.checkpoint, taught.data, str(tmp_path / "out"), **OPTIONS)
    check_prepared(str(out))
    source, made = DataFolder.open(taught.data), DataFolder.open(str(out))
    assert made.kind == "preference" and made.tokenizer.digest == source.tokenizer.digest
    assert made.template_source == source.template_source
    for split in ("train", "val"):
        answers = {record.prompt: record.answer for record in read_records(taught.data, split)}
        pairs = rows(out, split)
        for pair in pairs:
            prompt, chosen, rejected = (pair[k][-1]["content"] for k in ("prompt", "chosen", "rejected"))
            assert chosen == answers[prompt] != rejected
        sure = [p for p in pairs if p["task"] == "hard" and p["rejected"][-1]["content"] == "yes"]
        assert sure, "what it was taught wrongly is what it says"
        counts = made.manifest["drawn"][split]
        assert made.manifest["splits"][split]["records"] == len(pairs) == sum(c["kept"] for c in counts.values())
        assert set(counts) == {"easy", "half", "hard"}
        for name, count in counts.items():
            assert count["drawn"] == 2 * count["prompts"] == count["right"] + count["wrong"] + count["unended"]
            assert count["kept"] == sum(p["task"] == name for p in pairs)
        assert counts["easy"]["right"] > 0 == counts["hard"]["right"]
    assert len(rows(out, "train")) == 12
    assert made.manifest["checkpoint"]["path"] == taught.checkpoint and len(made.manifest["checkpoint"]["digest"]) == 16
    data = AnswerDataModule(str(out), length=128, batch_size=4, eos="one")
    data.setup()
    assert data.kind == "preference"


def test_the_same_again_whatever_the_batch_and_another_seed_is_another_folder(taught: Any, tmp_path: Path) -> None:
    folders = [
        prepare_own_mistakes(taught.checkpoint, taught.data, str(tmp_path / f"{i}"), **OPTIONS | changed)
        for i, changed in enumerate(({"batch_size": 1}, {"batch_size": 64}, {"seed": 1}))
    ]
    one, two, other = (DataFolder.open(str(folder)) for folder in folders)
    assert one.digest == two.digest != other.digest
    assert one.manifest["drawn"] == two.manifest["drawn"]
    before = (folders[0] / "manifest.json").stat().st_mtime_ns
    prepare_own_mistakes(taught.checkpoint, taught.data, str(folders[0]), **OPTIONS)
    assert (folders[0] / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other samples;"):
        prepare_own_mistakes(taught.checkpoint, taught.data, str(folders[0]), **OPTIONS | {"samples": 3})


def test_another_checkpoint_makes_another_folder(taught: Any, untaught: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    prepare_own_mistakes(taught.checkpoint, taught.data, out, **OPTIONS)
    with pytest.raises(UserError, match="made with other inputs;"):
        prepare_own_mistakes(untaught, taught.data, out, **OPTIONS)


def test_the_questions_of_a_test_split_are_not_asked(taught: Any, tmp_path: Path) -> None:
    with_test = shutil.copytree(taught.data, tmp_path / "data")
    manifest = json.loads((with_test / "manifest.json").read_text())
    manifest["splits"]["test"] = manifest["splits"]["val"]
    manifest["options"]["test_fraction"] = 0.1
    (with_test / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(with_test / "val", with_test / "test")
    assert DataFolder.open(str(with_test)).splits == ("train", "val", "test")
    with_out = prepare_own_mistakes(taught.checkpoint, str(with_test), str(tmp_path / "one"), **OPTIONS)
    without = prepare_own_mistakes(taught.checkpoint, taught.data, str(tmp_path / "two"), **OPTIONS)
    one, two = (DataFolder.open(str(folder)) for folder in (with_out, without))
    assert one.splits == ("train", "val") and one.digest == two.digest


def test_what_can_stand_in_a_record() -> None:
    usable, loose = usable_in(Tokenizer.byte(), False), usable_in(Tokenizer.byte(), True)
    assert usable(Reply("a", True)) and not usable(Reply("a", False)) and loose(Reply("a", False))
    for text in ("", " \n", "half a sign \ufffd", "<|mask|>"):
        assert not usable(Reply(text, True)) and not loose(Reply(text, False))


def test_answers_without_an_end_by_option(taught: Any, tmp_path: Path) -> None:
    found = {}
    for unended in (False, True):
        options = OPTIONS | {"new_tokens": 2, "unended": unended, "plan": Plan()}
        out = prepare_own_mistakes(taught.checkpoint, taught.data, str(tmp_path / str(unended)), **options)
        found[unended] = {pair["rejected"][-1]["content"] for pair in rows(out, "train")}
        assert DataFolder.open(str(out)).manifest["drawn"]["train"]["hard"]["unended"] > 0
    assert found[False] == {"x"} < found[True]


def test_from_the_command_line(taught: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = ["prepare", "preference", "--from", taught.checkpoint, "--data", taught.data, "--out", out]
    assert main([*words, "--size", "6", "--samples=1", "--workers", "1", "--count", "threshold"]) == 0
    assert DataFolder.open(out).manifest["options"]["plan"] == {"count": "threshold", "temperature": 1.0}
    assert main([*words, "--tempreature", "1"]) == 2
    assert "did you mean temperature?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", "preference", "--from", "x", "--help"])
    assert "--new_tokens" in capsys.readouterr().out


def test_refusals(taught: Any, tmp_path: Path, prepared: Path) -> None:
    out = str(tmp_path / "out")

    def refused(line: str, **changed: Any) -> None:
        options = {"checkpoint": taught.checkpoint, "data": taught.data, "out": out, **OPTIONS, **changed}
        with pytest.raises(UserError, match=line) as caught:
            prepare_own_mistakes(**options)
        assert "\n" not in str(caught.value) and not Path(out).exists()

    refused("holds text, not questions", data=str(prepared))
    refused("gone.ckpt: no such file", checkpoint="gone.ckpt")
    refused("samples is 0; it must be at least 1", samples=0)
    with pytest.raises(UserError, match="temperature is -1"):
        Plan(temperature=-1.0)
    refused("block_length 3 does not divide the 8 new tokens", plan=Plan(block_length=3), new_tokens=8)
    # One new token: everything is cut off.
    refused(r"of \d+ answers to .*train 12 are right, 0 wrong and \d+ without an end, .* or --new_tokens", new_tokens=1)
    other = tmp_path / "other"
    Tokenizer.train_bpe(["some text to learn from"] * 3, 270).save(other)
    from lit_llada.prepare.conversations import prepare_chat

    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": f"{n}", "answer": "a"}) + "\n" for n in range(9)))
    chat = prepare_chat([str(tmp_path / "q.jsonl")], str(tmp_path / "chat"), tokenizer=str(other), workers=1)
    refused("are of different vocabularies", data=str(chat))


def test_a_model_that_is_always_right_makes_no_pairs(taught: Any, tmp_path: Path) -> None:
    from lit_llada.prepare.conversations import prepare_chat

    easy = [
        {"prompt": r.prompt, "answer": r.answer} for s in ("train", "val") for r in read_records(taught.data, s)
        if r.task == "easy"
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in easy))
    chat = prepare_chat([str(tmp_path / "q.jsonl")], str(tmp_path / "chat"), workers=1)
    with pytest.raises(UserError, match=r"of (\d+) answers to .*/train \1 are right, 0 wrong and 0 without an end"):
        prepare_own_mistakes(taught.checkpoint, str(chat), str(tmp_path / "out"), **OPTIONS | {"plan": Plan()})
    assert not (tmp_path / "out").exists()
