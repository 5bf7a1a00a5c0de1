"""Reads prepared folders: manifest, tokenizer, chunks and records, local or remote, and whether all is there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_llada.data.kinds import KINDS, DataKind
from lit_llada.data.streaming import RecordRows, TokenRows
from lit_llada.errors import UserError
from lit_llada.files import file_digest
from lit_llada.text.tokenizer import Tokenizer

FORMAT = 1  # of the manifest
_SMALL_FILES = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


class Record(NamedTuple):
    """A conversation as it was prepared: a preference record is the one that ends with the chosen answer."""

    prompt: str  # the last message before the answer
    answer: str
    task: str  # the kind of a line (embedded corpora), or nothing
    messages: list[dict[str, str]]  # all before the answer


def is_remote(path: str) -> bool:
    """Whether LitData has to fetch the chunks (s3://, gs://, azure://, r2://, hf://, or local: for a slow disk)."""
    return "://" in path or path.startswith("local:")


@dataclass
class DataFolder:
    """A prepared folder: where its chunks are, its manifest, its tokenizer, and the chunks of each split.

    `lengths` has, for each split, the tokens of every record: ``[N, 1]`` of conversations, ``[N, 2]`` of pairs
    (chosen, rejected), ``[0, 0]`` where there are no records.
    """

    location: str
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    chunks: dict[str, list[dict[str, Any]]]
    lengths: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: str) -> DataFolder:
        """Read the small files of a folder; UserError if one is missing or they contradict each other."""
        if not is_remote(path):
            return cls._read(path, Path(path))
        with tempfile.TemporaryDirectory() as scratch:
            _fetch_small_files(path, Path(scratch))
            return cls._read(path, Path(scratch))

    @classmethod
    def _read(cls, location: str, root: Path) -> DataFolder:
        if not root.is_dir():
            raise UserError(f"no data folder {location}: make it with `lit-llada prepare`, or correct data.path")
        if not (root / "manifest.json").is_file():
            raise UserError(f"{location} has no manifest.json: run `lit-llada prepare` to (re)make it")
        manifest = _json(root / "manifest.json", location)
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise UserError(f"{location} has a manifest of format {found}, not {FORMAT}: prepare it again")
        if _kind_name(manifest) not in KINDS:
            raise UserError(f"{location} holds {_kind_name(manifest)}; known are {', '.join(KINDS)}: prepare it again")
        tokenizer = Tokenizer.load(root / "tokenizer")
        if tokenizer.digest != manifest["tokenizer"]["digest"]:
            raise UserError(f"{location}/tokenizer is not the tokenizer of its manifest: prepare the folder again")
        chunks = {split: _split_chunks(location, root, split, manifest) for split in manifest["splits"]}
        lengths = {split: _lengths(location, root, split, manifest) for split in manifest["splits"]}
        return cls(location, manifest, tokenizer, chunks, lengths)

    @property
    def kind(self) -> str:
        """One of :data:`~lit_llada.data.kinds.KINDS`: ``text``, ``chat`` or ``preference``."""
        return _kind_name(self.manifest)

    @property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``val``, and ``test`` where one was held out."""
        return tuple(self.manifest["splits"])

    @property
    def template_source(self) -> str | None:
        """The chat template that records were written with; None for text."""
        return self.manifest.get("chat_template", {}).get("source")

    @property
    def digest(self) -> str:
        """Names the contents (training and validation chunks in order, tokenizer), wherever the folder lies.

        What was held out for the test is no part of it: no run depends on that.
        """
        splits = {s: [c["sha256"] for c in self.manifest["splits"][s]["chunks"]] for s in ("train", "val")}
        text = json.dumps([self.manifest["tokenizer"]["digest"], splits], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_chunks(self, verify: bool = False) -> None:
        """Compare each local chunk's size (with `verify` its hash too) with the manifest; UserError names it."""
        if is_remote(self.location):
            if verify:
                raise UserError(f"data.verify needs the chunks on disk, and {self.location} is remote: set it to false")
            return
        for split, content in self.manifest["splits"].items():
            for entry in [*content["chunks"], *content.get("files", [])]:
                file, size = Path(self.location, split, Path(entry["file"]).name), entry["bytes"]
                what = f"chunk {file}" if entry in content["chunks"] else f"file {file}"
                if not file.is_file():
                    raise UserError(f"{what} is missing: prepare {self.location} again")
                found = file.stat().st_size
                if found != size:
                    raise UserError(f"{what} has {found:,} bytes instead of {size:,}: prepare {self.location} again")
                if verify and file_digest(file) != entry["sha256"]:
                    raise UserError(f"{what} is corrupt (its hash changed): prepare {self.location} again")

    def rows(self, split: str, length: int, cache_dir: str | None) -> TokenRows:
        """The rows of `length` tokens of a split; UserError if there is none."""
        chunks = self.chunks[split]
        tokens = [c["dim"] for c in chunks]
        if not tokens:
            raise UserError(
                f"the {split} split of {self.location} is empty: prepare more text or a larger {split} share"
            )
        if max(tokens) < length:
            raise UserError(
                f"length {length} is longer than every {split} chunk of {self.location} (the largest has {max(tokens)}"
                " tokens): set a shorter data.length or prepare more text in larger chunks"
            )
        return TokenRows(self._where(split), [c["filename"] for c in chunks], tokens, length, cache_dir)

    def records(self, split: str, cache_dir: str | None) -> RecordRows:
        """The conversations or pairs of a split."""
        chunks = self.chunks[split]
        counts = [c["chunk_size"] for c in chunks]
        return RecordRows(self._where(split), [c["filename"] for c in chunks], counts, cache_dir)

    def _where(self, split: str) -> str:
        return f"{self.location.rstrip('/')}/{split}"


def check_alike(folder: DataFolder, first: DataFolder) -> None:
    """Refuse folders whose rows cannot be in one batch.

    Raises:
        UserError: they differ in kind, tokenizer or chat template.
    """
    if folder.kind != first.kind:
        raise UserError(
            f"{folder.location} holds {folder.kind} and {first.location} {first.kind}: give folders of one kind"
        )
    if folder.tokenizer.digest != first.tokenizer.digest:
        raise UserError(
            f"{folder.location} was prepared with another tokenizer than {first.location}: prepare one of"
            " them again with the other's tokenizer"
        )
    if folder.template_source != first.template_source:
        raise UserError(
            f"{folder.location} was prepared with another chat template than {first.location}: prepare one"
            " of them again with the other's --template"
        )


def read_records(path: str, split: str) -> list[Record]:
    """The records of a split of a local folder, as text: what an evaluation asks and expects.

    Raises:
        UserError: no such folder, one of text, or one without this split.
    """
    folder = DataFolder.open(path)
    if not KINDS[folder.kind].has_records:
        raise UserError(f"{path} holds {folder.kind}, not records: give one made by `lit-llada prepare chat`")
    if split not in folder.splits:
        raise UserError(f"{path} has no {split} split: there is {', '.join(folder.splits)}")
    found = []
    with Path(path, split, "records.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            *before, last = row["messages"] if "messages" in row else [*row["prompt"], *row["chosen"]]
            task = row.get("task") or row.get("template", "")  # as folders of version 0.1.0 call it
            found.append(Record(before[-1]["content"], last["content"], task, before))
    return found


def _kind_name(manifest: dict[str, Any]) -> str:
    return manifest.get("kind", "text")


def _kind(manifest: dict[str, Any]) -> DataKind:
    return KINDS[_kind_name(manifest)]


def _lengths(location: str, root: Path, split: str, manifest: dict[str, Any]) -> np.ndarray:
    """How long each record is, as was noted beside the chunks."""
    if not _kind(manifest).has_records:
        return np.zeros((0, 0), np.int32)
    try:
        lengths = np.load(root / split / "lengths.npy")
    except (OSError, ValueError, EOFError):
        raise UserError(f"{location}/{split}/lengths.npy is missing or damaged: prepare {location} again") from None
    if len(lengths) != manifest["splits"][split]["records"]:
        raise UserError(f"{location}/{split}/lengths.npy is not of these records: prepare {location} again")
    return lengths


def _json(file: Path, location: str) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{location}/{file.name} is not valid JSON: prepare the folder again") from None


def _split_chunks(location: str, root: Path, split: str, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks that LitData will read, which must be those of the manifest."""
    kind = _kind(manifest)
    promised = [(Path(c["file"]).name, c[kind.counted]) for c in manifest["splits"][split]["chunks"]]
    index = root / split / "index.json"
    if not promised and not index.is_file():
        return []
    if not index.is_file():
        raise UserError(f"{location}/{split} has no index.json: run `lit-llada prepare` to (re)make {location}")
    chunks = _json(index, f"{location}/{split}")["chunks"]
    if [(c["filename"], c[kind.noted]) for c in chunks] != promised:
        raise UserError(f"{location}/{split}/index.json and manifest.json list different chunks: prepare it again")
    return chunks


def _fetch_small_files(url: str, into: Path) -> None:
    _fetch(url, "manifest.json", into)
    manifest = _json(into / "manifest.json", url)
    for name in _SMALL_FILES:
        _fetch(url, name, into)
    for split in manifest.get("splits", {}):
        _fetch(url, f"{split}/index.json", into, optional=split != "train")  # an empty split has none
        if KINDS.get(_kind_name(manifest), KINDS["text"]).has_records:
            _fetch(url, f"{split}/lengths.npy", into)


def _fetch(url: str, name: str, into: Path, optional: bool = False) -> None:
    from litdata.streaming.downloader import get_downloader

    (into / name).parent.mkdir(exist_ok=True)
    try:
        get_downloader(url, str(into), []).download_file(f"{url.rstrip('/')}/{name}", str(into / name))
    except Exception as error:  # every provider raises its own
        if not optional:
            raise UserError(f"cannot fetch {url.rstrip('/')}/{name} ({str(error).splitlines()[0]})") from error
