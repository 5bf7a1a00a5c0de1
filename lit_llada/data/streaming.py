"""Reads rows from chunks, gives each rank its own, and goes on exactly where a run stopped.

The training data are one never-ending sequence of rows, the same for any number of ranks and workers. Which row
stands at position k is a pure function of the seed and k, computed on the fly: nothing is stored, nothing is replayed,
and one integer, the position, is the whole state. An epoch ends inside a batch if it must; no tail is dropped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_llada.data.batch import Batch, collate
from lit_llada.data.order import AnyOrder
from lit_llada.errors import UserError


class Rows:
    """Random access to the items of one folder of LitData chunks, local or remote.

    Opened at the first read and once per process: a reader with its memory maps and its download thread must not
    be carried through a fork.
    """

    def __init__(self, location: str, files: Sequence[str], chunk_rows: Sequence[int], cache_dir: str | None) -> None:
        self.location, self.files, self.cache_dir = location, list(files), cache_dir
        self.chunk_rows = list(chunk_rows)
        self._stream: Any = None
        self._process = -1

    def __len__(self) -> int:
        return sum(self.chunk_rows)

    def __getitem__(self, row: int) -> Any:
        if self._process != os.getpid():
            self._open()
        try:
            return self._stream[row]
        except KeyError:  # LitData's own thread dropped a chunk that its reader was closing: a new one begins afresh
            self._open()
            return self._stream[row]

    def item_loader(self) -> Any:
        """LitData's reader of one item."""
        raise NotImplementedError

    def _open(self) -> None:
        os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # otherwise each start asks the package index
        from litdata import StreamingDataset

        self._stream = StreamingDataset(self.location, item_loader=self.item_loader(), cache_dir=self.cache_dir)
        self._process = os.getpid()
        if list(self._stream.subsampled_files) != self.files:
            raise UserError(f"the cached index of {self.location} is not the one there now: empty the cache folder")

    def close(self) -> None:
        """Drop the reader, and with it its memory maps and its download thread."""
        self._stream, self._process = None, -1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None, "_process": -1}


class TokenRows(Rows):
    """Rows of `length` tokens; `tokens` says how many each chunk has."""

    def __init__(self, location: str, files: Sequence[str], tokens: Sequence[int], length: int, cache_dir: str | None):
        super().__init__(location, files, [count // length for count in tokens], cache_dir)
        self.length = length

    def __getitem__(self, row: int) -> Tensor:
        return super().__getitem__(row).long()

    def item_loader(self) -> Any:
        from litdata.streaming.item_loader import TokensLoader

        return TokensLoader(block_size=self.length)


class RecordRows(Rows):
    """Records of any length: the ids of a conversation and where its answers are (of a pair: twice that)."""

    def __getitem__(self, row: int) -> list[Tensor]:
        return super().__getitem__(row)

    def item_loader(self) -> Any:
        from litdata.streaming.item_loader import PyTreeLoader

        return PyTreeLoader(batch_decode=0)  # the one record that was asked for, not its neighbours


class Batches(Dataset):
    """Keys [B] -> a batch: what stands at these places of `order`. Keys from `limit` on only fill a batch up."""

    order: AnyOrder
    limit = sys.maxsize

    def __getitem__(self, keys: np.ndarray) -> Any:
        raise NotImplementedError


class TextBatches(Batches):
    """Keys [B] -> Batch."""

    def __init__(self, sources: Sequence[TokenRows], order: AnyOrder, eos_id: int) -> None:
        self.sources, self.order, self.eos_id = sources, order, eos_id

    def __getitem__(self, keys: np.ndarray) -> Batch:
        folder, row = self.order.locate(keys)
        tokens = [self.sources[f][r] for f, r in zip(folder.tolist(), row.tolist(), strict=True)]
        return collate(torch.from_numpy(keys), torch.stack(tokens), self.eos_id, torch.from_numpy(keys < self.limit))


def _as_is(batch: Any) -> Any:
    return batch


def _load(batches: Batches, keys: Iterator[np.ndarray], num_workers: int) -> DataLoader:
    return DataLoader(
        batches,
        batch_size=None,  # an "index" is then handed on as it is: the keys of a whole batch
        sampler=cast(Any, keys),
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # reading must not move the global generator
    )


class TrainingLoader:
    """Rank `rank` of `world` reads rows [rank*b, (rank+1)*b) of every global batch of world*b rows.

    The stream has no end: `len` is what this run takes of it (`batches`), and a new iterator goes on where the last one
    stood. Lightning saves and restores the loader through `state_dict`. The state is valid for any number of ranks,
    batch size and number of workers; rows are counted when a batch is handed out, whatever workers have read ahead.
    `identity` is what gives the position its meaning; a state with another one is refused.
    """

    def __init__(
        self,
        dataset: Batches,
        batch_size: int,
        batches: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        num_workers: int = 0,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size, self.batches, self.rank, self.world = batch_size, batches, rank, world
        self.accumulate, self.num_workers, self.identity = accumulate, num_workers, identity or {}
        self.origin = self.position = 0  # rows of the global order used before this run, and by now

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        size, step = self.batch_size, self.batch_size * self.world
        starts = range(self.position + self.rank * size, sys.maxsize, step)
        for batch in _load(self.dataset, (np.arange(s, s + size) for s in starts), self.num_workers):
            self.position += step
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Rows used up to the last whole optimizer step: gradients of a part of one are in no checkpoint."""
        step = self.batch_size * self.world * self.accumulate
        consumed = self.origin + (self.position - self.origin) // step * step
        return {"consumed": consumed, "epoch": consumed // self.dataset.order.rows_per_epoch, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; UserError if it was counted in another order than this run's."""
        for name, mine in self.identity.items():
            if state.get(name) != mine:
                raise UserError(
                    f"cannot continue at the checkpoint's place in the data: {name} was {state.get(name)} and is now"
                    f" {mine}; set it back, or start a new run from the weights alone"
                )
        self.origin = self.position = int(state["consumed"])


class ValidationLoader:
    """`limit` rows spread evenly over the split, always the same, each read by exactly one rank.

    All ranks make equally many batches of equal sizes (a sharded model would wait for ever otherwise). The last
    global batch is shared out evenly; at most world - 1 rows fill it up, with nothing maskable and keys of their own.
    """

    def __init__(
        self,
        dataset: Batches,
        batch_size: int,
        limit: int | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> None:
        rows = dataset.limit = dataset.order.rows_per_epoch
        count = min(limit or rows, rows)
        whole, tail = divmod(count, batch_size * world)
        sizes = [batch_size] * whole + ([-(-tail // world)] if tail else [])
        padded = sum(sizes) * world
        keys = np.concatenate([np.arange(count) * rows // count, rows + np.arange(padded - count)])
        ends = np.cumsum(sizes) * world
        self.keys = [
            keys[e - (world - rank) * s : e - (world - rank - 1) * s] for s, e in zip(sizes, ends, strict=True)
        ]
        self.dataset, self.num_workers = dataset, num_workers

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Any]:
        yield from _load(self.dataset, iter(self.keys), self.num_workers)
