"""Files and folders: there when they are whole, as they were when something fails, nothing left beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lit_llada.errors import UserError
from lit_llada.files import (
    file_digest,
    read_object,
    replacing,
    replacing_folder,
    require_folder,
    text_hash,
    unfinished,
    writing,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fail(block: AbstractContextManager[Path], begin: Callable[[Path], object], error: type[BaseException]) -> None:
    """Begin to write, and fail in the middle of it."""
    with block as part:
        begin(part)
        raise error


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error):
        fail(replacing(path), lambda part: part.write_text("half"), error)
    assert path.read_text() == "old" and names(tmp_path) == {"a.txt"}


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    unfinished(path).write_text("a long text that was never finished")
    with writing(path) as file:
        file.write("new")
    assert path.read_text() == "new" and names(tmp_path) == {"a.txt"}


def test_a_folder_that_is_missing_is_one_line(tmp_path: Path) -> None:
    said = r"gone/a\.txt cannot be written: No such file or directory; give another"
    with pytest.raises(UserError, match=said), writing(tmp_path / "gone" / "a.txt"):
        pass


def test_a_folder_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made"
    for left in (unfinished(path), tmp_path / "made.old", path):
        left.mkdir()
        (left / "old.txt").touch()
    with replacing_folder(path) as part:
        assert names(part) == set()
        (part / "new.txt").touch()
        assert names(path) == {"old.txt"}
    assert names(path) == {"new.txt"} and names(tmp_path) == {"made"}


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()
    with pytest.raises(ZeroDivisionError):
        fail(replacing_folder(path), lambda part: (part / "new.txt").touch(), ZeroDivisionError)
    assert names(path) == set() and names(tmp_path) == {"made"}


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
