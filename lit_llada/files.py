"""Files that are there when they are whole, and not before; JSON that is an object; hashes of files and texts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lit_llada.errors import UserError

UNFINISHED = ".part"  # ends the name of what is not whole yet


def unfinished(path: Path) -> Path:
    """The name beside ``path`` under which it is written, before it is renamed."""
    return path.with_name(path.name + UNFINISHED)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The temporary name to write a file under; it becomes ``path`` when the block ends without an error.

    An error leaves ``path`` as it was and removes the temporary file; what a killed process left is written over.
    """
    part = unfinished(path)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):  # the error that counts is the first
            part.unlink()
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``path`` when the block ends without an error.

    An error leaves ``path`` as it was; what it, or a killed process, left beside ``path`` is removed.
    """
    part, old = unfinished(path), path.with_name(path.name + ".old")
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """An open text file that becomes ``path`` when it is whole.

    Raises:
        UserError: its folder is missing or closed.
    """
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8") as file:
            yield file
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another place") from None


def require_folder(path: str | Path | None) -> None:
    """Refuse a file that could not be written after long work: its folder is missing. None is no file.

    Raises:
        UserError: names the folder.
    """
    if path is not None and not Path(path).parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {Path(path).parent}; make it or give another")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object, so it is left alone; correct or remove it")
    return found


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def text_hash(text: str) -> int:
    """64 bits of the text's sha256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
