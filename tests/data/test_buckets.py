"""Buckets: each row once an epoch, neighbours of like length, and nothing that depends on how batches are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llada.data.order import Buckets, GlobalOrder, draw_choice

LENGTHS = np.random.default_rng(0).integers(1, 500, 300)


def buckets(window: int = 128, granule: int = 16, seed: int = 1) -> Buckets:
    order = GlobalOrder([[100, 50], [150]], None, seed=seed)
    return Buckets(order, [LENGTHS[:150], LENGTHS[150:]], seed, window, granule)


@given(st.integers(1, 400), st.integers(1, 70))
@settings(max_examples=40)
def test_every_row_once_an_epoch(window: int, granule: int) -> None:
    found = buckets(window, granule)
    for epoch in (0, 3):
        folder, row = found.locate(np.arange(300) + 300 * epoch)
        assert sorted((150 * folder + row).tolist()) == list(range(300))


def test_a_window_is_a_permutation_of_the_same_window_of_the_order() -> None:
    found, order = buckets(), buckets().order
    for start, stop in ((0, 128), (128, 256), (256, 300), (300, 428)):
        mine, theirs = (
            set(zip(*map(np.ndarray.tolist, o.locate(np.arange(start, stop))), strict=True)) for o in (found, order)
        )
        assert mine == theirs


@given(st.lists(st.integers(1, 37), min_size=1, max_size=12))
@settings(max_examples=40)
def test_how_batches_are_cut_changes_nothing(sizes: list[int]) -> None:
    whole = np.stack(buckets().locate(np.arange(700)))
    found, start = buckets(), 0
    for size in sizes:
        assert (np.stack(found.locate(np.arange(start, start + size))) == whole[:, start : start + size]).all()
        start += size
    scattered = np.array([650, 3, 299, 300, 4])
    assert (np.stack(found.locate(scattered)) == whole[:, scattered]).all()


def test_neighbours_are_of_like_length_and_granules_are_shuffled() -> None:
    folder, row = buckets().locate(np.arange(128))
    lengths = LENGTHS[150 * folder + row].reshape(8, 16)
    assert np.ptp(lengths, axis=1).max() < 150 and (np.diff(lengths, axis=1) >= 0).all()
    assert not (np.diff(lengths[:, 0]) > 0).all()
    again = np.stack(buckets().locate(np.arange(300) + 300))
    assert (again != np.stack(buckets().locate(np.arange(300)))).any()


def test_places_are_pinned() -> None:
    # A saved position means other rows if this ever changes.
    assert (150 * buckets().locate(np.arange(6))[0] + buckets().locate(np.arange(6))[1]).tolist() == [
        210,
        145,
        146,
        201,
        38,
        272,
    ]
    assert draw_choice(np.arange(8), np.full(8, 5), 1).tolist() == [0, 0, 1, 2, 1, 0, 2, 0]


@pytest.mark.parametrize("choices", [1, 2, 7])
def test_draws_are_even_and_of_the_place_alone(choices: int) -> None:
    places = np.arange(20_000)
    found = draw_choice(places, np.full(20_000, choices), 3)
    counts = np.bincount(found, minlength=choices)
    assert len(counts) == choices and np.abs(counts / 20_000 - 1 / choices).max() < 0.02
    assert (draw_choice(places[500:600], np.full(100, choices), 3) == found[500:600]).all()
    assert choices == 1 or (draw_choice(places, np.full(20_000, choices), 4) != found).any()
