"""Reads documents and rows from files: text, code, JSON lines and parquet, compressed or not."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lit_llada.errors import UserError

TEXT = {".txt", ".md", ".py"}
ROWS = {".jsonl", ".parquet"}
OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = {*OPENERS, ".zst"}


def list_files(inputs: list[str], kinds: set[str] = TEXT | ROWS) -> list[Path]:
    """The files of the inputs, folders searched through in the order of names, hidden ones left out.

    `kinds` are the endings that are wanted: a readme beside somebody's rows is no row.

    Raises:
        UserError: an input does not exist, is of an unknown kind, or is a folder without a file of a known kind.
    """
    files, known = list[Path](), " ".join(sorted(kinds))
    for given in map(Path, inputs):
        if given.is_dir():
            inside = sorted(path for path in given.rglob("*") if _wanted(path, given, kinds))
            if not inside:
                raise UserError(f"input {given}: no {known} file in this folder")
            files += inside
        elif not given.is_file():
            raise UserError(f"input {given}: no such file or folder")
        elif ending_of(given) not in kinds:
            raise UserError(f"input {given}: unknown kind of file; known are {known}, also compressed")
        else:
            files.append(given)
    return files


def _wanted(path: Path, folder: Path, kinds: set[str]) -> bool:
    """A file of these kinds, and no .git or .venv on the way to it."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return ending_of(path) in kinds and not hidden and path.is_file()


def ending_of(path: Path) -> str | None:
    """The ending that tells how to read a file, without that of its compression; None for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TEXT | ROWS else None


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The non-empty documents of one file: the file itself, or a field of every row.

    Raises:
        UserError: bytes that are not UTF-8, a line that is not a JSON object, a row without the field; with the place.
    """
    with _opened(path) as file:
        texts = _texts(path, file, field) if ending_of(path) in ROWS else iter([file.read().decode()])
        yield from (text for text in texts if text.strip())


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row of a .jsonl or .parquet file, with its number from 1 (of the line).

    Raises:
        UserError: bytes that are not UTF-8, a line that is not a JSON object; with the place.
    """
    with _opened(path) as file:
        yield from _parquet_rows(path, file) if ending_of(path) == ".parquet" else _json_rows(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked; what goes wrong while it is read is one line."""
    try:
        with _open(path) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return io.BytesIO(_unpack_zstd(path.read_bytes()))
    return OPENERS.get(suffix, open)(path, "rb")


def _unpack_zstd(packed: bytes) -> bytes:
    """All frames of a .zst file; the library's own stream reader ends without a word where the file is cut short."""
    import zstandard

    parts = []
    while packed:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from None
        if not frame.eof:
            raise EOFError("the compressed data end too early")
        packed = frame.unused_data
    return b"".join(parts)


def _texts(path: Path, file: IO[bytes], field: str) -> Iterator[str]:
    rows = _parquet_rows(path, file, field) if ending_of(path) == ".parquet" else _json_rows(path, file)
    for place, row in rows:
        text = row.get(field)
        if not isinstance(text, str):
            found = ", ".join(map(str, row)) or "nothing"
            raise UserError(f"{path}:{place}: no text in field {field!r} (there is {found}); name it with --field")
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell it
            raise UserError(f"{path}:{place}: field {field!r} holds half a surrogate pair; repair it") from None
        yield text


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not a line of JSON ({error.msg})") from None
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8 text; convert it first") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a line must be a JSON object, and this is {type(row).__name__}")
            yield number, row


def _parquet_rows(path: Path, file: IO[bytes], field: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except Exception as error:
        raise UserError(f"{path}: not a parquet file ({error})") from None
    names = table.schema_arrow.names
    if field is not None and field not in names:
        raise UserError(f"{path}: no column {field!r} (there is {', '.join(names)}); name it with --field")
    number = 0
    for batch in table.iter_batches(columns=None if field is None else [field]):
        for row in batch.to_pylist():
            number += 1
            yield number, row
