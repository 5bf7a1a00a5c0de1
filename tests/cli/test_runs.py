"""A run has the directory of its command, and goes on from its newest checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_llada.cli.runs import changes, default_run_dir, find_checkpoint, flat
from lit_llada.errors import UserError


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("", "runs/run"),
        ("-c configs/a.yaml --config=b/c.yaml", "runs/a-c"),
        ("-c a.yaml --model.lr 3e-4", "runs/a,model.lr=3e-4"),
        ("-c a.yaml --trainer.max_steps 7 --data.num_workers=2 --ckpt_path x", "runs/a"),  # how, not what
        ("-c a.yaml --model.init_args.lr=1", "runs/a,model.lr=1"),
    ],
)
def test_the_directory_is_named_by_overlays_and_by_what_was_changed(words: str, folder: str) -> None:
    assert default_run_dir(words.split()) == folder


def test_long_changes_are_cut_and_still_told_apart() -> None:
    one, other = (default_run_dir(["--data.path", "x" * 90 + end]) for end in "ab")
    assert one != other and len(one) < 90


def test_the_newest_checkpoint_is_found_and_a_whole_run_is_not_overwritten(tmp_path: Path) -> None:
    assert find_checkpoint("auto", str(tmp_path), training=True) is None
    with pytest.raises(UserError, match=r"no checkpoint in .*: give the run's --run_dir"):
        find_checkpoint("auto", str(tmp_path), training=False)
    (tmp_path / "checkpoints").mkdir()
    for step in (7, 12):
        (tmp_path / "checkpoints" / f"step={step:07d}.ckpt").touch()
    assert find_checkpoint("auto", str(tmp_path), training=True) == tmp_path / "checkpoints" / "step=0000012.ckpt"
    with pytest.raises(UserError, match=r"ckpt_path is none, but .* holds step=0000012.ckpt"):
        find_checkpoint("none", str(tmp_path), training=True)
    assert find_checkpoint("none", str(tmp_path), training=False) is None
    with pytest.raises(UserError, match=r"ckpt_path gone.ckpt does not exist"):
        find_checkpoint("gone.ckpt", str(tmp_path), training=True)


def test_changes_are_told_by_dotted_names_and_a_moved_class_is_none() -> None:
    old = {"model": {"class_path": "lit_llada.modules.sft.SFTModule", "init_args": {"lr": 1}}, "ckpt_path": "auto"}
    new = {"model": {"class_path": "lit_llada.SFTModule", "init_args": {"lr": 2}}, "ckpt_path": "none"}
    assert flat(new) == {"model.class_path": "SFTModule", "model.lr": 2, "ckpt_path": "none"}
    assert changes(old, new) == ["model.lr: 1 -> 2"]


def test_an_option_that_was_renamed_is_no_change() -> None:
    old, new = {"exact_match": {"per_template": 5}}, {"exact_match": {"per_task": 5, "per_template": None}}
    assert changes(old, new) == []
