"""Which documents are in these files? Text, code, JSON lines and parquet, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lit_llada.errors import UserError

TEXT = {".txt", ".md", ".py"}
ROWS = {".jsonl", ".parquet"}
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = {*OPENERS, ".zst"}


def list_files(inputs: list[str]) -> list[Path]:
    """The files of the inputs, folders searched through in the order of names.

    Raises:
        UserError: an input does not exist, is of an unknown kind, or is a folder without a file of a known kind.
    """
    files: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            inside = sorted(path for path in given.rglob("*") if path.is_file() and kind_of(path))
            if not inside:
                raise UserError(f"input {given}: no {known_kinds()} file in this folder")
            files += inside
        elif not given.is_file():
            raise UserError(f"input {given}: no such file or folder")
        elif not kind_of(given):
            raise UserError(f"input {given}: unknown kind of file; known are {known_kinds()}, also compressed")
        else:
            files.append(given)
    return files


def kind_of(path: Path) -> str | None:
    """The ending that tells how to read a file, without that of its compression; None for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT | ROWS else None


def known_kinds() -> str:
    return " ".join(sorted(TEXT | ROWS))


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The non-empty documents of one file: the file itself, or a field of every row.

    Raises:
        UserError: bytes that are not UTF-8, a line that is not a JSON object, a row without the field; with the place.
    """
    kind = kind_of(path)
    try:
        with _open(path) as file:
            texts = _rows(path, file, kind, field) if kind in ROWS else iter([file.read().decode()])
            yield from (text for text in texts if text.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import zstandard

        with path.open("rb") as file:
            return io.BytesIO(zstandard.ZstdDecompressor().stream_reader(file).read())
    return OPENERS.get(suffix, open)(path, "rb")


def _rows(path: Path, file: IO[bytes], kind: str | None, field: str) -> Iterator[str]:
    rows = _parquet_rows(path, file, field) if kind == ".parquet" else _json_rows(path, file)
    for place, row in rows:
        text = row.get(field)
        if not isinstance(text, str):
            found = ", ".join(map(str, row)) or "nothing"
            raise UserError(f"{path}:{place}: no text in field {field!r} (there is {found}); name it with --field")
        yield text


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not a line of JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a line must be a JSON object with a field {field_hint()}")
            yield number, row


def field_hint() -> str:
    return "that holds the text (--field)"


def _parquet_rows(path: Path, file: IO[bytes], field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except Exception as error:
        raise UserError(f"{path}: not a parquet file ({error})") from None
    names = table.schema_arrow.names
    if field not in names:
        raise UserError(f"{path}: no column {field!r} (there is {', '.join(names)}); name it with --field")
    number = 0
    for batch in table.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield number, {field: text}
