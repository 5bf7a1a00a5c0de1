"""Key/value cache: computes a part of a row with the keys and values of the rest from an earlier forward.

In a bidirectional net that is an approximation as soon as one token has changed since: every key and value depends on
every token. Whoever asks decides how old they may be.

Shapes: B rows, L positions, K key/value heads, h width of a head; b <= B rows of w <= L positions in one forward.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KVCache:
    """Keys (rotated, so that each stands at its own place) and values of every layer, two ``[B, L, K, h]`` each.

    Device and dtype are those of the first forward that fills it. It holds no gradients: use it without them.

    Args:
        rows: number B of rows.
        length: L.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; zeros of the kind of ``like`` ``[b, w, K, h]`` before it was ever filled."""
        if number not in self._layers:
            shape = self.rows, self.length, *like.shape[2:]
            self._layers[number] = like.new_zeros(shape), like.new_zeros(shape)
        return self._layers[number]


class KVView(NamedTuple):
    """Which part of a cache a forward refreshes, and how much of it its queries see.

    Args:
        cache: the whole.
        ids: ``[b]`` int64, the rows of the cache that the rows of this forward are.
        length: queries see the keys 0 .. length - 1 of their row.
        positions: ``[b, w]`` int64, where in its row each token of this forward stands; one may come twice. None for
            a forward of whole rows: it fills the cache and is otherwise as without one.
        layer: set by the net.
    """

    cache: KVCache
    ids: Tensor
    length: int
    positions: Tensor | None = None
    layer: int = 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Leave new keys and values ``[b, w, K, h]`` in the cache; ``[b, length, K, h]`` of both to attend to."""
        keys, values = self.cache.layer(self.layer, k)
        if self.positions is None:
            keys[self.ids, : self.length], values[self.ids, : self.length] = k, v
            return k, v
        at = self.ids[:, None], self.positions
        keys[at], values[at] = k, v
        return keys[self.ids, : self.length], values[self.ids, : self.length]
