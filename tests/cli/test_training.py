"""The command line: a run from nothing, the same command again, and one line for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_llada.cli.main import VERBS, main, run
from lit_llada.cli.memory import SMALLER, smaller
from lit_llada.cli.parser import reason
from lit_llada.cli.runs import changes, default_run_dir, find_checkpoint
from lit_llada.errors import UserError
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training.lora import LoRA
from lit_llada.training.strategies import FSDP2Strategy

TINY = {
    "model": {
        "class_path": "lit_llada.PretrainingModule",
        "init_args": {
            "backbone": {"d_model": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 32},
            "schedule": {"kind": "constant", "warmup_steps": 1},
        },
    },
    "data": {"length": 32, "batch_size": 2, "val_rows": 4},
    "trainer": {
        "max_steps": 4,
        "max_epochs": -1,
        "accelerator": "cpu",
        "precision": "32-true",
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    },
    "checkpoint": {"every_n_steps": 2},
    "sampling": {"length": 16, "steps": 4, "every_n_steps": 4},
    "throughput": {"enabled": False},
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fit(tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``fit(*words, verb="fit")`` -> (status, stdout, stderr), for a tiny net, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"path": str(prepared)}}))

    def call(*words: str, verb: str = "fit") -> tuple[int, str, str]:
        status = main([verb, "-c", "tiny.yaml", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def error_line(stderr: str) -> str:
    """The last line; a UserError never leaves a traceback."""
    assert "Traceback" not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# ---------------------------------------------------------------------- a run


def test_fit_then_the_same_command_resumes_with_the_options_given_now(fit: Run, tmp_path: Path) -> None:
    status, out, _ = fit()
    assert status == 0
    run = tmp_path / "runs" / "tiny"
    assert steps(run) == ["step=0000002.ckpt", "step=0000004.ckpt"]
    assert "from the start" in out
    for said in (
        "token frequencies",
        "5-gram",
        "upper bound",
        "sample free_1",
        "runs/tiny/checkpoints/step=0000004.ckpt",
        "--logdir",
    ):
        assert said in out
    assert list(run.glob("events.out.tfevents.*"))
    assert yaml.safe_load((run / "config.yaml").read_text())["run_dir"] == "runs/tiny"

    status, out, _ = fit("--trainer.max_steps", "6")
    assert status == 0
    assert "going on from runs/tiny/checkpoints/step=0000004.ckpt" in out
    assert "changed: trainer.max_steps: 4 -> 6" in out
    assert steps(run) == ["step=0000004.ckpt", "step=0000006.ckpt"]
    assert [start["step"] for start in json.loads((run / "run_card.json").read_text())["starts"]] == [0, 4]

    status, out, _ = fit("--trainer.max_steps", "8", "--model.lr", "0.25", "--run_dir", "runs/tiny")
    assert "changed: model.lr: 0.0004 -> 0.25" in out
    import torch

    saved = torch.load(run / "checkpoints" / "step=0000008.ckpt", weights_only=True)
    assert {group["lr"] for group in saved["optimizer_states"][0]["param_groups"]} == {0.25}


def test_one_overlay_makes_it_sparse_and_the_router_is_in_tensorboard(fit: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    experts = {"n_experts": 4, "experts_per_token": 2, "expert_dim": 16}
    (tmp_path / "moe.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"backbone": experts}}}))
    assert fit("-c", "moe.yaml", "--router.every_n_steps", "2", "--run_dir", "runs/moe")[0] == 0
    events = EventAccumulator(str(tmp_path / "runs" / "moe")).Reload()
    tags = events.Tags()
    assert {"router/masked/peak", "router/visible/entropy", "val_router/split"} <= set(tags["scalars"])
    assert {"router/load", "val_router/load"} <= set(tags["images"])


def test_a_finished_run_says_so_and_reports_again(fit: Run) -> None:
    fit()
    status, out, _ = fit()
    assert status == 0
    assert "nothing left to train: trainer.max_steps is 4" in out
    assert "upper bound" in out


LINES = ("--trainer.enable_progress_bar", "true", "--progress.every_n_steps")


def test_a_run_whose_output_is_no_terminal_prints_lines(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services do; rich takes that for a terminal
    _, out, _ = fit(*LINES, "3")
    said = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.split(" | ")[0] for line in said] == [f"step {n} of 4" for n in (2, 3, 4, 4)]
    assert ["validated" in line for line in said] == [True, False, False, True]
    assert re.fullmatch(r"step 3 of 4 \| loss [\d.]+ \| bits/byte [\d.]+ \| [\d,]+ tokens/s \| 0:00:\d\d left", said[1])
    assert "Training" not in out and "━" not in out.partition("step 4 of 4")[0]


def test_a_terminal_gets_the_bar(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = fit(*LINES, "1")
    assert "Training" in out and "4/4" in out and "step 1 of 4" not in out


def test_neither_bar_nor_line_where_none_is_wanted(fit: Run) -> None:
    _, out, _ = fit("--progress.every_n_steps", "1")
    assert "step 1 of 4" not in out and "Training" not in out


def test_how_progress_is_shown_makes_no_other_run(fit: Run) -> None:
    fit()
    status, out, _ = fit("--progress.every_n_steps", "1", "--trainer.max_steps", "6")
    assert status == 0 and "going on from runs/tiny" in out
    assert [line for line in out.splitlines() if "changed:" in line] == ["  changed: trainer.max_steps: 4 -> 6"]


def test_ckpt_path(fit: Run, tmp_path: Path) -> None:
    assert "no checkpoint in runs/tiny/checkpoints" in error_line(fit(verb="validate")[2])
    assert fit(verb="validate")[0] == 2
    assert fit("--ckpt_path", "none", verb="validate")[0] == 0  # untrained weights, when asked for
    fit()
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}\n" * 9)
    words = ["--out", "tested", "--val_fraction", "0.3", "--test_fraction", "0.3", "--workers", "1"]
    assert main(["prepare", "text", *map(str, tmp_path.glob("*.txt")), *words]) == 0
    for verb, stage, words in (("validate", "val", []), ("test", "test", ["--data.path", "tested"])):
        status, out, _ = fit(*words, "--run_dir", "runs/tiny", verb=verb)
        assert status == 0
        assert f"{stage}/bits_per_byte" in out
    assert "ckpt_path is none, but runs/tiny/checkpoints holds step=0000004.ckpt" in error_line(
        fit("--ckpt_path", "none")[2]
    )
    assert "ckpt_path gone.ckpt does not exist" in error_line(fit("--ckpt_path", "gone.ckpt")[2])
    status, out, _ = fit("--ckpt_path", "runs/tiny/checkpoints/step=0000002.ckpt", "--run_dir", "runs/branch")
    assert status == 0
    assert steps(tmp_path / "runs" / "branch") == ["step=0000004.ckpt"]


def test_a_test_without_a_test_split_is_one_line(fit: Run, prepared: Path) -> None:
    status, _, err = fit("--ckpt_path", "none", verb="test")
    assert status == 2
    made = "make a folder that has one with `lit-llada prepare text ... --test_fraction 0.05`"
    assert error_line(err) == f"error: {prepared} has no test split: {made}"


def test_another_architecture_is_refused_by_field(fit: Run) -> None:
    fit()
    assert "d_model 16 (now 32)" in error_line(fit("--run_dir", "runs/tiny", "--model.backbone.d_model", "32")[2])


def test_an_average_that_was_not_kept_is_named(fit: Run) -> None:
    fit()
    assert "differ in ema.enabled" in error_line(
        fit("--run_dir", "runs/tiny", "--ema.enabled", "true", "--trainer.max_steps", "6")[2]
    )


GPU_FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 12.50 MiB is"
    " free. Including non-PyTorch memory, this process has 79.13 GiB memory in use."
)


def fill_the_gpu() -> None:
    raise torch.OutOfMemoryError(GPU_FULL)


@pytest.mark.parametrize(
    ("allocate", "wanted"),
    [
        (fill_the_gpu, "20.00 MiB more on GPU 0 of 79.15 GiB asked for"),
        (lambda: torch.empty(1 << 48), "1048576.0 GiB more asked for"),  # what this machine really says
    ],
)
def test_memory_that_runs_out_in_a_step_is_one_line_with_three_remedies(
    fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[], object], wanted: str
) -> None:
    step = PretrainingModule.training_step

    def hungry(module: PretrainingModule, *args: Any) -> Any:
        if module.global_step == 3:
            allocate()
        return step(module, *args)

    quiet = ["--sampling.enabled=false", "--noise_curve.enabled=false", "--run_dir", "runs/big"]
    with monkeypatch.context() as patched:
        patched.setattr(PretrainingModule, "training_step", hungry)
        status, _, err = fit(*quiet)
    assert status == 2
    remedies = "data.batch_size 1 with trainer.accumulate_grad_batches 2, model.checkpointing true or data.length 16"
    assert error_line(err).endswith(f"out of memory: {wanted}; it is less with {remedies}")
    assert [path.name for path in (tmp_path / "runs" / "big" / "checkpoints").iterdir()] == ["step=0000002.ckpt"]
    status, out, _ = fit(*quiet, "--data.batch_size", "1", "--trainer.accumulate_grad_batches", "2")
    assert status == 0
    assert "going on from" in out


def test_memory_that_runs_out_in_validation(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainingModule, "validation_step", lambda *_: fill_the_gpu())
    status, _, err = fit("--ckpt_path", "none", verb="validate")
    assert status == 2
    assert "with data.batch_size 1, data.length 16 or trainer.strategy FSDP2Strategy on more" in error_line(err)


@pytest.mark.parametrize("verb", SMALLER)
def test_memory_that_runs_out_in_sampling(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> int:
        raise torch.OutOfMemoryError(GPU_FULL)

    command.__name__ = verb
    assert VERBS[verb][0].endswith(f":{verb}")  # the name by which the remedies are found
    assert run(command, []) == 2
    assert " or ".join(SMALLER[verb][-2:]) in error_line(capsys.readouterr().err)


def test_an_error_that_is_not_about_memory_keeps_its_traceback(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(PretrainingModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="size of tensor"):
        fit()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            ["data.batch_size 4 with trainer.accumulate_grad_batches 4", "model.checkpointing true", "data.length 64"],
        ),
        (
            {"batch_size": 1, "checkpointing": True, "init_from": "x.ckpt"},
            ["model.lora.rank 8", "data.length 64", "trainer.strategy FSDP2Strategy on more devices"],
        ),
        (
            {
                "batch_size": 1,
                "checkpointing": True,
                "init_from": "x.ckpt",
                "lora": LoRA(),
                "strategy": FSDP2Strategy(),
            },
            ["data.length 64", "more devices", "trainer.precision bf16-true"],
        ),
    ],
)
def test_remedies_are_those_that_are_left(changes: dict[str, Any], expected: list[str]) -> None:
    have = {"accumulate_grad_batches": 2, "strategy": None, "precision": "32-true", "batch_size": 8, "length": 128}
    run = types.SimpleNamespace(**have | {"checkpointing": False, "init_from": None, "lora": None} | changes)
    assert smaller("fit", run, run, run) == expected


def test_a_full_disk_names_the_checkpoint_that_is_still_good_and_the_run_goes_on(fit: Run, tmp_path: Path) -> None:
    quiet = ["--sampling.enabled=false", "--noise_curve.enabled=false", "--run_dir", "runs/full"]
    fit("--trainer.max_steps", "2", *quiet)
    run = tmp_path / "runs" / "full"
    good = run / "checkpoints" / "step=0000002.ckpt"
    before = good.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))  # writes past it fail half-way
    try:
        status, _, err = fit("--trainer.max_steps", "4", *quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2
    assert "no space left on the disk" in error_line(err)
    assert f"the last whole checkpoint is {good.relative_to(tmp_path)}" in error_line(err)
    assert good.read_bytes() == before
    assert steps(run) == ["step=0000002.ckpt"]
    status, out, _ = fit("--trainer.max_steps", "4", *quiet)
    assert status == 0
    assert "going on from" in out


def test_a_full_disk_on_one_rank_is_found_inside_the_distributed_error() -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    from lit_llada.cli.main import _explained

    full = OSError(errno.ENOSPC, "No space left on device", "__1_0.distcp")
    line = _explained(CheckpointException("write", {1: (full, None)}), "fit")
    assert line is not None
    assert "__1_0.distcp" in line
    assert _explained(OSError(errno.EACCES, "Permission denied"), "fit") is None


def test_what_we_did_not_foresee_keeps_its_traceback(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_llada.modules.pretraining import PretrainingModule

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(PretrainingModule, "training_step", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(
    fit: Run, tmp_path: Path, number: signal.Signals, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends at once, SIGTERM after a checkpoint of the step that it met."""
    from lit_llada.modules.pretraining import PretrainingModule

    step = PretrainingModule.training_step

    def hit(self: PretrainingModule, batch: object, index: int) -> object:
        if self.global_step == 1:
            os.kill(os.getpid(), number)
        return step(self, batch, index)

    monkeypatch.setattr(PretrainingModule, "training_step", hit)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, _, err = fit()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == status
    assert "Traceback" not in err
    if number is signal.SIGTERM:
        assert steps(tmp_path / "runs" / "tiny") == ["step=0000002.ckpt"]


@pytest.mark.slow
def test_ddp_starts_the_same_command_again(prepared: Path, tmp_path: Path) -> None:
    """Two processes, the second launched by Lightning from sys.argv."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"path": str(prepared)}}))
    words = ["fit", "-c", "tiny.yaml", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "lit_llada", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("from the start") == 1
    assert steps(tmp_path / "runs" / "tiny") == ["step=0000002.ckpt", "step=0000004.ckpt"]


# ---------------------------------------------------------------------- after pre-training

RECIPES = Path(__file__).parents[2] / "configs" / "recipe"
SMALL = {
    "model": {"init_args": {"lr": 0.01, "schedule": {"kind": "constant", "warmup_steps": 1}}},
    "data": {"init_args": {"batch_size": 4, "val_rows": 6, "length": 64}},
    **{name: options for name, options in TINY.items() if name not in ("model", "data")},
    "sampling": {"prompts": ["7?"], "length": 48, "steps": 4, "every_n_steps": 4},
}


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``chats`` and ``pairs``, prepared on the command line."""
    folder = tmp_path_factory.mktemp("answers")
    rows = [{"prompt": f"{i}?", "response": f"{i} it is", "chosen": f"{i} it is", "rejected": "no"} for i in range(40)]
    for kind, name, fields in (("chat", "chats", ("response",)), ("preference", "pairs", ("chosen", "rejected"))):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({f: row[f] for f in ("prompt", *fields)}) + "\n" for row in rows))
        words = ["--out", str(folder / name), "--val_fraction", "0.2", "--workers", "1"]
        assert main(["prepare", kind, str(file), *words]) == 0
    return folder


@pytest.fixture
def tune(answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``tune(recipe, *words, verb="fit")`` in an empty directory with prepared ``chats`` and ``pairs``."""
    monkeypatch.chdir(tmp_path)
    for name in ("chats", "pairs"):
        (tmp_path / name).symlink_to(answers / name)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))

    def call(recipe: str, *words: str, verb: str = "fit") -> tuple[int, str, str]:
        status = main([verb, "-c", str(RECIPES / f"{recipe}.yaml"), "-c", "small.yaml", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_from_pretraining_to_preferences_without_a_model_overlay(fit: Run, tune: Run, tmp_path: Path) -> None:
    assert fit("--trainer.max_steps", "2", "--run_dir", "pre")[0] == 0
    (tmp_path / "pre" / "checkpoints" / "step=0000002.ckpt").rename(tmp_path / "start.ckpt")
    sft = ["--data.path", "chats", "--model.init_from", "start.ckpt", "--run_dir", "sft"]
    status, out, err = tune("sft", *sft)
    assert status == 0, err
    for said in ("sft: from the start", "bits per token", "loss", "sample prompt_1", "step=0000004.ckpt"):
        assert said in out
    (tmp_path / "start.ckpt").unlink()
    status, out, _ = tune("sft", *sft, "--trainer.max_steps", "6")  # what it started from is not needed any more
    assert status == 0 and "going on from sft/checkpoints/step=0000004.ckpt" in out

    start = "sft/checkpoints/step=0000006.ckpt"
    vrpo = ["--data.path", "pairs", "--model.init_from", start, "--model.estimator.times", "2"]
    status, out, err = tune("vrpo", *vrpo, "--run_dir", "live")
    assert status == 0, err
    assert "accuracy" in out and "rejected gain" in out
    status, out, _ = tune("vrpo", *vrpo, verb="reference")
    assert status == 0
    [file] = tmp_path.glob("runs/*/reference.safetensors")
    assert f"--model.reference {file.relative_to(tmp_path)}" in out
    kept = [*vrpo, "--model.reference", str(file), "--run_dir", "kept"]
    assert tune("vrpo", *kept)[0] == 0
    status, out, _ = tune("vrpo", *kept, verb="validate")
    assert status == 0 and "val/score" in out
    assert tune("vrpo", *kept, "--trainer.max_steps", "6")[0] == 0

    for words, said in (
        (["--model.seed", "2"], "was made with other seed; make it again"),
        (["--model.estimator.times", "4"], "was made with other estimator; make it again"),
        (["--data.eos", "batch"], "data.eos is batch"),
        (["--data.path", "chats"], "learns from preference data, and chats holds chat"),
        (["--model.backbone.d_model", "32"], "differs in"),
    ):
        status, _, err = tune("vrpo", *kept, *words, "--run_dir", "refused")
        assert status == 2
        assert said in error_line(err)
        assert len(error_line(err)) < 400


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("vrpo", [], "model.init_from is not set"),
        ("vrpo", ["--model.init_from", "gone"], "gone: no such file or folder"),
        ("vrpo", ["--model.init_from", "x", "--model.estimator.tims", "2"], "(did you mean times?)"),
        ("vrpo", ["--model.init_from", "x", "--model.estimator.times", "0"], "times 0"),
        ("sft", ["--data.layuot", "packed"], "(did you mean layout?)"),
        ("sft", ["--data.layout", "packd"], "Got value: packd"),
        ("sft", ["--model.normalise", "token"], "(did you mean normalize?)"),
        ("sft", ["--data.path", "pairs", "--model.init_from", "x"], "and pairs holds preference"),
        ("sft", ["--data.path", "chats"], "model.backbone is not set"),
        ("sft", ["--data.path", "gone"], "no data folder gone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_word_after_pretraining_is_one_line(tune: Run, recipe: str, words: list[str], said: str) -> None:
    status, _, err = tune(recipe, *(words if "--data.path" in words else ["--data.path", "pairs", *words]))
    assert status == 2
    assert said in error_line(err)
    assert len(error_line(err)) < 400


def test_a_reference_is_refused_where_there_is_none(tune: Run) -> None:
    assert "reference is for VRPO, and model is SFTModule" in error_line(tune("sft", verb="reference")[2])
    assert "--out" in error_line(tune("sft", "--out", "x")[2])


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max_step", "3"], "--trainer.max_step 3 (did you mean max_steps?)"),  # no abbreviations
        (["--data.lenght=3"], "(did you mean length?)"),
        (["--model.backbone.d_modle", "3"], "(did you mean d_model?)"),
        (["--sampling.every", "3"], "(did you mean every_n_steps?)"),
        (["--model.lr", "abc"], "model: lr: Expected a float. Got value: abc"),
        (["--model.attention", "flashy"], "Got value: flashy"),
        (["--model.backbone.n_kv_heads", "3"], "backbone.n_heads 2 is not a multiple of n_kv_heads 3"),
        (["--model.schedule.decay", "3"], "schedule.decay is 3.0"),
        (["--trainer.strategy", "fsdp7"], "fsdp7"),
        (["--trainer.default_root_dir", "x"], "set run_dir instead"),
        (["-c", "gone.yaml"], "gone.yaml"),
        (["stray"], "stray"),
        (["--data.path", "gone"], "gone"),
        (["--data.length", "100000"], "100000"),
        (["--trainer.max_steps", "-1"], "set trainer.max_steps"),
        (["--model.mask_id", "258"], "mask_id 258 lies outside the vocabulary 0..257"),
        (["--model.backbone.vocab_size", "100"], "vocab_size is 100"),
        (["--model.attention", "flash"], "flash"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line(fit: Run, words: list[str], said: str) -> None:
    status, _, err = fit(*words)
    assert status == 2
    line = error_line(err)
    assert said in line
    assert "usage" not in err
    assert len(line) < 400


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        (
            "model: {init_args: {backbone: {d_modle: 3}}}",
            "model: backbone: Option 'd_modle' is not accepted (did you mean d_model?)",
        ),
        ("trainer: {max_stepz: 3}", "'max_stepz' (did you mean max_steps?)"),
        ("modell: {lr: 3}", "(did you mean model?)"),
        ("model: {class_path: lit_llada.Pretraining}", "no attribute 'Pretraining'"),
        ("model: [", "line 2, column 1"),
    ],
)
def test_a_wrong_overlay_is_one_line(fit: Run, tmp_path: Path, overlay: str, said: str) -> None:
    (tmp_path / "wrong.yaml").write_text(overlay + "\n")
    status, _, err = fit("-c", "wrong.yaml")
    assert status == 2
    assert said in error_line(err)


def test_corrupt_data_is_one_line(fit: Run, prepared: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(prepared, broken)
    chunk = next((broken / "train").glob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-10])
    assert chunk.name in error_line(fit("--data.path", "broken")[2])


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "consolidate"),
        ([], 2, "usage"),
        (["--version"], 0, "lit-llada 0."),
        (["fti"], 2, "unknown verb 'fti'; did you mean 'fit'?"),
        (["xyzzy"], 2, "there are fit, "),
        (["prepare"], 2, "prepare text INPUT"),
        (["prepare", "txt"], 2, "'txt' is not a kind of data"),
        (["prepare", "--help"], 0, "prepare --check DIR"),
        (["prepare", "--check"], 2, "takes one folder"),
        (["prepare", "--check", "gone"], 2, "gone has no manifest.json"),
        (["prepare", "text", "gone.txt", "--out", "out"], 2, "gone.txt"),
        (["prepare", "text", "gone.txt"], 2, "--out DIR"),
        (["prepare", "text", "--corpus", "poems"], 2, "Got value: poems"),
        (["prepare", "text", "--outt", "x"], 2, "--outt (did you mean out?)"),
        (["consolidate", "gone", "x"], 2, "gone: not a sharded checkpoint folder"),
        (["consolidate", "gone"], 2, "target"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_verbs(words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert main(words) == status
    finally:
        os.chdir(before)
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_prepare_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text number {i}\n" * 9)
    words = ["prepare", "text", str(tmp_path), "--out", str(tmp_path / "out"), "--val_fraction=0.3", "--workers", "1"]
    assert main(words) == 0
    assert main(["prepare", "--check", str(tmp_path / "out")]) == 0
    assert "every hash" in capsys.readouterr().out


# ---------------------------------------------------------------------- small parts


def test_default_run_dir_is_the_commands_own() -> None:
    base = ["-c", "configs/recipe/demo.yaml", "--config=configs/model/moe_demo.yaml"]
    assert default_run_dir(base) == "runs/demo-moe_demo"
    assert default_run_dir([]) == "runs/run"
    assert default_run_dir([*base, "--model.lr", "3e-4"]) == "runs/demo-moe_demo,model.lr=3e-4"
    assert default_run_dir([*base, "--model.init_args.lr=3e-4"]) == "runs/demo-moe_demo,model.lr=3e-4"
    assert default_run_dir([*base, "--trainer.max_steps", "9", "--ckpt_path", "none"]) == "runs/demo-moe_demo"
    long = [word for i in range(40) for word in (f"--model.x{i}", "-1")]
    assert len(default_run_dir(long)) < 100
    assert default_run_dir(long) != default_run_dir([*long[:-1], "-2"])
    assert "/" not in default_run_dir(["--data.path", "a/b/../c"])[len("runs/") :]


def test_find_checkpoint_takes_the_newest_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    assert find_checkpoint("auto", str(tmp_path), training=True) is None
    for name in (
        "step=0000010.ckpt",
        "step=0000009.ckpt",
        "step=0000020.ckpt.part",
        "before-nonfinite-step=0000011.ckpt",
    ):
        (folder / name).touch()
    assert find_checkpoint("auto", str(tmp_path), training=True) == folder / "step=0000010.ckpt"
    with pytest.raises(UserError, match="none"):
        find_checkpoint("none", str(tmp_path), training=True)


def test_changes_name_what_differs() -> None:
    old = {"model": {"init_args": {"lr": 1.0, "betas": [0, 1]}}, "ckpt_path": "auto", "gone": 1}
    new = {"model": {"init_args": {"lr": 2.0, "betas": [0, 1]}}, "ckpt_path": None, "trainer": {"x": {}}}
    assert changes(old, new) == ["model.lr: 1.0 -> 2.0", "gone: 1 -> None", "trainer.x: None -> {}"]


def test_reason_leaves_what_matters() -> None:
    message = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Subtypes: [A, B]\n  Errors:\n'
        "    - Parser key \"lr\": Expected a <class 'float'>. Got value: abc\n    - Expected a <class 'NoneType'>\n"
        "  Given value type: <class 'dict'>\n  Given value: {}"
    )
    assert reason(message) == "model: lr: Expected a float. Got value: abc"
    assert reason("plain\n  words") == "plain words"
