"""Files -> tokenizer, LitData chunks and a manifest that says what they were made of."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import track

from lit_llada import __version__
from lit_llada.data.chunks import console, texts, token_counts, unigram_nll, write_chunks
from lit_llada.data.corpora import Corpus, embedded
from lit_llada.data.folder import DataFolder
from lit_llada.data.reading import ROWS, file_digest, kind_of, list_files, read_documents
from lit_llada.data.reference import reference_levels
from lit_llada.data.tokenizer import Tokenizer
from lit_llada.errors import UserError

FORMAT = 1
SHARD = 1 << 20  # bytes of text that a worker takes at a time


def prepare_text(
    inputs: list[str] = [],  # noqa: B006
    out: str = "data/stdlib",
    corpus: Corpus = "all",
    tokenizer: str = "byte",
    field: str = "text",
    val_fraction: float = 0.05,
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Turn text and code into a folder to train on.

    Documents are split into training and validation by a hash of their text, so a document never moves; where that
    leaves a side empty, the document of the smallest (largest) hash goes there, and of a single document the end is
    held out. The same inputs and options give the same bytes, whatever the number of workers; a second call does
    nothing. A chunk is cut after a fixed number of tokens, so only the last one is left with less than a row.

    Args:
        inputs: files and folders of .txt .md .py .jsonl .parquet, also .gz .bz2 .xz .zst; none for the embedded corpus.
        out: the folder to make; it appears when everything in it is done.
        corpus: which part of the standard library, when there are no inputs.
        tokenizer: byte, bpe:SIZE (learnt from the inputs), or the path of a tokenizer.json.
        field: where the text is in a row of .jsonl or .parquet.
        val_fraction: share of the documents held out.
        workers: processes that tokenize.
        chunk_mb: size of a chunk; a row never crosses the end of one.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing, empty or malformed, or ``out`` was made of something else or cannot be written.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    target = Path(out)
    sources = _sources(inputs, corpus, field)
    options = {"tokenizer": _tokenizer_key(tokenizer), "val_fraction": val_fraction, "chunk_mb": chunk_mb}
    if _up_to_date(target, sources, options, overwrite):
        console.print(f"{target} is up to date")
        return target
    documents = functools.partial(_documents, inputs, corpus, field)
    with _in_place_when_done(target) as part:
        manifest = _build(part, documents, sources, options, tokenizer, workers)
    for name, split in manifest["splits"].items():
        console.print(
            f"{target}/{name}: {split['documents']:,} documents, {split['bytes']:,} bytes, {split['tokens']:,} tokens"
        )
    return target


@contextlib.contextmanager
def _in_place_when_done(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill, which takes its place at the end; what a killed run left there is removed."""
    part, old = (target.with_name(target.name + suffix) for suffix in (".part", ".old"))
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
    except OSError as error:  # a full disk, a folder that one may not write to
        raise UserError(f"{error.filename or target}: {error.strerror or error}") from error
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _build(
    part: Path,
    documents: Callable[..., Iterator[tuple[int, str]]],
    sources: list[dict[str, Any]],
    options: dict[str, Any],
    tokenizer: str,
    workers: int,
) -> dict[str, Any]:
    """Fill `part`: tokenizer, chunks, and the manifest last."""
    with tempfile.TemporaryDirectory(dir=part) as scratch:  # in there, so that the next run removes a killed one's too
        splits = _split(documents, sources, options["val_fraction"], Path(scratch))
        model = make_tokenizer(tokenizer, (text for shard in splits["train"]["shards"] for text in texts(shard)))
        model.save(part / "tokenizer")
        dtype = "uint16" if model.vocab_size <= 1 << 16 else "int32"
        ends = splits["train"]["shards"][-4:], splits["val"]["shards"][:1]  # megabytes, enough for the levels
        train, val = ("".join(text for shard in end for text in texts(shard)).encode() for end in ends)
        splits["val"]["reference_bits_per_byte"] = reference_levels(train, val)
        for name, split in splits.items():
            split["chunks"] = write_chunks(part / name, split.pop("shards"), model, dtype, workers, options["chunk_mb"])
            split["tokens"] = sum(chunk["tokens"] for chunk in split["chunks"])
    counts = {name: token_counts(part / name, dtype, model.vocab_size) for name in splits}
    splits["val"]["unigram_nll"] = unigram_nll(counts["train"], counts["val"])
    manifest = {
        "format": FORMAT,
        "tokenizer": {
            "kind": tokenizer.partition(":")[0] if tokenizer.startswith(("byte", "bpe:")) else "file",
            "digest": model.digest,
            "vocab_size": model.vocab_size,
            "mask_id": model.mask_id,
            "eos_id": model.eos_id,
        },
        "dtype": dtype,
        "inputs": sources,
        "options": options,
        "versions": {
            "python": platform.python_version(),
            "lit_llada": __version__,
            **{p: version(p) for p in ("litdata", "numpy", "tokenizers", "torch")},
        },
        "splits": splits,
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def check_prepared(path: str) -> None:
    """Hold the index, every chunk, the counts and the tokenizer of a prepared folder against its manifest.

    Raises:
        UserError: names the first file that is missing, truncated or altered.
    """
    if not Path(path, "manifest.json").is_file():
        raise UserError(f"{path} has no manifest.json; make it with `lit-llada prepare text ... --out {path}`")
    folder = DataFolder.open(path)
    folder.check_chunks(verify=True)
    for name, split in folder.manifest["splits"].items():
        if sum(chunk["tokens"] for chunk in split["chunks"]) != split["tokens"]:
            raise UserError(f"{path}/manifest.json: the tokens of the {name} chunks do not add up; prepare it again")


def make_tokenizer(name: str, texts: Iterator[str]) -> Tokenizer:
    """``byte``, ``bpe:SIZE`` learnt from ``texts``, or a file.

    Raises:
        UserError: an unknown name.
    """
    if name == "byte":
        return Tokenizer.byte()
    if name.startswith("bpe:"):
        if not name[4:].isdigit():
            raise UserError(f"tokenizer {name!r}: give the number of tokens, as in bpe:4096")
        return Tokenizer.train_bpe(texts, int(name[4:]))
    return Tokenizer.load(name)


def _tokenizer_key(name: str) -> str:
    """What names the tokenizer in the manifest: a file goes by its contents."""
    path = Path(name)
    return f"file:{Tokenizer.load(path).digest}" if path.exists() else name


def _sources(inputs: list[str], corpus: Corpus, field: str) -> list[dict[str, Any]]:
    """Names and hashes of what the folder is made of."""
    if inputs:
        files = [(file, {"field": field} if kind_of(file) in ROWS else {}) for file in list_files(inputs)]
        return [{"name": str(file), "sha256": file_digest(file), **choice} for file, choice in files]
    digest = hashlib.sha256()
    for name, text in embedded(corpus):
        digest.update(f"{name}\0{text}\0".encode())
    return [{"name": f"standard library of Python {platform.python_version()}: {corpus}", "sha256": digest.hexdigest()}]


def _up_to_date(target: Path, sources: list[dict[str, Any]], options: dict[str, Any], overwrite: bool) -> bool:
    if not target.exists():
        return False
    file = target / "manifest.json"
    if not file.is_file():
        if not any(target.iterdir()):
            return False
        raise UserError(f"{target} exists and is not a prepared folder; give another --out")
    if overwrite:
        return False
    try:
        folder = DataFolder.open(str(target))
        folder.check_chunks()
    except UserError as error:
        raise UserError(f"{error} (with --overwrite true)") from None
    differs = [key for key in options if folder.manifest["options"].get(key) != options[key]]
    made, asked = ([(s["sha256"], s.get("field")) for s in entries] for entries in (folder.manifest["inputs"], sources))
    if made != asked:
        differs.append("field" if [sha for sha, _ in made] == [sha for sha, _ in asked] else "inputs")
    if differs:
        raise UserError(f"{target} was made with other {', '.join(differs)}; give another --out, or --overwrite true")
    return True


def _split(
    documents: Callable[..., Iterator[tuple[int, str]]], sources: list[dict[str, Any]], share: float, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Read every document once, count it, and lay it into shards of its split, in order."""
    splits: dict[str, dict[str, Any]] = {s: {"documents": 0, "bytes": 0, "shards": []} for s in ("train", "val")}
    waiting: dict[str, list[str]] = {"train": [], "val": []}
    size = dict.fromkeys(waiting, 0)

    def flush(name: str) -> None:
        if waiting[name]:
            shard = scratch / f"{name}-{len(splits[name]['shards']):06d}.json"
            shard.write_text(json.dumps(waiting[name]))
            splits[name]["shards"].append(str(shard))
            waiting[name], size[name] = [], 0

    for source in sources:
        source |= {"documents": 0, "bytes": 0}
    bound = _bound(documents(quiet=True), share)
    for number, text in documents():
        sources[number]["documents"] += 1
        sources[number]["bytes"] += len(text.encode())
        for name, piece in _sides(text, bound, share):
            splits[name]["documents"] += 1
            count = len(piece.encode())
            splits[name]["bytes"] += count
            waiting[name].append(piece)
            size[name] += count
            if size[name] >= SHARD:
                flush(name)
    for name in splits:
        flush(name)
    return splits


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _bound(documents: Iterator[tuple[int, str]], share: float) -> int | None:
    """The hash below which a document is held out; None if there is a single document, which has to be cut.

    Stops reading as soon as both splits have a document, which in a large corpus is soon.
    """
    bound, hashes = int(share * 2**64), set()
    for _, text in documents:
        hashes.add(_hash(text))
        if min(hashes) < bound <= max(hashes):
            return bound
    if not hashes:
        raise UserError("the inputs hold no document")
    if len(hashes) == 1:
        return None
    return min(hashes) + 1 if min(hashes) >= bound else max(hashes)


def _sides(text: str, bound: int | None, share: float) -> Iterator[tuple[str, str]]:
    """The split that a document belongs to; of a single document, the last lines are held out."""
    if bound is not None:
        yield "val" if _hash(text) < bound else "train", text
        return
    if len(text) < 2:
        raise UserError("the inputs hold one character; give a text that can be divided into training and validation")
    cut = min(max(1, round(len(text) * (1 - share))), len(text) - 1)
    cut = text.rfind("\n", 0, cut) + 1 or cut
    yield from (("train", text[:cut]), ("val", text[cut:]))


def _documents(inputs: list[str], corpus: Corpus, field: str, quiet: bool = False) -> Iterator[tuple[int, str]]:
    """Documents with the number of their source."""
    if not inputs:
        yield from ((0, text) for _, text in embedded(corpus))
        return
    files = track(list_files(inputs), "reading", console=console, transient=True, disable=quiet)
    for number, file in enumerate(files):
        yield from ((number, text) for text in read_documents(file, field))
