"""The run card says what made the run, stays whole, and remembers earlier starts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_llada.callbacks.provenance import Provenance, git_state


def test_the_card_of_a_run_and_of_its_resumption(toy: Any) -> None:
    _, trainer = toy.fit([Provenance()], logger=toy.board(), max_steps=2)
    trainer.save_checkpoint(toy.folder / "x.ckpt")
    toy.fit([Provenance()], logger=toy.board(), max_steps=3, ckpt=str(toy.folder / "x.ckpt"))
    card = json.loads((toy.folder / "run_card.json").read_text())
    assert card["config"]["model"]["backbone"]["d_model"] == 16 and card["config"]["model"]["lr"] == 1e-2
    assert card["config"]["data"] == {"size": 4} and card["config"]["trainer"]["max_steps"] == 3
    assert len(card["data"][0]["sha256"]) == 64 and card["data"][0]["tokenizer"] == {"digest": "abc"}
    assert card["parameters"] > 1000
    first, second = card["starts"]
    assert (first["step"], first["resumed_from"]) == (0, None)
    assert (second["step"], second["resumed_from"]) == (2, str(toy.folder / "x.ckpt"))
    assert {"python", "torch", "lightning", "litdata", "lit_llada"} <= set(second["versions"])
    assert second["world_size"] == 1 and second["device"].startswith("cpu") and second["command"]
    assert not list(toy.folder.glob("*.tmp"))
    shown = toy.events().Tensors("run_card/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert json.loads(shown.removeprefix("```json\n").removesuffix("\n```")) == card


def test_without_a_logger_and_with_two(toy: Any) -> None:
    toy.fit([Provenance()], default_root_dir=toy.folder / "none", max_steps=1)
    assert (toy.folder / "none" / "run_card.json").is_file()
    loggers = [CSVLogger(str(toy.folder / "csv"), name="", version=""), toy.board()]
    toy.fit([Provenance()], logger=loggers, max_steps=1)
    assert (toy.folder / "csv" / "run_card.json").is_file()


def two_ranks(rank: int, toy: Any) -> None:
    toy.fit([Provenance()], devices=2, strategy="ddp", default_root_dir=toy.folder, max_steps=1)


def test_one_card_for_two_ranks(toy: Any, forked: Any) -> None:
    forked(two_ranks, 2, toy)
    card = json.loads((toy.folder / "run_card.json").read_text())
    assert len(card["starts"]) == 1 and card["starts"][0]["world_size"] == 2


def test_outside_a_repository_there_is_no_git_state(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(toy.folder.parent))
    assert git_state() is None
