"""Shards of documents -> LitData chunks of token ids: tokenized in parallel, written in order."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from lit_llada.data.reading import file_digest
from lit_llada.data.tokenizer import Tokenizer

console = Console(stderr=True)


def texts(shard: str) -> list[str]:
    return json.loads(Path(shard).read_text())


def write_chunks(
    folder: Path, shards: list[str], model: Tokenizer, dtype: str, workers: int, chunk_mb: float
) -> list[dict[str, Any]]:
    """Tokenize shards into `folder`, the same whatever the number of workers; what the manifest says of each chunk.

    LitData's writer without its `optimize`, which would give each worker chunks of its own (so their number would
    change the rows), and which puts a signal handler and scratch folders in the way of everybody else.
    """
    from litdata.streaming import Cache, TokensLoader

    size = max(1, int(chunk_mb * 1e6) // np.dtype(dtype).itemsize)
    cache = Cache(str(folder), chunk_size=size, item_loader=TokensLoader())
    ids = _encoded(shards, model, dtype, workers)
    progress = track(ids, f"tokenizing {folder.name}", len(shards), console=console, transient=True)
    for number, chunk in enumerate(_cut(progress, size)):
        cache[number] = torch.from_numpy(chunk)
    cache.done()
    cache.merge()
    index = json.loads((folder / "index.json").read_text())
    chunks = [
        {
            "file": chunk["filename"],
            "sha256": file_digest(folder / chunk["filename"]),
            "bytes": (folder / chunk["filename"]).stat().st_size,
            "tokens": chunk["dim"],
        }
        for chunk in index["chunks"]
    ]
    # LitData names its cache of a remote folder after this: the contents say more than the time of writing.
    index["updated_at"] = hashlib.sha256(json.dumps(chunks).encode()).hexdigest()[:16]
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))
    return chunks


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


def _encoded(shards: list[str], model: Tokenizer, dtype: str, workers: int) -> Iterator[np.ndarray]:
    """The ids of each shard, in order."""
    workers = min(workers, len(shards))
    if workers < 2:
        yield from (encode_shard(shard, model, dtype) for shard in shards)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (model, dtype)) as pool:
        for first in range(0, len(shards), 8 * workers):  # not all at once: results wait in memory
            yield from pool.map(_encode_in_worker, shards[first : first + 8 * workers])


def encode_shard(shard: str, model: Tokenizer, dtype: str) -> np.ndarray:
    """The ids of every document of a shard, each followed by EOS."""
    return np.concatenate([np.array([*ids, model.eos_id], dtype) for ids in model.encode_batch(texts(shard))])


_of_worker: dict[str, Any] = {}  # a large vocabulary is handed over once a worker, not once a shard


def _encode_in_worker(shard: str) -> np.ndarray:
    return encode_shard(shard, **_of_worker)


def _start_worker(model: Tokenizer, dtype: str) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer's threads do not survive a fork
    _of_worker.update(model=model, dtype=dtype)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a killed parent cannot tell its workers


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
