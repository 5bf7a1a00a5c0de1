"""What nobody can be tuned on, as it is typed: status 2, one line with the thing and a remedy, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_checkpoint
from lit_llada.checkpoint.own import write_run
from lit_llada.checkpoint.published.write import export_checkpoint
from lit_llada.checkpoint.source import read_files
from lit_llada.cli.main import main
from lit_llada.text.tokenizer import Tokenizer
from tests.cli.test_training import RECIPES, SMALL

CHATS = [{"prompt": f"{n}?", "answer": f"{n} it is"} for n in range(40)]
PAIRS = [{"prompt": f"{n}?", "chosen": f"{n} it is", "rejected": "no"} for n in range(40)]
PAIR = {"prompt": "x", "chosen": "y", "rejected": "z"}
ANSWER = {"role": "assistant", "content": "a"}
CUT = "--max_length 60 --long cut"
SPLIT = ["--val_fraction", "0.2", "--workers", "1"]

Refused = Callable[..., None]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """``refused(said, *words)``: the command ends as a user's mistake does, and leaves the folders as they were."""

    def call(said: str, *words: str) -> None:
        before = files()
        assert main(list(words)) == 2, f"lit-llada {' '.join(words)} was not refused"
        captured = capsys.readouterr()
        *_, line = lines = captured.err.strip().splitlines()
        assert [one for one in lines if one.startswith("error: ")] == [line] and "Traceback" not in captured.err
        assert said in line and len(line) < 400
        assert files() == before

    return call


def files() -> set[str]:
    """All there are, TensorBoard's curves and the run's notes left out: they are no result."""
    notes = ("events.out", "config.yaml", "run_card.json", "hparams.yaml")
    return {str(path) for path in Path().rglob("*") if path.is_file() and not path.name.startswith(notes)}


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("kind", "row", "options", "said"),
    [
        ("chat", {"prompt": "x", "answer": ""}, "", "the answer (message 2) is empty; leave the row out"),
        ("chat", {"prompt": "x", "answer": " "}, "", "the answer (message 2) is empty; leave the row out"),
        ("preference", PAIR | {"chosen": ""}, "", "the answer (message 2) is empty; leave the row out"),
        ("preference", PAIR | {"rejected": ""}, "", "the answer (message 2) is empty; leave the row out"),
        ("chat", {"prompt": "x" * 60, "answer": "y"}, CUT, "the prompt fills max_length 60; raise it, or"),
        ("preference", PAIR | {"prompt": "x" * 60}, CUT, "the prompt fills max_length 60; raise it, or"),
        ("preference", PAIR | {"rejected": "y"}, "", "chosen and rejected are the same; leave the row out"),
        ("chat", {"messages": [{"content": "x"}, ANSWER]}, "", "message 1 has no role"),
        ("chat", {"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "", "message 1: unknown role 'tool'; known"),
    ],
    ids=["empty", "blank", "empty_chosen", "empty_rejected", "full", "full_pair", "same", "no_role", "unknown_role"],
)  # fmt: skip
def test_a_row_that_teaches_nothing(refused: Refused, kind: str, row: dict[str, Any], options: str, said: str) -> None:
    """The last one of 41, the others of its form."""
    talks = [{"messages": [{"role": "user", "content": f"{n}?"}, ANSWER]} for n in range(40)]
    rows = write("rows.jsonl", [*({"chat": CHATS, "preference": PAIRS}[kind] if "prompt" in row else talks), row])
    refused(f"rows.jsonl:41: {said}", "prepare", kind, rows, "--out", "out", *SPLIT, *options.split())
    assert not Path("out").exists()


def test_a_template_variable_that_nobody_sets(refused: Refused) -> None:
    Path("own.jinja").write_text(
        "{{ greeting }}{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    for kind, rows in (("chat", CHATS), ("preference", PAIRS)):
        refused(
            "chat template own.jinja writes 'greeting', a variable that nobody sets; correct it",
            *("prepare", kind, write("rows.jsonl", rows), "--out", "out", "--template", "own.jinja", *SPLIT),
        )


def test_a_prompt_that_fills_the_context(refused: Refused) -> None:
    start("start.ckpt")
    export_checkpoint(load_checkpoint("start.ckpt"), "published")
    config = Path("published/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_sequence_length": 40}))
    refused(
        "prompt 1: 40 tokens and 32 new ones exceed the context of 40; shorten the prompt or ask for fewer",
        *("sample", "published", "x" * 40, "--new_tokens", "32", "--out", "answers.jsonl"),
    )
    assert main(["prepare", "chat", write("rows.jsonl", CHATS), "--out", "chats", *SPLIT]) == 0
    fit = ["-c", str(RECIPES / "sft.yaml"), "--data.path", "chats", "--model.init_from", "published"]
    refused("data.length is 20, but a record of chats has ", "fit", *fit, "--data.length", "20")
    refused(
        "SampleLogger.length 60 leaves no room after the prompt 'Write a Python function that reverses a string.'",
        *("fit", *fit, "--data.length", "64", "--sampling.length", "60", "--trainer.accelerator", "cpu"),
    )


# ---------------------------------------------------------------------- references


def start(name: str, seed: int = 1, **options: Any) -> None:
    """A run's checkpoint, its tokenizer of bytes inside."""
    Tokenizer.byte().save("vocabulary")
    small = {"vocab_size": 258, "d_model": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 32}
    net = Backbone(BackboneConfig(**small | options))
    net.init_weights(seed)
    write_run(net, 257, read_files(Path("vocabulary")), Path(name))


def test_a_reference_of_something_else_is_refused_by_its_hash(
    refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    start("start.ckpt")
    start("other.ckpt", seed=2)
    start("sparse.ckpt", n_experts=4, experts_per_token=2, expert_dim=16)
    for name, rows in (("pairs", PAIRS), ("more", [*PAIRS, PAIR])):
        assert main(["prepare", "preference", write(f"{name}.jsonl", rows), "--out", name, *SPLIT]) == 0
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    vrpo = ["-c", str(RECIPES / "vrpo.yaml"), "-c", "small.yaml", "--data.path", "pairs", "--run_dir", "run"]
    vrpo += ["--model.init_from", "start.ckpt", "--model.estimator.times", "2"]
    assert main(["reference", *vrpo, "--out", "kept.safetensors"]) == 0
    capsys.readouterr()
    kept = [*vrpo, "--model.reference", "kept.safetensors"]
    for other, words in (
        ("data", ["--data.path", "more"]),
        ("seed", ["--model.seed", "2"]),
        ("estimator", ["--model.estimator.times", "4"]),  # n
        ("checkpoint", ["--model.init_from", "other.ckpt"]),
        ("checkpoint", ["--model.init_from", "sparse.ckpt"]),  # another architecture
    ):
        said = f"model.reference kept.safetensors was made with other {other}; make it again"
        refused(said, "fit", *kept, *words)
        refused(said, "validate", *kept, *words, "--ckpt_path", "none")
    wider = ["--model.backbone.d_model", "32"]
    refused("start.ckpt: the checkpoint's backbone differs in d_model 16 (now 32)", "fit", *vrpo, *wider)
    Path("cut").write_bytes(Path("kept.safetensors").read_bytes()[:200])
    refused("cut was not written by lit-llada reference, or is cut off", "fit", *vrpo, "--model.reference", "cut")
    refused("gone: no such file; make it with lit-llada reference", "fit", *vrpo, "--model.reference", "gone")
    padded = ["--data.eos", "batch", "--data.layout", "padded", "--out", "no.safetensors"]
    refused("data.eos is batch", "reference", *vrpo, *padded)
    assert main(["fit", *kept]) == 0  # what it was made for
