"""What docs/architecture.md says of adding a thing, done with a toy of each: nothing else has to be touched.

A rule of the sampler is added in tests/sampling/test_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lit_llada.cli import prepare as cli_prepare
from lit_llada.cli.main import main
from lit_llada.data import kinds
from lit_llada.prepare.documents import check_prepared

TINY = {
    "model": {
        "class_path": "tests.shared.toys.EverythingMasked",
        "init_args": {
            "backbone": {"d_model": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 32},
            "lr": 1e-2,
            "schedule": {"kind": "constant", "warmup_steps": 1},
        },
    },
    "data": {"init_args": {"length": 32, "batch_size": 2, "val_rows": 4}},
    "trainer": {"max_steps": 4, "accelerator": "cpu", "precision": "32-true", "val_check_interval": 2},
    "checkpoint": {"every_n_steps": 2},
    "sampling": {"length": 16, "steps": 4, "every_n_steps": 4},
    "throughput": {"enabled": False},
}

Fit = Callable[..., str]


@pytest.fixture
def fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fit:
    """``fit(data, *words)`` -> what it prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def call(data: str | Path, *words: str, verb: str = "fit") -> str:
        assert main([verb, "-c", "tiny.yaml", "--data.path", str(data), "--run_dir", "run", *words]) == 0
        return capsys.readouterr().out

    return call


def test_an_objective_is_a_module_that_keeps_the_contract(fit: Fit, prepared: Path) -> None:
    said = fit(prepared)
    assert "run/checkpoints/step=0000004.ckpt" in said and "upper bound" in said
    assert "going on from run/checkpoints/step=0000004.ckpt" in fit(prepared, "--trainer.max_steps", "6")
    assert "val/loss" in fit(prepared, verb="validate")


def test_a_callback_is_a_file(fit: Fit, prepared: Path) -> None:
    fit(prepared, "--trainer.callbacks", "tests.shared.toys.StepCounter", "--trainer.callbacks.file", "steps.txt")
    assert Path("steps.txt").read_text() == "4"


def test_a_kind_of_data_is_an_entry_in_two_tables_a_function_and_a_module(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.KINDS, "numbers", kinds.DataKind("DiffusionDataModule", "tokens", "dim"))
    preparer = ("tests.shared.toys:prepare_numbers", "The first numbers.")
    monkeypatch.setitem(cli_prepare.PREPARERS, "numbers", preparer)
    assert main(["prepare", "numbers", "--out", "numbers", "--size", "400"]) == 0
    check_prepared("numbers")
    assert "run/checkpoints/step=0000004.ckpt" in fit("numbers", "--model", "tests.shared.toys.NumbersModule")
