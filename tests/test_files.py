"""A file is there when it is whole; JSON that is no object, and folders that are missing, are named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lit_llada.errors import UserError
from lit_llada.files import file_digest, read_object, replacing, require_folder, text_hash, writing


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as part:
        part.write_text("new")
        assert not path.exists() and part.parent == tmp_path
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_an_error_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with writing(path) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    with writing(path) as file:
        file.write("whole")
    assert path.read_text() == "whole" and [*tmp_path.iterdir()] == [path]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"gone/a.txt cannot be written: .*; give another place"),
        writing(tmp_path / "gone" / "a.txt"),
    ):
        pass
    with pytest.raises(UserError, match=r"there is no folder .*gone; make it"):
        require_folder(tmp_path / "gone" / "a.txt")
    require_folder(tmp_path / "a.txt")
    require_folder(None)


def test_json_is_an_object_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_object(path) == {}
    path.write_text('{"a": [1]}')
    assert read_object(path) == {"a": [1]}
    for text in ("[1]", "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a.json is not a JSON object"):
            read_object(path)


def test_hashes_are_those_of_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    whole = hashlib.sha256(b"abc")
    assert file_digest(path) == whole.hexdigest() and text_hash("abc") == int(whole.hexdigest()[:16], 16)
    with pytest.raises(UserError, match="gone: cannot be read"):
        file_digest(tmp_path / "gone")


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    def broken() -> None:
        with writing(tmp_path / "a") as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="cannot be written: No such file"), writing(tmp_path / "gone" / "a"):
        pass
