"""The order of the training rows: which one stands at position k is a pure function of the seed and k.

Nothing is stored and nothing has to be replayed: any process can compute any place of the order at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_GOLDEN, _LIMIT = 0x9E3779B97F4A7C15, 1 << 64


def _mix(x: Any) -> Any:
    """Finaliser of splitmix64, on uint64 arrays (which wrap around)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Image of `index` (int64, each in [0, size)) under the permutation of [0, size) that `key` names.

    A Feistel network on the next power of four, walked until it lands inside. Not `Generator.permutation`: that
    needs the whole table in every process, and numpy does not promise the same stream in its next version.
    """
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mix(state + np.uint64((word + 1) * _GOLDEN % _LIMIT))
    rounds = [_mix(state + np.uint64(r * _GOLDEN % _LIMIT)) for r in range(1, 7)]
    half = np.uint64(max(3, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    x = index.astype(np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & low
        for salt in rounds:
            left, right = right, left ^ (_mix(right + salt) & low)
        x[outside] = (left << half) | right
        outside = x >= np.uint64(size)
    return x.astype(np.int64)


class Shuffle:
    """The endless order of one folder's rows: pass after pass over all of them, each pass in another order.

    Chunks are permuted, then rows are permuted inside windows of `window` successive chunks (0: one window over all
    chunks, i.e. a full permutation). A small window keeps remote reading near a few chunks. `seed` None: file order.
    """

    def __init__(self, chunk_rows: Sequence[int], seed: int | None, folder: int, window: int = 0) -> None:
        self.chunk_rows = np.asarray(chunk_rows, np.int64)
        self.first_row = np.concatenate([[0], np.cumsum(self.chunk_rows)])  # of each chunk
        self.rows = int(self.first_row[-1])
        self.seed, self.folder, self.window = seed, folder, window or len(self.chunk_rows)
        self._layout: tuple[int, np.ndarray, np.ndarray] = (-1, self.chunk_rows, self.first_row)

    def layout(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Chunks in the order of pass `turn`, and the place in the pass where each begins."""
        assert self.seed is not None
        if self._layout[0] != turn:
            count = len(self.chunk_rows)
            chunks = permute(np.arange(count), count, self.seed, self.folder, turn, 0)
            self._layout = (turn, chunks, np.concatenate([[0], np.cumsum(self.chunk_rows[chunks])]))
        return self._layout[1:]

    def row(self, position: np.ndarray) -> np.ndarray:
        """Rows at the given places (int64) of the endless order."""
        turns, place = np.divmod(position, self.rows)
        if self.seed is None:
            return place
        out = np.empty_like(place)
        for turn in np.unique(turns).tolist():
            chunks, starts = self.layout(turn)
            bounds = np.append(starts[:-1][:: self.window], self.rows)
            windows = np.searchsorted(bounds, place, side="right") - 1
            for window in np.unique(windows[turns == turn]).tolist():
                here = (turns == turn) & (windows == window)
                low, high = int(bounds[window]), int(bounds[window + 1])
                inside = low + permute(place[here] - low, high - low, self.seed, self.folder, turn, 1 + window)
                slot = np.searchsorted(starts, inside, side="right") - 1
                out[here] = self.first_row[chunks[slot]] + inside - starts[slot]
        return out


class GlobalOrder:
    """The endless global order over all folders: position -> (folder, row).

    An epoch has as many positions as there are rows. Folder d holds `quotas[d]` of them, evenly spread: all its rows
    (each exactly once an epoch), or its share by `weights`, in which case it simply goes round more or less often.
    """

    def __init__(
        self,
        chunk_rows: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        seed: int | None = 0,
        window: int | Sequence[int] = 0,
    ) -> None:
        windows = [window] * len(chunk_rows) if isinstance(window, int) else window
        self.folders = [Shuffle(r, seed, d, w) for d, (r, w) in enumerate(zip(chunk_rows, windows, strict=True))]
        rows = [f.rows for f in self.folders]
        self.rows_per_epoch = sum(rows)
        self.quotas = rows if weights is None else _shares(weights, self.rows_per_epoch)

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder and row (int64 arrays) at each global position."""
        epoch, rest = np.divmod(position, self.rows_per_epoch)
        folder, row = np.full_like(position, -1), np.empty_like(position)
        left = self.rows_per_epoch
        for d, quota in enumerate(self.quotas):
            # Bresenham: of the first k places that are left, floor(k * quota / left) belong to folder d.
            before, after = rest * quota // left, (rest + 1) * quota // left
            mine = (folder < 0) & (after > before)
            folder[mine], row[mine] = d, self.folders[d].row(epoch[mine] * quota + before[mine])
            rest, left = rest - before, left - quota
        return folder, row


class AnyOrder(Protocol):
    """An endless sequence of rows."""

    rows_per_epoch: int

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder and row (int64 arrays) at each global position."""


class Buckets:
    """An endless order whose neighbours are of like length, so that little of a batch is padding.

    The rows of each window of `window` places (an epoch's last one is shorter) are sorted by length and cut into
    granules of `granule` rows, which are then shuffled. None of it depends on the batch size or the number of ranks.

    Args:
        order: order whose rows are regrouped.
        lengths: lengths of each folder's rows.
        seed: seed of the granules' order.
        window: places whose rows are sorted together.
        granule: rows that stay together.
    """

    def __init__(
        self, order: GlobalOrder, lengths: Sequence[np.ndarray], seed: int, window: int = 4096, granule: int = 64
    ) -> None:
        self.order, self.lengths, self.seed, self.window, self.granule = order, lengths, seed, window, granule
        self.rows_per_epoch = order.rows_per_epoch
        self._latest: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Folder and row (int64 arrays) at each global position."""
        epochs, places = np.divmod(position, self.rows_per_epoch)
        windows = places // self.window
        folder, row = np.empty_like(position), np.empty_like(position)
        for epoch, window in np.unique(np.stack([epochs, windows]), axis=1).T.tolist():
            here = (epochs == epoch) & (windows == window)
            place = places[here] - window * self.window
            folders, rows = self._regrouped(epoch, window)
            folder[here], row[here] = folders[place], rows[place]
        return folder, row

    def _regrouped(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Folder and row at each place of a window; the last one is kept, for batches ask again and again."""
        if self._latest is None or self._latest[0] != (epoch, window):
            first, stop = window * self.window, min((window + 1) * self.window, self.rows_per_epoch)
            folder, row = self.order.locate(epoch * self.rows_per_epoch + np.arange(first, stop))
            length = np.empty_like(row)
            for d, lengths in enumerate(self.lengths):
                length[folder == d] = lengths[row[folder == d]]
            whole = (stop - first) // self.granule
            granules = permute(np.arange(whole), whole, self.seed, len(self.lengths), epoch, window)
            inside = (granules[:, None] * self.granule + np.arange(self.granule)).ravel()
            sort = np.argsort(length, kind="stable")
            sort = sort[np.append(inside, np.arange(inside.size, stop - first))]  # less than a granule: at the end
            self._latest = ((epoch, window), folder[sort], row[sort])
        return self._latest[1:]


def draw_choice(position: np.ndarray, choices: np.ndarray, seed: int) -> np.ndarray:
    """One of ``choices[i]`` numbers (0, 1, ...) for each global position i; only the seed and the position decide."""
    key = _mix(np.uint64((seed + 1) * _GOLDEN % _LIMIT) + _mix(position.astype(np.uint64)))
    return (key % choices.astype(np.uint64)).astype(np.int64)


def _shares(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the proportions of `weights` that add up to `total` (largest remainders)."""
    exact = np.asarray(weights, np.float64) * (total / sum(weights))
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]] += 1
    return [int(s) for s in shares]
