"""Runs, data and configs that version 0.1.0 wrote go on as they would have: every figure beside the recorded one.

The folder was made by that version: four steps of each recipe with a tiny net; ``recorded.json`` has what the same
version logged in the four steps that follow, on one process and on two. float32 is compared with a tolerance, because
another processor rounds otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_llada.cli.main import main

HERE = Path(__file__).parent / "version_0_1_0"
RECORDED = json.loads((HERE / "recorded.json").read_text())
LAUNCHER = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
KINDS = ("pretraining", "sft", "vrpo")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what that version wrote, as working directory."""
    shutil.copytree(HERE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def words(kind: str, *more: str) -> list[str]:
    return ["fit", "-c", f"{kind}.yaml", "--run_dir", f"runs/{kind}", "--trainer.max_steps", "8", *more]


def check(run_dir: Path, recorded: dict[str, Any]) -> None:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    for name, points in recorded["scalars"].items():
        found = {str(event.step): event.value for event in events.Scalars(name)}
        # Where two experts are equally good, rounding decides which one a token visits.
        tolerance = 0.05 if name.startswith("val_router") else 1e-3
        assert found == pytest.approx(points, rel=tolerance, abs=tolerance / 10), name
    saved = torch.load(run_dir / "checkpoints" / "step=0000008.ckpt", weights_only=True)["state_dict"]
    sums = {name: float(tensor.double().abs().sum()) for name, tensor in saved.items()}
    assert sums == pytest.approx(recorded["weights"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on(old: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(kind)) == 0
    said = capsys.readouterr().out
    assert "going on from" in said
    changed = [line.strip() for line in said.splitlines() if line.startswith("  changed:")]
    assert changed == ["changed: trainer.max_steps: 4 -> 8"]
    check(old / "runs" / kind, RECORDED[f"{kind}_1"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_two_processes(old: Path, kind: str) -> None:
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2")
    command = [sys.executable, "-m", "lit_llada", *words(kind, *two)]
    # What a run inside this process has left for its ranks must not be taken for a launcher's.
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    environment["OMP_NUM_THREADS"] = "1"
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-2000:]
    check(old / "runs" / kind, RECORDED[f"{kind}_2"])


def test_a_saved_config_is_an_overlay(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        config = f"runs/{kind}/config.yaml"
        assert main(["validate", "-c", config, "--run_dir", f"runs/{kind}"]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_a_checkpoint_is_sampled_and_evaluated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = "runs/sft/checkpoints/step=0000004.ckpt"
    how = ["--chat", "--preset", "benchmark", "--new_tokens", "8", "--steps", "8", "--block_length", "8"]
    assert main(["sample", checkpoint, "17 + 3 =", *how, "--seed", "3", "--temperature", "0.7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in RECORDED["sample"]} == RECORDED["sample"]
    assert main(["evaluate", checkpoint, "--data", "chat", "--out", "table.json"]) == 0
    table = json.loads(Path("table.json").read_text())
    told, recorded = table["checkpoints"][0], RECORDED["evaluate"]
    assert (told["digest"], table["new_tokens"]) == (recorded["checkpoint"], recorded["new_tokens"])
    assert [told["tasks"]["all"][name] for name in ("right", "asked")] == [recorded["right"], recorded["asked"]]
