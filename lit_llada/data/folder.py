"""Is this prepared folder whole, and what is in it? Manifest, tokenizer and chunks, local or remote."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_llada.data.reading import file_digest
from lit_llada.data.streaming import TokenRows
from lit_llada.data.tokenizer import Tokenizer
from lit_llada.errors import UserError

_ITEM_BYTES = {"uint16": 2, "int32": 4}
_SMALL_FILES = ["manifest.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


def is_remote(path: str) -> bool:
    """Whether LitData has to fetch the chunks (s3://, gs://, azure://, r2://, hf://, or local: for a slow disk)."""
    return "://" in path or path.startswith("local:")


@dataclass
class DataFolder:
    """A prepared folder: where its chunks are, its manifest, its tokenizer, and the chunks of each split."""

    location: str
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    chunks: dict[str, list[dict[str, Any]]]

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
        if manifest.get("format") != 1:
            raise UserError(f"{location} has a manifest of format {manifest.get('format')}, not 1: prepare it again")
        tokenizer = Tokenizer.load(root / "tokenizer")
        if tokenizer.digest != manifest["tokenizer"]["digest"]:
            raise UserError(f"{location}/tokenizer is not the tokenizer of its manifest: prepare the folder again")
        chunks = {split: _split_chunks(location, root, split, manifest) for split in ("train", "val")}
        return cls(location, manifest, tokenizer, chunks)

    @property
    def digest(self) -> str:
        """Names the contents (training and validation chunks in order, tokenizer), wherever the folder lies."""
        splits = {s: [c["sha256"] for c in self.manifest["splits"][s]["chunks"]] for s in ("train", "val")}
        text = json.dumps([self.manifest["tokenizer"]["digest"], splits], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_chunks(self, verify: bool = False) -> None:
        """Compare each local chunk's size (with `verify` its hash too) with the manifest; UserError names it."""
        if is_remote(self.location):
            if verify:
                raise UserError(f"data.verify needs the chunks on disk, and {self.location} is remote: set it to false")
            return
        for split, chunks in self.chunks.items():
            sums = {Path(c["file"]).name: c["sha256"] for c in self.manifest["splits"][split]["chunks"]}
            for chunk in chunks:
                file = Path(self.location, split, chunk["filename"])
                if not file.is_file():
                    raise UserError(f"chunk {file} is missing: prepare {self.location} again")
                header = 4 * (chunk["chunk_size"] + 2)  # number of documents, then where each begins and the end
                size = header + chunk["dim"] * _ITEM_BYTES[self.manifest["dtype"]]
                if file.stat().st_size != size:
                    found = file.stat().st_size
                    raise UserError(
                        f"chunk {file} has {found:,} bytes instead of {size:,}: prepare {self.location} again"
                    )
                if verify and file_digest(file) != sums[file.name]:
                    raise UserError(f"chunk {file} is corrupt (its hash changed): prepare {self.location} again")

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
        where = f"{self.location.rstrip('/')}/{split}"
        return TokenRows(where, [c["filename"] for c in chunks], tokens, length, cache_dir)


def _json(file: Path, location: str) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{location}/{file.name} is not valid JSON: prepare the folder again") from None


def _split_chunks(location: str, root: Path, split: str, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks that LitData will read, which must be those of the manifest."""
    promised = [(Path(c["file"]).name, c["tokens"]) for c in manifest["splits"][split]["chunks"]]
    index = root / split / "index.json"
    if not promised and not index.is_file():
        return []
    if not index.is_file():
        raise UserError(f"{location}/{split} has no index.json: run `lit-llada prepare` to (re)make {location}")
    chunks = _json(index, f"{location}/{split}")["chunks"]
    if [(c["filename"], c["dim"]) for c in chunks] != promised:
        raise UserError(f"{location}/{split}/index.json and manifest.json list different chunks: prepare it again")
    return chunks


def _fetch_small_files(url: str, into: Path) -> None:
    from litdata.streaming.downloader import get_downloader

    for name in [*_SMALL_FILES, "train/index.json", "val/index.json"]:
        target = into / name
        target.parent.mkdir(exist_ok=True)
        try:
            get_downloader(url, str(into), []).download_file(f"{url.rstrip('/')}/{name}", str(target))
        except Exception as error:  # every provider raises its own
            if name != "val/index.json":  # an empty split has none
                raise UserError(f"cannot fetch {url.rstrip('/')}/{name} ({str(error).splitlines()[0]})") from error
