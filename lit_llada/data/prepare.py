"""Files -> tokenizer, LitData chunks and a manifest that says what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lit_llada.data.corpora import Corpus, embedded
from lit_llada.data.reading import file_digest, list_files, read_documents
from lit_llada.data.reference import reference_levels
from lit_llada.data.tokenizer import Tokenizer
from lit_llada.errors import UserError

FORMAT = 1
SHARD = 1 << 20  # bytes of text that a worker takes at a time
_console = Console(stderr=True)


def prepare_text(
    inputs: list[str] = [],  # noqa: B006
    out: str = "data/stdlib",
    corpus: Corpus = "all",
    tokenizer: str = "byte",
    field: str = "text",
    val_fraction: float = 0.05,
    workers: int = 2,
    chunk_mb: int = 64,
    overwrite: bool = False,
) -> Path:
    """Turn text and code into a folder to train on.

    Documents are split into training and validation by a hash of their text, so a document never moves. The same
    inputs, options and number of workers give the same bytes; a second call with them does nothing.

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
        UserError: an input is missing, empty or malformed, or ``out`` was made of something else.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    target = Path(out)
    sources = _sources(inputs, corpus, field)
    options = {"tokenizer": _tokenizer_key(tokenizer), "val_fraction": val_fraction, "chunk_mb": chunk_mb}
    if _up_to_date(target, sources, options, overwrite):
        _console.print(f"{target} is up to date")
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        splits = _split(sources, inputs, corpus, field, val_fraction, Path(scratch))
        model = make_tokenizer(tokenizer, (text for shard in splits["train"]["shards"] for text in _texts(shard)))
        model.save(part / "tokenizer")
        dtype = "uint16" if model.vocab_size <= 1 << 16 else "int32"
        ends = splits["train"]["shards"][-4:], splits["val"]["shards"][:1]  # megabytes, enough for the levels
        train, val = ("".join(text for shard in end for text in _texts(shard)).encode() for end in ends)
        splits["val"]["reference_bits_per_byte"] = reference_levels(train, val)
        for name, split in splits.items():
            _write_chunks(part / name, split.pop("shards"), model, dtype, workers, chunk_mb, Path(scratch))
            split["chunks"] = _chunks(part / name)
            split["tokens"] = sum(chunk["tokens"] for chunk in split["chunks"])
    counts = {name: _token_counts(part / name, dtype, model.vocab_size) for name in splits}
    splits["val"]["unigram_nll"] = _unigram_nll(counts["train"], counts["val"])
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
            **{p: version(p) for p in ("litdata", "tokenizers", "torch")},
        },
        "splits": splits,
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    for name, split in splits.items():
        _console.print(
            f"{target}/{name}: {split['documents']:,} documents, {split['bytes']:,} bytes, {split['tokens']:,} tokens"
        )
    return target


def check_prepared(path: str) -> None:
    """Hold every chunk and the tokenizer of a prepared folder against its manifest.

    Raises:
        UserError: names the first file that is missing, truncated or altered.
    """
    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder} has no manifest.json; make it with `lit-llada prepare text ... --out {folder}`")
    manifest = json.loads((folder / "manifest.json").read_text())
    if Tokenizer.load(folder / "tokenizer").digest != manifest["tokenizer"]["digest"]:
        raise UserError(f"{folder}/tokenizer is not the one of the manifest; prepare the folder again")
    chunks = [(name, chunk) for name, split in manifest["splits"].items() for chunk in split["chunks"]]
    for name, chunk in track(chunks, "checking", console=_console, transient=True):
        file = folder / name / chunk["file"]
        if not file.is_file():
            raise UserError(f"chunk {file} is missing; prepare the folder again")
        if file.stat().st_size != chunk["bytes"]:
            raise UserError(
                f"chunk {file} has {file.stat().st_size} bytes, not {chunk['bytes']}; prepare the folder again"
            )
        if file_digest(file) != chunk["sha256"]:
            raise UserError(f"chunk {file} is corrupt (its sha256 is not the manifest's); prepare the folder again")


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
        return [{"name": str(file), "sha256": file_digest(file), "field": field} for file in list_files(inputs)]
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
    manifest = json.loads(file.read_text())
    differs = [key for key in options if manifest["options"].get(key) != options[key]]
    if [s["sha256"] for s in manifest["inputs"]] != [s["sha256"] for s in sources]:
        differs.append("inputs")
    if differs and not overwrite:
        raise UserError(f"{target} was made with other {', '.join(differs)}; give another --out, or --overwrite true")
    return not differs


def _split(
    sources: list[dict[str, Any]], inputs: list[str], corpus: Corpus, field: str, share: float, scratch: Path
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

    for number, text in _documents(inputs, corpus, field):
        source = sources[number]
        count = len(text.encode())
        source["documents"], source["bytes"] = source.get("documents", 0) + 1, source.get("bytes", 0) + count
        held_out = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
        name = "val" if held_out else "train"
        splits[name]["documents"] += 1
        splits[name]["bytes"] += count
        waiting[name].append(text)
        size[name] += count
        if size[name] >= SHARD:
            flush(name)
    for name, split in splits.items():
        flush(name)
        if not split["documents"]:
            few = f"the {name} split is empty: give more documents or another --val_fraction"
            raise UserError(few if sum(s["documents"] for s in splits.values()) else "the inputs hold no document")
    return splits


def _documents(inputs: list[str], corpus: Corpus, field: str) -> Iterator[tuple[int, str]]:
    """Documents with the number of their source."""
    if not inputs:
        yield from ((0, text) for _, text in track(list(embedded(corpus)), "reading", console=_console, transient=True))
        return
    for number, file in enumerate(track(list_files(inputs), "reading", console=_console, transient=True)):
        yield from ((number, text) for text in read_documents(file, field))


def _texts(shard: str) -> list[str]:
    return json.loads(Path(shard).read_text())


class _Encode:
    """A shard of documents -> one tensor of ids a document, each ending with EOS. Pickled into the workers."""

    def __init__(self, model: Tokenizer, dtype: str) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, shard: str) -> Iterator[torch.Tensor]:
        for ids in self.model.encode_batch(_texts(shard)):
            yield torch.tensor([*ids, self.model.eos_id], dtype=getattr(torch, self.dtype))


def _write_chunks(
    folder: Path, shards: list[str], model: Tokenizer, dtype: str, workers: int, chunk_mb: int, scratch: Path
) -> None:
    with _litdata_environment(scratch / f"cache-{folder.name}"):
        from litdata import TokensLoader, optimize

        optimize(
            _Encode(model, dtype),
            inputs=shards,
            output_dir=str(folder),
            chunk_bytes=f"{chunk_mb}MB",
            item_loader=TokensLoader(),
            num_workers=min(workers, len(shards)),
            reorder_files=False,
            keep_data_ordered=True,  # otherwise chunks depend on which worker was faster
            start_method="fork",  # the default, spawn, also becomes the whole process's default
            verbose=False,
        )


@contextlib.contextmanager
def _litdata_environment(cache: Path) -> Iterator[None]:
    """LitData's scratch folders are shared by all its jobs and wiped by each; give this job its own."""
    ours = {
        "DATA_OPTIMIZER_CACHE_FOLDER": str(cache / "chunks"),
        "DATA_OPTIMIZER_DATA_CACHE_FOLDER": str(cache / "data"),
        "LITDATA_DISABLE_VERSION_CHECK": "1",  # otherwise every import asks the package index
        "TOKENIZERS_PARALLELISM": "false",  # threads of the tokenizer do not survive the fork
    }
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update(ours)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)  # LitData leaves a handler that ends the process without a word
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _chunks(folder: Path) -> list[dict[str, Any]]:
    chunks = json.loads((folder / "index.json").read_text())["chunks"]
    return [
        {
            "file": chunk["filename"],
            "sha256": file_digest(folder / chunk["filename"]),
            "bytes": (folder / chunk["filename"]).stat().st_size,
            "tokens": chunk["dim"],
        }
        for chunk in chunks
    ]


def _token_counts(folder: Path, dtype: str, vocab_size: int) -> np.ndarray:
    """How often each id stands in the chunks of a split."""
    counts = np.zeros(vocab_size, np.int64)
    for chunk in json.loads((folder / "index.json").read_text())["chunks"]:
        offset = 4 * (chunk["chunk_size"] + 2)  # LitData's header: the number of documents and where each begins
        tokens = np.memmap(folder / chunk["filename"], dtype, "r", offset, shape=(chunk["dim"],))
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def _unigram_nll(train: np.ndarray, val: np.ndarray) -> float:
    """Nats per validation token of the training split's frequencies, each id counted once more."""
    nll = -np.log((train + 1) / (train + 1).sum())
    return float((val * nll).sum() / val.sum())
