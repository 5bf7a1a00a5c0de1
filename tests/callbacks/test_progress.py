"""Lines of progress come when they are due, on one rank, with figures that a faked clock makes exact."""

from __future__ import annotations

import io
from typing import Any

import lightning as L
import pytest
from rich.console import Console

from lit_llada.callbacks.noise_curve import NoiseCurve
from lit_llada.callbacks.progress import ProgressLines, StepsBar, shows_bars
from lit_llada.errors import UserError

SHOWN = {"enable_progress_bar": True}


class Clock(L.Callback):
    """A training batch takes 8 s, a validation batch 16 s; a training batch has 4 rows of 16 tokens."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += 8

    def on_validation_batch_start(self, *_: Any) -> None:
        self.now += 16


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The parts of each line of progress."""
    out = capsys.readouterr().out
    return [line.split(" | ") for line in out.splitlines() if line.startswith("step ")]


def test_a_line_every_n_steps_and_at_the_last(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    _, trainer = toy.fit([clock, ProgressLines(3, _clock=clock)], max_steps=8, accumulate_grad_batches=2, **SHOWN)
    found = lines(capsys)
    assert [step for step, *_ in found] == ["step 3 of 8", "step 6 of 8", "step 8 of 8"]
    assert [rest[1:] for _, *rest in found] == [["8 tokens/s", f"0:0{left} left"] for left in ("1:20", "0:32", "0:00")]
    assert found[-1][1] == f"loss {float(trainer.callback_metrics['train/loss']):.4g}"


def test_without_a_number_it_goes_by_time(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    toy.fit([clock, ProgressLines(_clock=clock)], max_steps=11, **SHOWN)
    assert [step for step, *_ in lines(capsys)] == [f"step {n} of 11" for n in (1, 5, 9, 11)]


def test_a_validation_ends_with_a_line_and_is_no_training_time(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    options = {"limit_val_batches": 2, "val_check_interval": 3, "max_steps": 5, "num_sanity_val_steps": 1}
    _, trainer = toy.fit([clock, NoiseCurve(), ProgressLines(5, _clock=clock)], **options, **SHOWN)
    bits = f"bits/byte {float(trainer.callback_metrics['val/bits_per_byte']):.4g}"
    validated, last = lines(capsys)
    assert validated == ["step 3 of 5", "validated in 0:00:32", bits]
    assert [last[0], *last[2:]] == ["step 5 of 5", bits, "8 tokens/s", "0:00:00 left"]


def test_figures_are_read_for_a_line_only(
    toy: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading them waits for the device."""
    clock, reads = Clock(), []
    monkeypatch.setattr(L.Trainer, "progress_bar_metrics", property(lambda trainer: reads.append(1) or {}))
    toy.fit([clock, ProgressLines(4, _clock=clock)], max_steps=10, **SHOWN)
    assert len(reads) == len(lines(capsys)) == 3


def test_the_time_left_counts_from_the_start_of_this_process(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, trainer = toy.fit([], max_steps=2)
    trainer.save_checkpoint(toy.folder / "two.ckpt")
    clock = Clock()
    clock.now = 1000.0
    lines_ = ProgressLines(4, _clock=clock)
    toy.fit([clock, lines_], ckpt=toy.folder / "two.ckpt", max_steps=6, **SHOWN)
    assert [(step, left) for step, _, _, left in lines(capsys)] == [
        ("step 4 of 6", "0:00:16 left"),
        ("step 6 of 6", "0:00:00 left"),
    ]


def test_a_run_without_an_end_has_no_time_left(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    toy.fit([clock, ProgressLines(32, _clock=clock)], max_steps=-1, max_epochs=1, **SHOWN)
    found = lines(capsys)
    assert [step for step, *_ in found] == ["step 32", "step 64"]
    assert [len(line) for line in found] == [3, 3]


def two_ranks(rank: int, toy: Any) -> str:
    from contextlib import redirect_stdout

    clock, out = Clock(), io.StringIO()
    with redirect_stdout(out):
        toy.fit([clock, ProgressLines(2, _clock=clock)], devices=2, strategy="ddp", max_steps=2, **SHOWN)
    return out.getvalue()


def test_one_rank_prints_the_tokens_of_all(toy: Any, forked: Any) -> None:
    first, second = forked(two_ranks, 2, toy)
    assert "step 2 of 2 | loss " in first and " | 16 tokens/s | " in first
    assert "step" not in second


def test_lightning_adds_no_bar_of_its_own(toy: Any) -> None:
    trainer = toy.trainer([ProgressLines()], **SHOWN)
    assert [type(bar) for bar in trainer.callbacks if "Progress" in type(bar).__name__] == [ProgressLines]
    assert isinstance(toy.trainer([StepsBar()], **SHOWN).progress_bar_callback, StepsBar)


def test_a_number_of_steps_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"progress.every_n_steps is 0; it must be at least 1"):
        ProgressLines(0)


@pytest.mark.parametrize(
    ("tty", "term", "bars"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_a_bar_needs_a_terminal_that_can_go_back(
    tty: bool, term: str, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: tty, raising=False)
    environment = {"TERM": term, "FORCE_COLOR": "1"}
    assert shows_bars(Console(file=file, _environ=environment)) is bars


def test_a_notebook_shows_bars() -> None:
    assert shows_bars(Console(file=io.StringIO(), force_jupyter=True))
