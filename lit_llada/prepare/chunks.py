"""Turns shards into LitData chunks: tokenized in parallel, written in order.

It takes LitData's writer and leaves its `optimize` alone. That gives each worker chunks of its own, so that the number
of workers would change the rows, and it leaves a signal handler and scratch folders behind.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lit_llada.files import file_digest
from lit_llada.prepare.shards import encode_in_order, items
from lit_llada.text.tokenizer import Tokenizer

console = Console(stderr=True)
# No `auto_refresh`, for it gives a bar threads. A bar that an error leaves unfinished is closed by garbage collection,
# which joins the bar's thread. If the collection happens in a thread of another bar, that thread may hold a lock of the
# shared console, which the joined one needs for its last refresh: then both wait for ever.
bar = functools.partial(track, console=console, transient=True, auto_refresh=False)


def write_chunks(
    folder: Path, shards: list[str], tokenizer: Tokenizer, dtype: str, workers: int, chunk_mb: float
) -> list[dict[str, Any]]:
    """Tokenize documents into `folder`, the same for any number of workers; what the manifest says of each chunk."""
    from litdata.streaming import TokensLoader

    size = max(1, int(chunk_mb * 1e6) // np.dtype(dtype).itemsize)
    ids = encode_in_order(shards, functools.partial(encode_shard, tokenizer=tokenizer, dtype=dtype), workers)
    progress = bar(ids, f"tokenizing {folder.name}", len(shards))
    pieces = (torch.from_numpy(chunk) for chunk in _cut(progress, size))
    return write_items(folder, pieces, "tokens", chunk_size=size, item_loader=TokensLoader())


def write_items(folder: Path, pieces: Iterable[Any], counted: str, **options: Any) -> list[dict[str, Any]]:
    """Write `pieces` with LitData's writer; what the manifest says of each chunk.

    Args:
        folder: folder of the split.
        pieces: tensors, or lists of tensors.
        counted: name of what a chunk counts: ``tokens`` or ``records``.
        **options: options of LitData's ``Cache``.
    """
    from litdata.streaming import Cache

    with _without_ranks():
        cache, number = Cache(str(folder), **options), -1
        for number, piece in enumerate(pieces):
            cache[number] = piece
        if number < 0:  # the writer would wait for ever
            return []
        cache.done()
        cache.merge()
    index = json.loads((folder / "index.json").read_text())
    chunks = [
        {**described(folder / chunk["filename"]), counted: chunk["dim"] if counted == "tokens" else chunk["chunk_size"]}
        for chunk in index["chunks"]
    ]
    # LitData names its cache of a remote folder after this: the contents say more than the time of writing.
    index["updated_at"] = hashlib.sha256(json.dumps(chunks).encode()).hexdigest()[:16]
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))
    return chunks


@contextlib.contextmanager
def _without_ranks() -> Iterator[None]:
    """Hide a launcher's variables: LitData's writer would wait for ever for what the other ranks write."""
    names = ("WORLD_SIZE", "GLOBAL_RANK", "NNODES", "DATA_OPTIMIZER_GLOBAL_RANK")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def described(file: Path) -> dict[str, Any]:
    """Name, hash and size of a file, for the manifest."""
    return {"file": file.name, "sha256": file_digest(file), "bytes": file.stat().st_size}


def _cut(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same ids in arrays of `size`, but for the last one, of half to one and a half times that."""
    waiting: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        while count > size * 3 // 2:
            ids = np.concatenate(waiting)
            yield ids[:size]
            waiting, count = [ids[size:]], count - size
    yield np.concatenate(waiting)


def encode_shard(shard: str, tokenizer: Tokenizer, dtype: str) -> np.ndarray:
    """The ids of every document of a shard, each followed by EOS."""
    return np.concatenate([np.array([*ids, tokenizer.eos_id], dtype) for ids in tokenizer.encode_batch(items(shard))])


def token_counts(folder: Path, dtype: str, vocab_size: int) -> np.ndarray:
    """How often each id stands in the chunks of a split."""
    counts = np.zeros(vocab_size, np.int64)
    for chunk in json.loads((folder / "index.json").read_text())["chunks"]:
        offset = 4 * (chunk["chunk_size"] + 2)  # LitData's header: the number of documents and where each begins
        tokens = np.memmap(folder / chunk["filename"], dtype, "r", offset, shape=(chunk["dim"],))
        counts += np.bincount(tokens, minlength=vocab_size)
    return counts


def unigram_nll(train: np.ndarray, val: np.ndarray) -> float:
    """Nats per validation token of the training split's frequencies, each id counted once more."""
    nll = -np.log((train + 1) / (train + 1).sum())
    return float((val * nll).sum() / val.sum())
