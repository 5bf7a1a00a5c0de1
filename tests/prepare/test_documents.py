"""Files to a prepared folder: every kind of file, the same bytes, nothing half-made, one line for a mistake."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lit_llada.data.folder import DataFolder
from lit_llada.errors import UserError
from lit_llada.prepare import documents
from lit_llada.prepare.corpora import stdlib
from lit_llada.prepare.documents import check_prepared, prepare_text
from lit_llada.prepare.reading import read_documents
from lit_llada.text.tokenizer import Tokenizer

NOISE = np.random.default_rng(0).bytes(2000).hex().encode()
TEXTS = [f"document {i}: " + "word " * (i % 9 + 1) for i in range(40)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i:02d}.txt").write_text(text)
    return folder


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def tokens_of(folder: Path, split: str) -> np.ndarray:
    rows = DataFolder.open(str(folder)).rows(split, 1, None)
    return np.array([int(rows[i]) for i in range(len(rows))])


def test_every_document_is_there_once_in_order_and_ends_with_eos(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"), val_fraction=0.3, workers=2)
    found = []
    for split in ("train", "val"):
        ids = tokens_of(out, split)
        assert ids[-1] == 256
        documents = [
            bytes(part[part < 256].astype(np.uint8)).decode() for part in np.split(ids, np.where(ids == 256)[0])
        ]
        found.append([text for text in documents if text])
    train, val = found
    assert train == [text for text in TEXTS if text in train] and val == [text for text in TEXTS if text in val]
    assert sorted(train + val) == sorted(TEXTS) and val
    counts = manifest(out)["splits"]
    for name, texts in (("train", train), ("val", val)):
        total = sum(map(len, texts))
        assert (counts[name]["documents"], counts[name]["bytes"]) == (len(texts), total)
        assert counts[name]["tokens"] == total + len(texts)


def test_unigram_level_is_the_cross_entropy_of_the_training_frequencies(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"), val_fraction=0.3)
    train = np.bincount(tokens_of(out, "train"), minlength=258) + 1
    val = tokens_of(out, "val")
    expected = -np.log(train[val] / train.sum()).mean()
    assert manifest(out)["splits"]["val"]["unigram_nll"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_the_same_inputs_give_the_same_bytes_whatever_the_workers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    monkeypatch.setattr(documents, "SHARD", 100)
    interrupt = signal.getsignal(signal.SIGINT)
    folders = [
        prepare_text([str(source)], str(tmp_path / f"{i}"), tokenizer=tokenizer, workers=workers, chunk_mb=2e-4)
        for i, workers in enumerate((1, 2, 2))
    ]
    files = [{path.relative_to(f): path.read_bytes() for path in f.rglob("*") if path.is_file()} for f in folders]
    assert files[0] == files[1] == files[2]
    tokens = [chunk["tokens"] for chunk in manifest(folders[0])["splits"]["train"]["chunks"]]
    assert len(tokens) > 2 and set(tokens[:-1]) == {100} and 50 < tokens[-1] <= 150
    assert multiprocessing.get_start_method(allow_none=True) != "spawn"
    assert signal.getsignal(signal.SIGINT) == interrupt


def test_a_prepared_folder_can_be_moved(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))
    assert str(tmp_path) not in (out / "train" / "index.json").read_text()
    before = tokens_of(out, "train")
    moved = out.rename(tmp_path / "moved")
    check_prepared(str(moved))
    assert (tokens_of(moved, "train") == before).all()


def test_a_second_run_does_nothing_and_another_input_is_refused(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))
    before = (out / "manifest.json").stat().st_mtime_ns
    prepare_text([str(source)], str(out))
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other tokenizer;"):
        prepare_text([str(source)], str(out), tokenizer="bpe:300")
    (source / "new.txt").write_text("more")
    with pytest.raises(UserError, match="made with other inputs;"):
        prepare_text([str(source)], str(out))
    prepare_text([str(source)], str(out), overwrite=True)
    assert manifest(out)["splits"]["train"]["documents"] + manifest(out)["splits"]["val"]["documents"] == 41


def test_another_field_of_the_same_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"t{i}", "body": f"b{i}"}) + "\n" for i in range(40)))
    prepare_text([str(file)], str(tmp_path / "out"))
    with pytest.raises(UserError, match="made with other field;"):
        prepare_text([str(file)], str(tmp_path / "out"), field="body")


def test_a_single_document_gives_its_end_to_validation(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "book.txt").write_text(text)
    out = prepare_text([str(tmp_path / "book.txt")], str(tmp_path / "out"), val_fraction=0.1)
    train, val = (Tokenizer.byte().decode(tokens_of(out, split)) for split in ("train", "val"))
    assert train + val == text and val.startswith("line 9")


def test_a_test_split_is_a_third_one_with_levels_of_its_own(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"), val_fraction=0.3, test_fraction=0.3)
    check_prepared(str(out))
    splits, found = manifest(out)["splits"], {}
    for split in ("train", "val", "test"):
        text = Tokenizer.byte().decode(tokens_of(out, split).tolist(), eos="|")
        found[split] = set(text.strip("|").split("|"))
        assert len(found[split]) == splits[split]["documents"] > 1
    assert sorted(text for texts in found.values() for text in texts) == sorted(TEXTS)
    counts = {split: np.bincount(tokens_of(out, split), minlength=258) for split in found}
    frequencies = (counts["train"] + 1) / (counts["train"] + 1).sum()
    for split in ("val", "test"):
        expected = -(counts[split] * np.log(frequencies)).sum() / counts[split].sum()
        assert splits[split]["unigram_nll"] == pytest.approx(expected, rel=1e-12)
    assert splits["test"]["reference_bits_per_byte"] != splits["val"]["reference_bits_per_byte"]
    before = prepare_text([str(source)], str(tmp_path / "before"), val_fraction=0.3)
    was_val = Tokenizer.byte().decode(tokens_of(before, "val").tolist(), eos="|")
    assert found["test"] == set(was_val.strip("|").split("|"))  # equal shares: what was validated on is the test


def test_without_a_test_split_the_manifest_says_nothing_of_one(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))
    assert list(manifest(out)["splits"]) == ["train", "val"]
    assert list(manifest(out)["options"]) == ["tokenizer", "val_fraction", "chunk_mb"]
    assert "test" not in {path.name for path in out.iterdir()}


def test_a_folder_with_another_test_split_is_not_up_to_date(source: Path, tmp_path: Path) -> None:
    out = str(prepare_text([str(source)], str(tmp_path / "out"), test_fraction=0.1))
    before = Path(out, "manifest.json").stat().st_mtime_ns
    prepare_text([str(source)], out, test_fraction=0.1)
    assert Path(out, "manifest.json").stat().st_mtime_ns == before
    for fraction in (0.2, 0.0):
        with pytest.raises(UserError, match="made with other test_fraction;"):
            prepare_text([str(source)], out, test_fraction=fraction)
    prepare_text([str(source)], out, overwrite=True)
    assert not (tmp_path / "out" / "test").exists()
    with pytest.raises(UserError, match="made with other test_fraction;"):
        prepare_text([str(source)], out, test_fraction=0.1)


def test_a_single_document_gives_its_end_to_the_test_and_what_is_before_to_validation(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "book.txt").write_text(text)
    out = prepare_text([str(tmp_path / "book.txt")], str(tmp_path / "out"), val_fraction=0.1, test_fraction=0.1)
    train, val, test = (Tokenizer.byte().decode(tokens_of(out, split)) for split in ("train", "val", "test"))
    assert train + val + test == text and val.startswith("line 8") and test.startswith("line 9")
    for length, said in ((3, None), (2, "hold 2 characters"), (1, "hold one character")):
        (tmp_path / "book.txt").write_text("abc"[:length])
        if said is None:
            prepare_text([str(tmp_path / "book.txt")], str(tmp_path / f"{length}"), test_fraction=0.1)
            continue
        with pytest.raises(UserError, match=said):
            prepare_text([str(tmp_path / "book.txt")], str(tmp_path / f"{length}"), test_fraction=0.1)


def test_check_looks_into_the_test_split(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"), val_fraction=0.3, test_fraction=0.3)
    chunk = next((out / "test").glob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"chunk .*test.*\.bin is corrupt"):
        check_prepared(str(out))


@pytest.mark.parametrize("val_fraction", [0.0001, 0.9999])
def test_a_few_documents_fill_both_splits(tmp_path: Path, val_fraction: float) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"text {i}")
    splits = manifest(prepare_text([str(folder)], str(tmp_path / "out"), val_fraction=val_fraction))["splits"]
    assert sorted(split["documents"] for split in splits.values()) == [1, 2]


def test_hidden_folders_are_passed_over(source: Path, tmp_path: Path) -> None:
    (source / ".venv").mkdir()
    (source / ".venv" / "module.py").write_text("x = 1")
    assert len(manifest(prepare_text([str(source)], str(tmp_path / "out")))["inputs"]) == len(TEXTS)


def test_two_frames_of_zstd_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"first ") + zstandard.compress(b"second"))
    assert list(read_documents(tmp_path / "a.txt.zst", "text")) == ["first second"]


def test_all_kinds_of_files_compressed_too(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    rows = "\n".join(json.dumps({"body": f"line {i}"}) for i in range(3)).encode()
    (source / "a.md").write_text("markdown")
    (source / "b.py").write_text("x = 1")
    (source / "c.jsonl").write_bytes(rows)
    (source / "d.jsonl.gz").write_bytes(gzip.compress(rows.replace(b"line", b"gz")))
    (source / "e.txt.bz2").write_bytes(bz2.compress(b"bz2"))
    (source / "f.txt.xz").write_bytes(lzma.compress(b"xz"))
    (source / "g.txt.zst").write_bytes(zstandard.compress(b"zst"))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["parquet 1", "parquet 2"], "n": [1, 2]}), source / "h.parquet")
    (source / "ignored.bin").write_bytes(b"\0")
    out = prepare_text([str(source)], str(tmp_path / "out"), field="body", val_fraction=0.3)
    text = "".join(Tokenizer.byte().decode(tokens_of(out, split).tolist(), eos="|") for split in ("train", "val"))
    expected = ["markdown", "x = 1", *(f"{kind} {i}" for kind in ("line", "gz") for i in range(3)), "bz2", "xz", "zst",
                "parquet 1", "parquet 2"]  # fmt: skip
    assert sorted(text.strip("|").split("|")) == sorted(expected)
    assert [entry["documents"] for entry in manifest(out)["inputs"]] == [1, 1, 3, 3, 1, 1, 1, 2]


def test_a_foreign_and_a_learnt_tokenizer(source: Path, tmp_path: Path) -> None:
    learnt = prepare_text([str(source)], str(tmp_path / "bpe"), tokenizer="bpe:300", val_fraction=0.3)
    again = prepare_text([str(source)], str(tmp_path / "file"), tokenizer=str(learnt / "tokenizer"), val_fraction=0.3)
    assert manifest(again)["tokenizer"]["digest"] == manifest(learnt)["tokenizer"]["digest"]
    assert [c["sha256"] for c in manifest(again)["splits"]["train"]["chunks"]] == [
        c["sha256"] for c in manifest(learnt)["splits"]["train"]["chunks"]
    ]


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(documents, "write_chunks", full)
    with pytest.raises(UserError, match="out: No space left on device"):
        prepare_text([str(source)], str(out), tokenizer="bpe:300", overwrite=True)
    check_prepared(str(out))
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_the_workers_of_a_killed_run_end(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()

    def stuck(*_: object) -> None:
        (pids / str(os.getpid())).touch()
        time.sleep(600)

    monkeypatch.setattr(documents, "SHARD", 100)
    monkeypatch.setattr(Tokenizer, "encode_batch", stuck)
    process = multiprocessing.get_context("fork").Process(target=prepare_text, args=([str(source)], f"{tmp_path}/out"))
    process.start()
    deadline = time.time() + 120
    while len(list(pids.iterdir())) < 2 and time.time() < deadline:
        time.sleep(0.05)
    workers = [int(path.name) for path in pids.iterdir()]
    assert len(workers) == 2 and process.pid not in workers
    process.kill()
    process.join()
    while any(map(running, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))


def running(pid: int) -> bool:
    """An ended process that nobody has waited for yet counts as ended."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_a_killed_run_leaves_nothing_that_looks_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(documents, "token_counts", lambda *_: time.sleep(600))
    process = multiprocessing.get_context("fork").Process(target=prepare_text, args=([str(source)], str(out)))
    process.start()
    part = tmp_path / "out.part"
    deadline = time.time() + 120
    while not (part / "val" / "index.json").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.undo()
    assert part.exists() and not out.exists()
    prepare_text([str(source)], str(out))
    check_prepared(str(out))
    assert not part.exists()


def damage(out: Path, how: str) -> None:
    chunk = next((out / "train").glob("*.bin"))
    if how == "missing":
        chunk.unlink()
    elif how == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-10])
    else:
        data = bytearray(chunk.read_bytes())
        data[-3] ^= 1
        chunk.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "message"), [("missing", "is missing"), ("truncated", "bytes instead of"), ("flipped", "is corrupt")]
)
def test_check_names_the_bad_chunk(source: Path, tmp_path: Path, how: str, message: str) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))
    check_prepared(str(out))
    damage(out, how)
    with pytest.raises(UserError, match=rf"chunk .*\.bin .*{message}"):
        check_prepared(str(out))
    if how != "flipped":  # seen without reading it all
        with pytest.raises(UserError, match=rf"chunk .*\.bin .*{message}"):
            prepare_text([str(source)], str(out))
    prepare_text([str(source)], str(out), overwrite=True)
    check_prepared(str(out))


def test_check_wants_manifest_index_and_counts(source: Path, tmp_path: Path) -> None:
    out = prepare_text([str(source)], str(tmp_path / "out"))
    (out / "train" / "index.json").rename(tmp_path / "index.json")
    with pytest.raises(UserError, match=r"no index\.json"):
        check_prepared(str(out))
    (tmp_path / "index.json").rename(out / "train" / "index.json")
    text = (out / "manifest.json").read_text()
    tokens = manifest(out)["splits"]["val"]["tokens"]
    found = text.rindex(f'"tokens": {tokens}')  # the chunk's is the first, the split's the last
    (out / "manifest.json").write_text(text[:found] + '"tokens": 1' + text[found + len(f'"tokens": {tokens}') :])
    with pytest.raises(UserError, match="val chunks do not add up"):
        check_prepared(str(out))
    (out / "manifest.json").write_text(text[:100])
    with pytest.raises(UserError, match="not valid JSON"):
        check_prepared(str(out))
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        check_prepared(str(out))


def bad(name: str, content: bytes | str, message: str, **options: object) -> pytest.param:  # type: ignore[valid-type]
    return pytest.param(name, content, options, message, id=f"{name}-{message[:12]}")


@pytest.mark.parametrize(("name", "content", "options", "message"), [
    bad("missing.txt", "", "no such file or folder"),
    bad("a.docx", "x", "unknown kind of file"),
    bad("empty.txt", "  \n", "the inputs hold no document"),
    bad("one.txt", "x", "hold one character"),
    bad("latin.txt", b"caf\xe9", "not UTF-8"),
    bad("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not a line of JSON"),
    bad("b.jsonl", '{"text": "x"}\n{"body": "y"}\n', r"b\.jsonl:2: no text in field 'text' \(there is body\)"),
    bad("c.jsonl", "[1]\n", r"c\.jsonl:1: a line must be a JSON object"),
    bad("d.parquet", "no", "not a parquet file"),
    bad("d.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', r"d\.jsonl:2: not UTF-8"),
    bad("d.jsonl", '{"text": "\\ud800"}\n', r"d\.jsonl:1: .* half a surrogate pair"),
    bad("e.txt.gz", "no", "cannot be read"),
    bad("e.txt.gz", gzip.compress(NOISE)[:-9], "cannot be read"),
    bad("e.txt.gz", gzip.compress(NOISE)[:500] + b"\xff" * 99, "cannot be read"),
    bad("e.txt.zst", "no", "cannot be read"),
    bad("e.txt.zst", zstandard.compress(NOISE)[:-9], "cannot be read"),
    bad("f.txt", "x", "tokenizer word: no such file", tokenizer="word"),
    bad("g.txt", "x", "bpe:many", tokenizer="bpe:many"),
    bad("h.txt", "x", "val_fraction is 1.5", val_fraction=1.5),
])  # fmt: skip
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: bytes | str, options: dict, message: str) -> None:
    file = tmp_path / name
    if not name.startswith("missing"):
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    if options.get("tokenizer"):
        for i in range(30):
            (tmp_path / f"{i}.txt").write_text(f"text {i}")
        file = tmp_path
    with pytest.raises(UserError, match=message) as caught:
        prepare_text([str(file)], str(tmp_path / "out"), **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_something_else_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="is not a prepared folder"):
        prepare_text([str(source)], str(tmp_path / "mine"), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_embedded_corpus_is_prose_and_code_of_the_standard_library() -> None:
    prose, code = dict(stdlib.prose()), dict(stdlib.modules())
    assert 'The "assert" statement' in prose["topics/assert"]
    assert "argparse.py" in code and not any("test" in Path(name).parts for name in code)
    docstrings = [text for name, text in stdlib.prose() if not name.startswith("topics/")]
    assert len(set(docstrings)) == len(docstrings) > 3000
    first = list(stdlib.prose())
    stdlib.docstrings.cache_clear()
    assert list(stdlib.prose()) == first, "the order must not change"


def test_nothing_that_is_held_out_is_in_the_training_text_too() -> None:
    names = [name for name, _ in stdlib.embedded("all")]
    assert "topics/assert" in names and "argparse.py" in names
    assert not any(".py:" in name for name in names), "the modules hold their docstrings already"


def test_fallback_where_the_library_has_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": "/nowhere"})
    assert any("argparse" in name for name, _ in stdlib.prose())
    with pytest.raises(UserError, match="no standard library source"):
        list(stdlib.embedded("code"))


def test_a_launchers_variables_change_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = prepare_text([str(source)], str(tmp_path / "alone"), val_fraction=0.3)
    monkeypatch.setenv("WORLD_SIZE", "2")  # LitData's writer would wait for the index of a second rank
    monkeypatch.setenv("GLOBAL_RANK", "1")
    launched = prepare_text([str(source)], str(tmp_path / "launched"), val_fraction=0.3)
    assert manifest(alone)["splits"] == manifest(launched)["splits"]
    assert os.environ["WORLD_SIZE"] == "2"
