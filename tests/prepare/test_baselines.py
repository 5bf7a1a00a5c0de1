"""Reference levels against their definitions, by loops."""

from __future__ import annotations

import lzma
import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.prepare.baselines import _witten_bell, baseline_levels


def by_loops(train: bytes, val: bytes, order: int) -> float:
    """Witten-Bell as it is written in books."""
    followers: dict[bytes, Counter[int]] = defaultdict(Counter)
    for n in range(order):
        for i in range(n, len(train)):
            followers[train[i - n : i]][train[i]] += 1

    def p(history: bytes, byte: int) -> float:
        lower = p(history[1:], byte) if history else 1 / 256
        seen = followers.get(history)
        if not seen:
            return lower
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen))

    bits = [-math.log2(p(val[i - order + 1 : i], val[i])) for i in range(order - 1, len(val))]
    return sum(bits) / len(bits)


@given(st.binary(min_size=6, max_size=60), st.binary(min_size=6, max_size=20), st.integers(1, 5))
def test_witten_bell_equals_loops(train: bytes, val: bytes, order: int) -> None:
    assert _witten_bell(train, val, order) == pytest.approx(by_loops(train, val, order), rel=1e-12)


@given(st.text("ab", min_size=20, max_size=40))
def test_it_is_a_distribution(text: str) -> None:
    history = text.encode()[:4]
    total = sum(2 ** -_witten_bell(text.encode(), history + bytes([b]), 5) for b in range(256))
    assert total == pytest.approx(1.0)


def test_levels_of_a_text_that_repeats_itself() -> None:
    train, val = b"the quick brown fox. " * 200, b"the quick brown fox. " * 20
    levels = baseline_levels(train, val)
    assert levels["ngram_5"] < 0.2 < 3 < levels["order_0"] < 5
    text = train + val
    assert levels["xz"] == 8 * len(lzma.compress(text, preset=9)) / len(text)


def test_a_few_bytes_are_enough() -> None:
    assert all(math.isfinite(level) for level in baseline_levels(b"ab", b"a").values())
