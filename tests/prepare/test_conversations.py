"""Questions and answers to a prepared folder: the same bytes, nothing lost in silence, one line for a mistake."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lit_llada.cli.main import main
from lit_llada.data.folder import DataFolder, read_records
from lit_llada.errors import UserError
from lit_llada.prepare import record_sources
from lit_llada.prepare.conversations import prepare_chat, prepare_preference
from lit_llada.prepare.corpora import repl
from lit_llada.prepare.documents import check_prepared, prepare_text
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.tokenizer import Tokenizer

ROWS = [{"prompt": f"question {n}?", "answer": f"answer {n}"} for n in range(30)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def contents(folder: Path, split: str) -> list[list[Any]]:
    opened = DataFolder.open(str(folder))
    rows = opened.records(split, None)
    found = [[part.tolist() for part in rows[i]] for i in range(len(rows))]
    assert [[len(ids) for ids in item[::2]] for item in found] == opened.lengths[split].tolist()
    return found


def test_every_row_is_there_once_with_its_answer_marked(tmp_path: Path) -> None:
    out = prepare_chat([write(tmp_path / "a.jsonl", ROWS)], str(tmp_path / "out"), val_fraction=0.3)
    check_prepared(str(out))
    tokenizer, found = Tokenizer.byte(), []
    for split in ("train", "val"):
        said = manifest(out)["splits"][split]
        records = contents(out, split)
        assert (said["records"], said["tokens"]) == (len(records), sum(len(ids) for ids, _ in records))
        assert said["answer_tokens"] == sum(stop - start for _, (start, stop) in records)
        assert said["longest"] == max(len(ids) for ids, _ in records)
        for ids, (start, stop) in records:
            question, answer = tokenizer.decode(ids[:start], eos="|"), tokenizer.decode(ids[start:stop], eos="|")
            assert question.startswith("user:\n") and question.endswith("|assistant:\n") and answer.endswith("|")
            found.append({"prompt": question[6:-12], "answer": answer[:-1]})
        assert [(r.prompt, r.answer) for r in read_records(str(out), split)] == [
            (row["prompt"], row["answer"]) for row in found[-len(records) :]
        ]
    assert sorted(map(str, found)) == sorted(map(str, ROWS))
    assert [(s["form"], s["records"]) for s in manifest(out)["inputs"]] == [("prompt + answer", 30)]


def test_all_files_of_a_folder_each_in_its_form(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "README.md").write_text("no rows")
    (source / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps({"instruction": "a", "output": "1"}).encode()))
    messages = [[{"role": "user", "content": f"b{n}"}, {"role": "assistant", "content": "2"}] for n in range(9)]
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages, "id": [*range(9)]}), source / "b.parquet")
    out = prepare_chat([str(source)], str(tmp_path / "out"), val_fraction=0.3)
    assert [(s["form"], s["records"]) for s in manifest(out)["inputs"]] == [
        ("instruction + output", 1),
        ("messages", 9),
    ]
    prompts = {record.prompt for split in ("train", "val") for record in read_records(str(out), split)}
    assert prompts == {"a", *(f"b{n}" for n in range(9))}


def test_pairs_keep_both_sides_and_can_be_prepared_again_from_their_own_text(pair_folder: Path, tmp_path: Path) -> None:
    check_prepared(str(pair_folder))
    tokenizer = Tokenizer.byte()
    for ids, (a, b), other, (c, d) in contents(pair_folder, "train"):
        assert tokenizer.decode(ids[a:b]).startswith("good") and tokenizer.decode(other[c:d]).startswith("bad")
        assert ids[:a] == other[:c]
    records = read_records(str(pair_folder), "val")
    assert all(record.answer.startswith(f"good {record.prompt[1:]}") for record in records)
    again = prepare_preference([str(pair_folder / "train" / "records.jsonl")], str(tmp_path / "out"), val_fraction=0.2)
    both = contents(again, "train") + contents(again, "val")
    assert sorted(map(str, both)) == sorted(map(str, contents(pair_folder, "train")))


def test_one_prompt_is_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"answer": f"{row['answer']} {n}"} for n in range(3) for row in ROWS]
    out = prepare_chat([write(tmp_path / "a.jsonl", rows)], str(tmp_path / "out"), val_fraction=0.3)
    train, val = ({record.prompt for record in read_records(str(out), split)} for split in ("train", "val"))
    assert train and val and not train & val and len(train | val) == 30


def test_one_prompt_is_in_one_of_three_splits(tmp_path: Path) -> None:
    rows = [row | {"answer": f"{row['answer']} {n}"} for n in range(3) for row in ROWS]
    file = write(tmp_path / "a.jsonl", rows)
    out = prepare_chat([file], str(tmp_path / "out"), val_fraction=0.3, test_fraction=0.3)
    check_prepared(str(out))
    prompts = {
        split: {record.prompt for record in read_records(str(out), split)} for split in DataFolder.open(str(out)).splits
    }
    assert list(prompts) == ["train", "val", "test"] and sum(map(len, prompts.values())) == 30
    assert set().union(*prompts.values()) == {row["prompt"] for row in ROWS}
    assert sum(len(contents(out, split)) for split in prompts) == 90
    assert manifest(out)["options"]["test_fraction"] == 0.3
    with pytest.raises(UserError, match="made with other test_fraction;"):
        prepare_chat([file], str(out), val_fraction=0.3)


def test_without_a_test_split_the_manifest_says_nothing_of_one(tmp_path: Path) -> None:
    out = prepare_chat([write(tmp_path / "a.jsonl", ROWS)], str(tmp_path / "out"))
    assert list(manifest(out)["splits"]) == ["train", "val"] and "test_fraction" not in manifest(out)["options"]
    with pytest.raises(UserError, match="has no test split: there is train, val"):
        read_records(str(out), "test")


def test_pairs_with_a_test_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)]
    file = write(tmp_path / "a.jsonl", rows)
    out = prepare_preference([file], str(tmp_path / "out"), val_fraction=0.3, test_fraction=0.3)
    check_prepared(str(out))
    assert sum(len(contents(out, split)) for split in ("train", "val", "test")) == 30
    with pytest.raises(UserError, match="too few for training, validation and test"):
        prepare_preference([write(tmp_path / "b.jsonl", rows[:2])], str(tmp_path / "few"), test_fraction=0.3)


def test_the_same_rows_give_the_same_bytes_whatever_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_llada.prepare.record_folder.SHARD", 100)
    file = write(tmp_path / "a.jsonl", ROWS)
    folders = [prepare_chat([file], str(tmp_path / f"{n}"), workers=n, chunk_mb=5e-4) for n in (1, 2, 3)]
    files = [{path.relative_to(f): path.read_bytes() for path in f.rglob("*") if path.is_file()} for f in folders]
    assert files[0] == files[1] == files[2]
    assert len(manifest(folders[0])["splits"]["train"]["chunks"]) > 2


def test_a_second_run_does_nothing_and_another_wish_is_refused(tmp_path: Path) -> None:
    file, out = write(tmp_path / "a.jsonl", ROWS), str(tmp_path / "out")
    before = (prepare_chat([file], out) / "manifest.json").stat().st_mtime_ns
    assert (prepare_chat([file], out) / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other max_length;"):
        prepare_chat([file], out, max_length=99)
    with pytest.raises(UserError, match="holds chat, not preference; give another --out"):
        prepare_preference([write(tmp_path / "b.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])], out)
    with pytest.raises(UserError, match="holds chat, not text"):
        prepare_text([file], out, field="prompt")
    write(tmp_path / "a.jsonl", ROWS[1:])
    with pytest.raises(UserError, match="made with other inputs;"):
        prepare_chat([file], out)
    prepare_chat([file], out, overwrite=True)
    assert sum(split["records"] for split in manifest(Path(out))["splits"].values()) == 29


@pytest.mark.parametrize(("name", "message"), [
    ("train/lengths.npy", "lengths.npy is missing"), ("val/records.jsonl", r"file .*records\.jsonl is missing"),
    ("train/chunk-0-0.bin", r"chunk .*chunk-0-0\.bin is missing"),
])  # fmt: skip
def test_check_names_what_is_missing(tmp_path: Path, name: str, message: str) -> None:
    out = prepare_chat([write(tmp_path / "a.jsonl", ROWS)], str(tmp_path / "out"))
    (out / name).unlink()
    with pytest.raises(UserError, match=message):
        check_prepared(str(out))


def test_check_finds_altered_text(tmp_path: Path) -> None:
    out = prepare_chat([write(tmp_path / "a.jsonl", ROWS)], str(tmp_path / "out"))
    file = out / "train" / "records.jsonl"
    file.write_text(file.read_text().replace("question", "Question", 1))
    with pytest.raises(UserError, match=r"file .*train/records\.jsonl is corrupt"):
        check_prepared(str(out))


def test_long_records_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ROWS + [{"prompt": f"long {n}", "answer": "x" * 200} for n in range(5)]
    file = write(tmp_path / "a.jsonl", rows)
    for long, kept in (("drop", 30), ("cut", 35)):
        out = prepare_chat([file], str(tmp_path / long), max_length=100, long=long)  # type: ignore[arg-type]
        splits = manifest(out)["splits"].values()
        assert sum(s["records"] for s in splits) == kept
        assert sum(s["dropped" if long == "drop" else "cut"] for s in splits) == 5
        assert max(s["longest"] for s in splits) <= 100
        assert f"longer ones {'dropped' if long == 'drop' else 'cut'}" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"a\.jsonl:3\d: 2\d\d tokens, but max_length is 100"):
        prepare_chat([file], str(tmp_path / "refuse"), max_length=100, long="refuse")
    with pytest.raises(UserError, match=r"no record of the .* split is within max_length 5"):
        prepare_chat([file], str(tmp_path / "none"), max_length=5)


def bad(message: str, *rows: Any, kind: Any = prepare_chat, **options: Any) -> Any:
    return pytest.param("".join(json.dumps(row) + "\n" for row in rows), kind, options, message, id=message)


@pytest.mark.parametrize(("content", "kind", "options", "message"), [
    bad(r"rows\.jsonl:1: no chat record in the fields text; known are", {"text": "x"}),
    bad(r"rows\.jsonl:31: the answer .* is empty", *ROWS, {"prompt": "x", "answer": ""}),
    bad(r"rows\.jsonl:31: field 'answer' is missing", *ROWS, {"prompt": "x", "response": "y"}),
    bad(r"rows\.jsonl:1: message 1: unknown role 'tool'", {"messages": [{"role": "tool", "content": "x"}]}),
    bad(r"rows\.jsonl:2: chosen and rejected are the same", {"prompt": "x", "chosen": "y", "rejected": "z"},
        {"prompt": "x", "chosen": "y", "rejected": "y"}, kind=prepare_preference),
    bad(r"rows\.jsonl:31: message 1 spells the special token <\|mask\|>", *ROWS, {"prompt": "<|mask|>", "answer": "y"}),
    bad(r"rows\.jsonl:\d+: the prompt fills max_length 20", *ROWS, max_length=20, long="cut"),
    bad("all records of the inputs have one prompt", {"prompt": "x", "answer": "y"}),
    bad("the inputs hold no record"),
    bad("val_fraction is 0", *ROWS, val_fraction=0.0),
    bad("test_fraction is 0.9; it must be 0 or more, and less than 1 together", *ROWS, test_fraction=0.9),
    bad("tokenizer bpe:300: answers are read in the model's own vocabulary", *ROWS, tokenizer="bpe:300"),
    bad("tokenizer gone: no such file", *ROWS, tokenizer="gone"),
    bad("template gone: no such file", *ROWS, template="gone"),
    bad("chat template 'llada'", *ROWS, template="llada"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, content: str, kind: Any, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        kind([str(tmp_path / "rows.jsonl")], str(tmp_path / "out"), workers=1, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_mistake_that_a_worker_finds_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_llada.prepare.record_folder.SHARD", 100)
    file = write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "x", "answer": "<|mask|>"}])
    with pytest.raises(UserError, match=r"a\.jsonl:31: message 2 spells"):
        prepare_chat([file], str(tmp_path / "out"), workers=2)


# ---- templates


def test_a_template_of_ones_own_and_a_variable_that_nobody_sets(tmp_path: Path) -> None:
    file, source = write(tmp_path / "a.jsonl", ROWS), ChatTemplate.named("plain", Tokenizer.byte()).source
    own = tmp_path / "own.jinja"
    own.write_text("{% if shout is defined %}{{ shout }}{% endif %}Q: " + source.replace("user:", "human:"))
    out = prepare_chat([file], str(tmp_path / "out"), template=str(own))
    assert Tokenizer.byte().decode(contents(out, "train")[0][0]).startswith("Q: user:\n")
    own.write_text("{{ greeting }}" + source)
    with pytest.raises(UserError, match=r"own\.jinja writes 'greeting', a variable that nobody sets"):
        prepare_chat([file], str(tmp_path / "other"), template=str(own))
    own.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(UserError, match="a model could not learn to stop"):
        prepare_chat([file], str(tmp_path / "other"), template=str(own))


def test_auto_takes_the_folders_own_template_and_prepared_data_are_such_a_folder(tmp_path: Path) -> None:
    file, checkpoint = write(tmp_path / "a.jsonl", ROWS), tmp_path / "checkpoint"
    Tokenizer.train_bpe(["some text to learn from"] * 3, 270).save(checkpoint)
    own = "{% for m in messages %}{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"
    own += "{% if add_generation_prompt %}assistant> {% endif %}"
    (checkpoint / "chat_template.jinja").write_text(own)
    first = prepare_chat([file], str(tmp_path / "first"), tokenizer=str(checkpoint))
    second = prepare_chat([file], str(tmp_path / "second"), tokenizer=str(first))
    assert manifest(first)["chat_template"]["source"] == manifest(second)["chat_template"]["source"] == own
    assert contents(first, "train") == contents(second, "train")
    text = prepare_text([file], str(tmp_path / "text"), field="prompt", tokenizer=str(checkpoint))
    third = prepare_chat([file], str(tmp_path / "third"), tokenizer=str(text))  # which has no template
    assert manifest(third)["chat_template"]["name"] == "chat template 'plain'"


def test_a_mistake_leaves_no_bar_that_moves(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "of a reader that stops in the middle", "answer": ""}]
    with pytest.raises(UserError) as kept:  # what is kept holds the frames, and the bar with them
        prepare_chat([write(tmp_path / "a.jsonl", rows)], str(tmp_path / "out"))
    assert kept.traceback
    assert [thread for thread in threading.enumerate() if type(thread).__module__.startswith("rich")] == []


# ---- what Python itself asks and answers


def test_the_embedded_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = prepare_chat(out=str(tmp_path / "out"), size=400)
    check_prepared(str(out))
    said = manifest(out)
    for split in ("train", "val"):
        records = read_records(str(out), split)
        assert len(records) == said["splits"][split]["records"] == sum(said["splits"][split]["tasks"].values())
        assert all(repl.answer(record.prompt) == record.answer for record in records)
        assert {record.task for record in records} == set(said["splits"][split]["tasks"])
    assert said["options"]["size"] == 400 and "REPL lines" in said["inputs"][0]["name"]
    with pytest.raises(UserError, match="made with other seed;"):
        prepare_chat(out=str(out), size=400, seed=2)
    monkeypatch.setattr(repl, "topics", lambda: iter(()))
    with pytest.raises(UserError, match="this Python carries no language reference"):
        prepare_chat(out=str(tmp_path / "none"), size=400)


def test_the_embedded_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [
        (f"Do {n}.", f"def f():\n    return {n}", f"def f(:\n    return {n}", "train" if n % 5 else "val")
        for n in range(20)
    ]
    monkeypatch.setattr(record_sources, "twin_records", lambda *_: iter(twins))
    out = prepare_preference(out=str(tmp_path / "out"))
    check_prepared(str(out))
    assert {split: said["records"] for split, said in manifest(out)["splits"].items()} == {"train": 16, "val": 4}
    assert [record.answer for record in read_records(str(out), "val")] == [
        c for _, c, _, split in twins if split == "val"
    ]


def test_records_of_text_are_refused(prepared: Path) -> None:
    with pytest.raises(UserError, match="holds text, not records"):
        read_records(str(prepared), "train")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "a.jsonl", ROWS), str(tmp_path / "out")
    assert main(["prepare", "chat", file, "--out", out, "--val_fraction=0.3", "--long", "cut"]) == 0
    assert main(["prepare", "--check", out]) == 0
    assert main(["prepare", "chat", file]) == 2
    assert "prepare chat: say where to with --out DIR, e.g. --out data/chat" in capsys.readouterr().err
    assert main(["prepare", "preference", file, "--out", str(tmp_path / "other")]) == 2
    assert "a.jsonl:1: no preference record in the fields prompt, answer; known are" in capsys.readouterr().err
