"""Shared by all tests: one thread each (two processes share the cores), a small prepared folder, and forked ranks."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["tests.shared.answers", "tests.shared.published", "tests.shared.taught"]

# The same examples every time; a slow machine is no failure.
settings.register_profile("fixed", deadline=None, derandomize=True, database=None)
settings.load_profile("fixed")

Forked = Callable[..., list[Any]]
PATIENCE = 300  # seconds until forked ranks count as hanging; a busy machine may take a while


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # what an earlier test's `seed_everything` left
    torch.set_num_threads(1)
    torch.manual_seed(1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: 60 short documents, bytes as tokens."""
    from lit_llada.prepare.documents import prepare_text

    source = tmp_path_factory.mktemp("source")
    for i in range(60):
        (source / f"{i:02d}.txt").write_text("".join(f"document {i} says {i * j % 17}.\n" for j in range(20 + i % 7)))
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare_text([str(source)], out=str(out), val_fraction=0.2, workers=1)
    return out


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint with random weights and 258 tokens; copy it before something is written beside it."""
    from lit_llada.backbone.config import BackboneConfig
    from lit_llada.backbone.transformer import Backbone
    from lit_llada.checkpoint.own import write_run
    from lit_llada.checkpoint.source import read_files
    from lit_llada.text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("run")
    Tokenizer.byte().save(folder)
    torch.manual_seed(3)
    net = Backbone(BackboneConfig(vocab_size=258, d_model=32, n_layers=2, n_heads=2, ff_dim=64))
    write_run(net, 257, read_files(folder), folder / "tiny.ckpt")
    return folder / "tiny.ckpt"


@pytest.fixture
def checkpoint(run_file: Path) -> Any:
    """The same, loaded."""
    from lit_llada.checkpoint.load import load_checkpoint

    return load_checkpoint(run_file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first: torch refuses a backward pass in the child of a process that has made one."""
    items.sort(key=lambda item: "forked" not in getattr(item, "fixturenames", ()))


@pytest.fixture
def forked() -> Forked:
    """``forked(fn, world, *args)``: run ``fn(rank, *args)`` in forked processes as torchrun would; their results.

    The test itself trains nothing before it forks (``forked(fn, 1)`` does it in a child).
    """
    return run_forked


@pytest.fixture
def killed() -> Callable[..., None]:
    """``killed(fn, world, *args)``: the same for ranks that end themselves by SIGKILL, every one of them."""
    return run_killed


def run_forked(fn: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    processes, queue = start_ranks(fn, world, args)
    results = {}
    try:
        for _ in processes:
            rank, ok, value = queue.get(timeout=PATIENCE)
            assert ok, f"rank {rank} failed:\n{value}"
            results[rank] = value
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [results[rank] for rank in range(world)]


def run_killed(fn: Callable[..., Any], world: int, *args: Any) -> None:
    processes, _ = start_ranks(fn, world, args)
    for process in processes:
        process.join(PATIENCE)
    ends = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert ends == [-signal.SIGKILL] * world


def start_ranks(fn: Callable[..., Any], world: int, args: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """The running processes, and the queue that their results come from."""
    context = torch.multiprocessing.get_context("fork")
    queue, port = context.Queue(), _free_port()
    processes = [context.Process(target=_rank, args=(r, world, port, fn, args, queue)) for r in range(world)]
    for process in processes:
        process.start()
    return processes, queue


def _rank(rank: int, world: int, port: int, fn: Callable[..., Any], args: tuple[Any, ...], queue: Any) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
        WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), TORCHELASTIC_RUN_ID="forked",
        TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        result = (rank, True, fn(rank, *args))
    except BaseException:
        result = (rank, False, traceback.format_exc())
    queue.put(result)
    queue.close()
    queue.join_thread()
    # gloo's threads sometimes abort in an orderly exit, after everything has passed.
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(autouse=True)
def _interrupts_stay_interrupts() -> Iterator[None]:
    """LitData's `optimize`, which some tests write chunks with, leaves a SIGINT handler that exits with status 0."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
