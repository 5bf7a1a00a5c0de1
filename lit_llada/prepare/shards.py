"""Tokenizes in several processes, shard by shard and in order: their number changes nothing in the result."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Shards:
    """Items that wait to be tokenized: JSON lists in files of about `size` bytes of text each, for a worker to take.

    Args:
        prefix: beginning of the files' names, folder included.
        size: bytes of text from which a shard is full.
    """

    def __init__(self, prefix: Path, size: int) -> None:
        self.prefix, self.size, self.files = prefix, size, list[str]()
        self._waiting: list[Any] = []
        self._bytes = 0

    def add(self, item: Any, count: int) -> None:
        """One more item, of `count` bytes."""
        self._waiting.append(item)
        self._bytes += count
        if self._bytes >= self.size:
            self.close()

    def close(self) -> list[str]:
        """The names of all shards, the last one written."""
        if self._waiting:
            file = self.prefix.with_name(f"{self.prefix.name}-{len(self.files):06d}.json")
            file.write_text(json.dumps(self._waiting))
            self.files.append(str(file))
            self._waiting, self._bytes = [], 0
        return self.files


def items(shard: str) -> list[Any]:
    """The items of a shard, as :meth:`Shards.add` was given them."""
    return json.loads(Path(shard).read_text())


def encode_in_order(shards: list[str], encode: Callable[[str], T], workers: int) -> Iterator[T]:
    """``encode(shard)`` for every shard, in their order, computed by `workers` processes."""
    workers = min(workers, len(shards))
    if workers < 2:
        yield from map(encode, shards)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (encode,)) as pool:
        for first in range(0, len(shards), 8 * workers):  # not all at once: results wait in memory
            yield from pool.map(_encode_in_worker, shards[first : first + 8 * workers])


_of_worker: dict[str, Callable[[str], Any]] = {}  # a large vocabulary is handed over once a worker, not once a shard


def _encode_in_worker(shard: str) -> Any:
    return _of_worker["encode"](shard)


def _start_worker(encode: Callable[[str], Any]) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer's threads do not survive a fork
    _of_worker["encode"] = encode
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # a killed parent cannot tell its workers
