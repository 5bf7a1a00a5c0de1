"""Baselines without a net: levels in bits per byte to read a bound on held-out text against."""

from __future__ import annotations

import lzma

import numpy as np

ORDER = 5
TRAIN_BYTES, VAL_BYTES = 3_000_000, 200_000  # enough for levels, seconds to compute


def baseline_levels(train: bytes, val: bytes) -> dict[str, float]:
    """Bits per byte of ``val``: byte frequencies, an interpolated byte 5-gram (Witten-Bell), and ``xz -9`` on both.

    The two models are fitted to the end of ``train`` and tested on the beginning of ``val``. A diffusion model's number
    is an upper bound, so it is fairly read against all of them. xz sees the whole text; repeats in it flatter it.
    """
    train, val = train[-TRAIN_BYTES:], val[:VAL_BYTES]
    text = train + val
    return {
        "order_0": _witten_bell(train, val, 1),
        f"ngram_{ORDER}": _witten_bell(train, val, ORDER),
        "xz": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }


def _witten_bell(train: bytes, val: bytes, order: int) -> float:
    """``p_n(w | h) = (c(h w) + T(h) p_{n-1}(w | h')) / (c(h) + T(h))``, T the number of distinct bytes seen after h.

    h' is h without its first byte; p_0 is uniform over the 256 bytes.
    """
    order = min(order, len(train), len(val))
    p = np.full(len(val) - order + 1, 1 / 256)
    for n in range(1, order + 1):
        seen, count = np.unique(_grams(train, n), return_counts=True)
        history, first = np.unique(seen // 256, return_index=True)
        total, kinds = np.add.reduceat(count, first), np.diff(np.append(first, len(seen)))
        wanted = _grams(val, n)[order - n :]
        c = _look_up(seen, count, wanted)
        c_history, t_history = (_look_up(history, of, wanted // 256) for of in (total, kinds))
        known = c_history > 0
        p = np.where(known, (c + t_history * p) / np.where(known, c_history + t_history, 1), p)
    return float(-np.log2(p).mean())


def _grams(text: bytes, n: int) -> np.ndarray:
    """Every run of n bytes as one number, the last byte lowest."""
    data = np.frombuffer(text, np.uint8).astype(np.int64)
    length = max(len(data) - n + 1, 0)
    return sum((data[i : i + length] << 8 * (n - 1 - i) for i in range(n)), np.zeros(length, np.int64))


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """``values`` at ``wanted`` keys, 0 where there is none; ``keys`` are sorted."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
