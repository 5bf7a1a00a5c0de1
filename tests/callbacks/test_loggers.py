"""Numbers go to every logger, texts and pictures to TensorBoard alone, and nothing on other ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lit_llada.callbacks.loggers import log_figure, log_scalars, log_text, writers


def trainer(loggers: list[Any], rank: int = 0) -> Any:
    return SimpleNamespace(loggers=loggers, global_step=7, is_global_zero=rank == 0)


def test_numbers_reach_every_logger_at_the_step(toy: Any) -> None:
    board, table = toy.board(), CSVLogger(str(toy.folder), name="", version="")
    log_scalars(trainer([board, table]), {"a": 1.5})
    table.save()
    board.finalize("success")
    assert [(e.step, e.value) for e in toy.events().Scalars("a")] == [(7, 1.5)]
    assert (toy.folder / "metrics.csv").read_text().splitlines() == ["a,step", "1.5,7"]


def test_texts_and_pictures_reach_tensorboard(toy: Any) -> None:
    board = toy.board()
    run = trainer([board, CSVLogger(str(toy.folder), name="", version="")])
    log_text(run, "words", "*x*")
    log_figure(run, "picture", Figure())
    board.finalize("success")
    events = toy.events()
    assert events.Tensors("words/text_summary")[0].step == events.Images("picture")[0].step == 7
    assert len(writers(run)) == 1


def test_other_ranks_draw_nothing(toy: Any) -> None:
    assert writers(trainer([toy.board()], rank=1)) == [] and writers(trainer([])) == []
