"""Makes prepared folders of text: tokenizer, LitData chunks and a manifest that says what they were made of."""

from __future__ import annotations

import functools
import hashlib
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_llada.data.folder import DataFolder
from lit_llada.data.kinds import KINDS
from lit_llada.errors import UserError
from lit_llada.files import file_digest
from lit_llada.prepare.baselines import baseline_levels
from lit_llada.prepare.chunks import bar, console, token_counts, unigram_nll, write_chunks
from lit_llada.prepare.corpora.stdlib import Corpus, embedded
from lit_llada.prepare.manifest import (
    SHARD,
    in_place_when_done,
    item_type,
    tokenizer_key,
    up_to_date,
    write_manifest,
)
from lit_llada.prepare.reading import ROWS, ending_of, list_files, read_documents
from lit_llada.prepare.shards import Shards, items
from lit_llada.prepare.splits import Bounds, Fractions, Split, find_bounds
from lit_llada.text.tokenizer import Tokenizer


def prepare_text(
    inputs: list[str] = [],  # noqa: B006
    out: str = "data/stdlib",
    corpus: Corpus = "all",
    tokenizer: str = "byte",
    field: str = "text",
    val_fraction: float = 0.05,
    test_fraction: float = 0.0,
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Turn text and code into a folder to train on.

    Documents are split by a hash of their text, so a document never moves; where that leaves a split empty, the
    document whose hash is nearest goes there, and of a single document the end is held out. The same inputs and options
    give the same bytes, whatever the number of workers; a second call does nothing. A chunk is cut after a fixed number
    of tokens, so only the last one is left with less than a row.

    Args:
        inputs: files and folders of .txt .md .py .jsonl .parquet, also .gz .bz2 .xz .zst; none for the embedded corpus.
        out: the folder to make; it appears when everything in it is done.
        corpus: which part of the standard library, when there are no inputs.
        tokenizer: byte, bpe:SIZE (learnt from the inputs), or the path of a tokenizer.json.
        field: field that holds the text in a row of .jsonl or .parquet.
        val_fraction: share of the documents held out for validation.
        test_fraction: share of the documents held out for `lit-llada test`; 0 makes no such split.
        workers: processes that tokenize.
        chunk_mb: size of a chunk; a row never crosses the end of one.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing, empty or malformed, or ``out`` was made of something else or cannot be written.
    """
    fractions = Fractions(val_fraction, test_fraction)
    fractions.check()
    target = Path(out)
    sources = _sources(inputs, corpus, field)
    options = {"tokenizer": tokenizer_key(tokenizer), **fractions.options, "chunk_mb": chunk_mb}
    if up_to_date(target, "text", sources, options, overwrite):
        console.print(f"{target} is up to date")
        return target
    documents = functools.partial(_documents, inputs, corpus, field)
    with in_place_when_done(target) as part:
        splits = _build(part, documents, sources, fractions, options, tokenizer, workers)
    for name, split in splits.items():
        console.print(
            f"{target}/{name}: {split['documents']:,} documents, {split['bytes']:,} bytes, {split['tokens']:,} tokens"
        )
    return target


def _build(
    part: Path,
    documents: Callable[..., Iterator[tuple[int, str]]],
    sources: list[dict[str, Any]],
    fractions: Fractions,
    options: dict[str, Any],
    tokenizer: str,
    workers: int,
) -> dict[Split, Any]:
    """Fill `part`: tokenizer, chunks, and the manifest last."""
    with tempfile.TemporaryDirectory(dir=part) as scratch:  # in there, so that the next run removes a killed one's too
        splits = _split(documents, sources, fractions, Path(scratch))
        vocabulary = make_tokenizer(tokenizer, _texts(splits["train"]["shards"]))
        vocabulary.save(part / "tokenizer")
        dtype = item_type(vocabulary)
        held_out = fractions.splits[1:]
        train_end = _bytes(splits["train"]["shards"][-4:])  # megabytes, enough for the levels
        for name in held_out:
            splits[name]["reference_bits_per_byte"] = baseline_levels(train_end, _bytes(splits[name]["shards"][:1]))
        for name, split in splits.items():
            shards = split.pop("shards")
            split["chunks"] = write_chunks(part / name, shards, vocabulary, dtype, workers, options["chunk_mb"])
            split["tokens"] = sum(chunk["tokens"] for chunk in split["chunks"])
    counts = {name: token_counts(part / name, dtype, vocabulary.vocab_size) for name in splits}
    for name in held_out:
        splits[name]["unigram_nll"] = unigram_nll(counts["train"], counts[name])
    write_manifest(part, "text", vocabulary, tokenizer, sources, options, splits)
    return splits


def _texts(shards: list[str]) -> Iterator[str]:
    return (text for shard in shards for text in items(shard))


def _bytes(shards: list[str]) -> bytes:
    return "".join(_texts(shards)).encode()


def check_prepared(path: str) -> None:
    """Hold the index, every chunk, the counts and the tokenizer of a prepared folder against its manifest.

    Raises:
        UserError: names the first file that is missing, truncated or altered.
    """
    if not Path(path, "manifest.json").is_file():
        raise UserError(f"{path} has no manifest.json; make it with `lit-llada prepare text ... --out {path}`")
    folder = DataFolder.open(path)
    folder.check_chunks(verify=True)
    counted = KINDS[folder.kind].counted
    for name, split in folder.manifest["splits"].items():
        if sum(chunk[counted] for chunk in split["chunks"]) != split[counted]:
            raise UserError(f"{path}/manifest.json: the {counted} of the {name} chunks do not add up; prepare it again")


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


def _sources(inputs: list[str], corpus: Corpus, field: str) -> list[dict[str, Any]]:
    """Names and hashes of what the folder is made of."""
    if inputs:
        files = [(file, {"field": field} if ending_of(file) in ROWS else {}) for file in list_files(inputs)]
        return [{"name": str(file), "sha256": file_digest(file), **choice} for file, choice in files]
    digest = hashlib.sha256()
    for name, text in embedded(corpus):
        digest.update(f"{name}\0{text}\0".encode())
    return [{"name": f"standard library of Python {platform.python_version()}: {corpus}", "sha256": digest.hexdigest()}]


def _split(
    documents: Callable[..., Iterator[tuple[int, str]]],
    sources: list[dict[str, Any]],
    fractions: Fractions,
    scratch: Path,
) -> dict[Split, dict[str, Any]]:
    """Read every document once, count it, and lay it into shards of its split, in order."""
    splits: dict[Split, dict[str, Any]] = {name: {"documents": 0, "bytes": 0} for name in fractions.splits}
    shards = {name: Shards(scratch / name, SHARD) for name in splits}
    for source in sources:
        source |= {"documents": 0, "bytes": 0}
    bounds = find_bounds((text for _, text in documents(quiet=True)), fractions)
    for number, text in documents():
        sources[number]["documents"] += 1
        sources[number]["bytes"] += len(text.encode())
        for name, piece in _pieces(text, bounds, fractions):
            count = len(piece.encode())
            splits[name]["documents"] += 1
            splits[name]["bytes"] += count
            shards[name].add(piece, count)
    for name in splits:
        splits[name]["shards"] = shards[name].close()
    return splits


def _pieces(text: str, bounds: Bounds | None, fractions: Fractions) -> Iterator[tuple[Split, str]]:
    """The split that a document belongs to; of a single document, the last lines are held out."""
    if bounds is not None:
        yield bounds.split_of(text), text
        return
    names = fractions.splits
    if len(text) < len(names):
        count = "one character" if len(text) == 1 else f"{len(text)} characters"
        raise UserError(f"the inputs hold {count}; give a text that can be divided into {', '.join(names)}")
    train, held_out = _cut_lines(text, fractions.val + fractions.test, len(names) - 1)
    yield "train", train
    if not fractions.test:
        yield "val", held_out
        return
    val, test = _cut_lines(held_out, fractions.test / (fractions.val + fractions.test), 1)
    yield from (("val", val), ("test", test))


def _cut_lines(text: str, share: float, least: int) -> tuple[str, str]:
    """A text without its last lines, and these: about a share of it, and so many characters at least."""
    cut = min(max(1, round(len(text) * (1 - share))), len(text) - least)
    cut = text.rfind("\n", 0, cut) + 1 or cut
    return text[:cut], text[cut:]


def _documents(inputs: list[str], corpus: Corpus, field: str, quiet: bool = False) -> Iterator[tuple[int, str]]:
    """Documents with the number of their source."""
    if not inputs:
        yield from ((0, text) for _, text in embedded(corpus))
        return
    files = bar(list_files(inputs), "reading", disable=quiet)
    for number, file in enumerate(files):
        yield from ((number, text) for text in read_documents(file, field))
