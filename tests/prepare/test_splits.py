"""Splits: each text in one, none that is empty, and none that goes from held out to trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.errors import UserError
from lit_llada.files import text_hash
from lit_llada.prepare.splits import Bounds, Fractions, find_bounds

TEXTS = [f"text {n}" for n in range(4000)]
SHARES = st.sampled_from([0.0001, 0.1, 0.3, 0.45])


def test_the_shares_are_those_that_were_asked_for() -> None:
    bounds = Bounds.of(Fractions(0.1, 0.2))
    found = [bounds.split_of(text) for text in TEXTS]
    assert {name: round(found.count(name) / len(TEXTS), 1) for name in ("train", "val", "test")} == {
        "train": 0.7, "val": 0.1, "test": 0.2,
    }  # fmt: skip


def test_without_a_test_the_smallest_hashes_are_validation() -> None:
    bounds = Bounds.of(Fractions(0.3))
    assert bounds == (0, int(0.3 * 2**64))
    assert all(bounds.split_of(text) == ("val" if text_hash(text) < 0.3 * 2**64 else "train") for text in TEXTS)


def test_a_text_that_was_held_out_stays_held_out_when_a_test_is_added() -> None:
    without, added = Bounds.of(Fractions(0.2)), Bounds.of(Fractions(0.2, 0.1))
    moves = {(without.split_of(text), added.split_of(text)) for text in TEXTS}
    assert moves == {("train", "train"), ("train", "val"), ("val", "val"), ("val", "test")}


@given(st.sets(st.text(max_size=3), min_size=3, max_size=12), SHARES, SHARES | st.just(0.0))
def test_no_split_is_empty_however_few_the_texts(texts: set[str], val: float, test: float) -> None:
    fractions = Fractions(val, test)
    bounds = find_bounds(texts, fractions)
    assert bounds is not None
    assert {bounds.split_of(text) for text in texts} == set(fractions.splits)


def test_bounds_that_fill_every_split_are_not_moved_and_reading_stops_there() -> None:
    fractions, read = Fractions(0.3, 0.3), iter(TEXTS)
    assert find_bounds(read, fractions) == Bounds.of(fractions)
    assert len(list(read)) > len(TEXTS) - 100


def test_too_few_texts_are_one_line() -> None:
    assert find_bounds(["a", "a"], Fractions(0.1)) is None
    assert find_bounds(["a", "a"], Fractions(0.1, 0.1)) is None
    with pytest.raises(UserError, match="the inputs hold no record"):
        find_bounds([], Fractions(0.1), "record")
    with pytest.raises(UserError, match="the inputs hold 2 different documents, too few for training, validation and"):
        find_bounds(["a", "b", "a"], Fractions(0.1, 0.1))


@pytest.mark.parametrize(
    ("val", "test", "said"),
    [
        (0.0, 0.0, "val_fraction is 0.0; it must lie between 0 and 1"),
        (1.0, 0.0, "val_fraction is 1.0"),
        (0.5, -0.1, "test_fraction is -0.1; it must be 0 or more"),
        (0.5, 0.5, r"test_fraction is 0.5; it must be .* less than 1 together with val_fraction \(0.5\)"),
    ],
)
def test_what_is_no_share_is_one_line(val: float, test: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Fractions(val, test).check()
