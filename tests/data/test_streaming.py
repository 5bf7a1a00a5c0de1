"""The order of rows, and that stopping, resuming and regrouping never lose or repeat one."""

from __future__ import annotations

import gc
import json
import multiprocessing
import pickle
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from litdata.streaming import TokensLoader

from lit_llada.data.order import GlobalOrder, permute
from lit_llada.data.streaming import TextBatches, TokenRows, TrainingLoader, ValidationLoader
from lit_llada.errors import UserError
from lit_llada.prepare.chunks import write_items

IDENTITY = {"seed": 3, "length": 2, "data": ["abc"]}
EOS = 10**6


class Numbered:
    """A source whose row r holds the tokens [folder, r]."""

    def __init__(self, folder: int) -> None:
        self.folder = folder

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.tensor([self.folder, row])


def training(order: GlobalOrder, batch_size: int = 4, **options) -> TrainingLoader:
    sources = [Numbered(d) for d in range(len(order.folders))]
    return TrainingLoader(TextBatches(sources, order, EOS), batch_size, 100, identity=IDENTITY, **options)


def read(loaders: list, batches: int) -> list[tuple[int, int, int]]:
    """(key, folder, row) of the next global batches: the ranks' shares one after the other."""
    shares = [list(islice(loader, batches)) for loader in loaders]
    return [
        (int(k), *t.tolist())
        for step in zip(*shares, strict=True)
        for b in step
        for k, t in zip(b.keys, b.tokens, strict=True)
    ]


@given(st.integers(1, 700), st.lists(st.integers(0, 2**40), max_size=4))
@settings(max_examples=60)
def test_permute_is_a_permutation(size: int, key: list[int]) -> None:
    image = permute(np.arange(size), size, *key)
    assert sorted(image.tolist()) == list(range(size))
    some = np.arange(size)[::3]
    assert permute(some, size, *key).tolist() == image[::3].tolist()  # whatever else is asked for


def test_permute_is_pinned_and_looks_random() -> None:
    # A saved position means other rows if this ever changes.
    assert permute(np.arange(8), 100, 1, 0, 0).tolist() == [49, 57, 35, 8, 69, 43, 0, 77]
    places, size, draws = np.arange(20), 20, 4000
    images = np.stack([permute(places, size, seed) for seed in range(draws)])
    for place in (0, 7, 19):
        counts = np.bincount(images[:, place], minlength=size)
        chi2 = ((counts - draws / size) ** 2 / (draws / size)).sum()
        assert chi2 < 43.8  # 99.9 % quantile with 19 degrees of freedom
    steps = np.diff(permute(np.arange(2000), 2000, 5))
    assert (np.abs(steps) == 1).mean() < 0.01


@pytest.mark.parametrize("window", [0, 1, 3])
def test_every_row_once_an_epoch_and_each_epoch_another_order(window: int) -> None:
    order = GlobalOrder([[7, 3, 0, 5, 11], [4, 2]], None, seed=1, window=window)
    assert order.rows_per_epoch == 32
    epochs = []
    for epoch in range(3):
        folder, row = order.locate(np.arange(32) + 32 * epoch)
        epochs.append(list(zip(folder.tolist(), row.tolist(), strict=True)))
        assert sorted(epochs[-1]) == [(0, r) for r in range(26)] + [(1, r) for r in range(6)]
    assert epochs[0] != epochs[1] != epochs[2]
    other_seed = GlobalOrder([[7, 3, 0, 5, 11], [4, 2]], None, seed=2, window=window)
    assert other_seed.locate(np.arange(32))[1].tolist() != [r for _, r in epochs[0]]


def test_a_window_keeps_reading_near_a_few_chunks() -> None:
    order = GlobalOrder([[10] * 20], None, seed=1, window=2)
    chunks = order.locate(np.arange(200))[1].reshape(10, 20) // 10
    assert all(len(set(window)) == 2 for window in chunks.tolist())
    assert any((np.diff(window) != 0).sum() > 3 for window in chunks)  # rows of the two are mixed
    assert chunks[:, 0].tolist() != sorted(chunks[:, 0].tolist())  # and chunks are shuffled


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_a_weighted_order_gives_quotas_and_uses_rows_evenly(chunk_rows, window, random) -> None:
    weights = [random.uniform(0.5, 2.0) for _ in chunk_rows]
    order = GlobalOrder(chunk_rows, weights, seed=1, window=window)
    n = order.rows_per_epoch
    assert sum(order.quotas) == n
    if not min(order.quotas):
        return
    folder, row = order.locate(np.arange(5 * n))
    for d, quota in enumerate(order.quotas):
        assert all((folder[e * n : (e + 1) * n] == d).sum() == quota for e in range(5))
        uses = Counter(row[folder == d].tolist())
        counts = [uses[r] for r in range(sum(chunk_rows[d]))]
        assert max(counts) - min(counts) <= 1  # a pass is complete before the next one begins


def test_a_60_40_mixture_is_60_40_in_every_stretch() -> None:
    order = GlobalOrder([[50], [50]], [3, 2], seed=1)
    folder, _ = order.locate(np.arange(300))
    assert order.quotas == [60, 40]
    assert all(abs((folder[s : s + 10] == 0).sum() - 6) <= 1 for s in range(290))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("weights", [None, [0.6, 0.4]])
def test_resume_at_any_batch_continues_the_same_sequence(workers: int, weights: list[float] | None) -> None:
    order = GlobalOrder([[7, 6], [5, 5]], weights, seed=3)  # 23 rows an epoch: epochs end inside batches
    whole = read([training(order)], 20)
    assert [key for key, _, _ in whole] == list(range(80))
    for stop in (1, 5, 6, 13):
        first = training(order, num_workers=workers)
        head = read([first], stop)
        second = training(order, num_workers=workers)
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        assert head + read([second], 20 - stop) == whole


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4),
    st.sampled_from([None, [0.6, 0.4]]),
)
@settings(max_examples=50)
def test_ranks_and_batch_size_may_change_at_every_resume(legs, weights) -> None:
    order = GlobalOrder([[7, 6], [5, 5]], weights, seed=3, window=1)
    seen, state = [], None
    for world, batch_size, batches in legs:
        loaders = [training(order, batch_size, rank=r, world=world) for r in range(world)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        seen += read(loaders, batches)
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
    folder, row = order.locate(np.arange(len(seen)))
    assert seen == list(zip(range(len(seen)), folder.tolist(), row.tolist(), strict=True))


def test_two_ranks_see_what_one_rank_accumulates() -> None:
    order = GlobalOrder([[23]], seed=3)
    two = read([training(order, rank=r, world=2) for r in range(2)], 5)
    assert two == read([training(order)], 10)
    assert len({key for key, _, _ in two}) == 40


def test_a_state_between_two_optimizer_steps_goes_back_to_the_last_whole_one() -> None:
    loader = training(GlobalOrder([[23]], seed=3), accumulate=3)
    states = [loader.state_dict()["consumed"] for _ in islice(loader, 7)]
    assert states == [0, 0, 12, 12, 12, 24, 24]
    resumed = training(GlobalOrder([[23]], seed=3), accumulate=2)
    resumed.load_state_dict(loader.state_dict())
    assert [resumed.state_dict()["consumed"] for _ in islice(resumed, 3)] == [24, 32, 32]


def test_a_state_counted_in_another_order_is_refused_by_name() -> None:
    loader = training(GlobalOrder([[23]], seed=3))
    for name, value in {"seed": 4, "length": 8, "data": ["xyz"]}.items():
        with pytest.raises(UserError, match=f"place in the data: {name} was"):
            loader.load_state_dict({**loader.state_dict(), name: value})


def test_reading_leaves_the_global_generator_alone_and_no_process_behind() -> None:
    before = torch.get_rng_state()
    loader = training(GlobalOrder([[23]], seed=3), num_workers=2)
    assert len(read([loader], 3)) == 12
    gc.collect()
    assert torch.equal(before, torch.get_rng_state())
    assert not multiprocessing.active_children()


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 45)))
@settings(max_examples=80)
def test_validation_reads_each_row_once_and_all_ranks_alike(rows: int, batch_size: int, world: int, limit) -> None:
    order = GlobalOrder([[rows], [3]], seed=None)
    sources = [Numbered(0), Numbered(1)]
    texts = TextBatches(sources, order, EOS)
    loaders = [ValidationLoader(texts, batch_size, limit, rank=r, world=world) for r in range(world)]
    shares = [list(loader) for loader in loaders]
    shapes = [[b.tokens.shape[0] for b in share] for share in shares]
    assert all(s == shapes[0] for s in shapes)
    assert max(shapes[0]) <= batch_size
    assert [len(loader) for loader in loaders] == [len(shapes[0])] * world
    batches = [b for share in shares for b in share]
    keys = torch.cat([b.keys for b in batches]).tolist()
    real = torch.cat([b.maskable for b in batches])
    assert len(set(keys)) == len(keys)
    count = min(limit or rows + 3, rows + 3)
    wanted = [i * (rows + 3) // count for i in range(count)]
    assert sorted(k for k, counts in zip(keys, real[:, 0].tolist(), strict=True) if counts) == wanted
    assert len(keys) - count < world
    assert torch.equal(real[:, 0], real[:, 1])
    tokens = torch.cat([b.tokens for b in batches])[real[:, 0]].tolist()
    assert len({tuple(t) for t in tokens}) == count


@pytest.fixture(scope="module")
def chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred documents of 37 tokens; the token at place i of the folder's stream is i."""
    folder = tmp_path_factory.mktemp("chunks")
    (folder / "train").mkdir()
    documents = torch.arange(37 * 200, dtype=torch.int32).to(torch.uint16).split(37)
    write_items(folder / "train", documents, "tokens", chunk_size=1000, item_loader=TokensLoader())
    return folder


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_real_chunks(chunks: Path, tmp_path: Path, remote: bool, workers: int) -> None:
    before = threading.active_count()  # an earlier test may have left one
    index = json.loads((chunks / "train" / "index.json").read_text())["chunks"]
    files, tokens = [c["filename"] for c in index], [c["dim"] for c in index]
    location = f"local:{chunks}/train" if remote else f"{chunks}/train"
    rows = TokenRows(location, files, tokens, 16, str(tmp_path / "cache"))
    starts = [sum(tokens[:c]) + 16 * i for c, t in enumerate(tokens) for i in range(t // 16)]
    assert len(rows) == len(starts) > 400
    order = GlobalOrder([rows.chunk_rows], seed=1, window=2 if remote else 0)
    loader = TrainingLoader(TextBatches([rows], order, EOS), 8, 0, num_workers=workers)
    got = torch.cat([batch.tokens for batch in islice(loader, len(rows) // 8)])
    assert got.dtype == torch.int64
    assert torch.equal(got, got[:, :1] + torch.arange(16))
    assert len(set(got[:, 0].tolist())) == len(got)
    assert set(got[:, 0].tolist()) <= set(starts)
    rows.close()
    gc.collect()
    deadline = time.time() + 60
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_reader_that_lost_a_chunk_is_replaced(chunks: Path) -> None:
    """LitData's prefetch thread and its reader may close one chunk at the same time; rarely, and with a KeyError."""

    class Lost:
        def __getitem__(self, row: int) -> None:
            raise KeyError(5)

    index = json.loads((chunks / "train" / "index.json").read_text())["chunks"]
    rows = TokenRows(f"{chunks}/train", [c["filename"] for c in index], [c["dim"] for c in index], 16, None)
    expected = rows[3]
    rows._stream = Lost()
    assert torch.equal(rows[3], expected)
    rows.close()


def test_a_stale_cache_is_refused(chunks: Path) -> None:
    rows = TokenRows(f"{chunks}/train", ["chunk-9-9.bin"], [1000], 16, None)
    with pytest.raises(UserError, match="empty the cache"):
        rows[0]
