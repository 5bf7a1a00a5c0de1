"""``sample`` as it is typed: text for a reader, JSONL for a program, one line for every mistake."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_llada.checkpoint.generation import save_plan
from lit_llada.cli.main import main
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.trace import Trace
from lit_llada.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sample(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``sample(*words)`` in an empty directory, with ``c.ckpt`` in it -> (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(run_file, "c.ckpt")

    def call(*words: str) -> tuple[int, str, str]:
        status = main(["sample", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_pipe_gets_one_object_a_line_and_the_reader_a_summary(sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # each of 4 steps reads it once a row
    monkeypatch.setattr("lit_llada.sampling.fill.time", clock)
    status, out, err = sample("c.ckpt", "abc", "d", "--new_tokens", "8", "--preset", "official", "--steps", "4")
    assert status == 0
    first, second = (json.loads(line) for line in out.splitlines())
    assert set(first) == {
        "prompt", "text", "tokens", "forwards", "steps", "seconds", "tokens_per_second", "finish",
    }  # fmt: skip
    assert (first["prompt"], second["prompt"]) == ("abc", "d")
    assert (first["forwards"], first["steps"], first["finish"], first["tokens"]) == (4, 4, "length", 8)
    assert [(row["seconds"], row["tokens_per_second"]) for row in (first, second)] == [(7, 1.14), (8, 1)]
    assert "2 answers (0 ended by themselves): 16 tokens in" in err
    assert "cpu (" in err


def test_answers_depend_on_seed_and_number_and_not_on_the_batch(sample: Run) -> None:
    words = ["c.ckpt", "a", "bbbb", "a", "--new_tokens", "8", "--temperature", "1", "--block_length", "8"]

    def texts(*more: str) -> list[str]:
        return [json.loads(line)["text"] for line in sample(*words, *more)[1].splitlines()]

    alone = texts("--batch_size", "1")
    assert texts() == texts("--batch_size", "2") == alone
    assert alone[0] != alone[2]
    assert texts("--seed", "1") != alone


def test_the_checkpoints_own_plan_counts_until_another_is_named(sample: Run) -> None:
    def forwards(*more: str) -> int:
        return json.loads(sample("c.ckpt", "ab", "--new_tokens", "8", *more)[1])["forwards"]

    save_plan(Path("c.ckpt.generation.json"), asdict(Plan(steps=2)))
    assert forwards() == 2
    assert forwards("--steps", "4") == 4
    assert forwards("--preset", "official") == 8


def test_files_conversations_out_and_trace(sample: Run) -> None:
    Path("q.jsonl").write_text('{"prompt": "ab"}\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    words = ["c.ckpt", "--file", "q.jsonl", "--chat", "--new_tokens", "4", "--block_length", "4"]
    status, out, err = sample(*words, "--out", "a.jsonl", "--trace", "t.jsonl")
    assert (status, out) == (0, "")
    assert "no chat template; taking chat template 'plain'" in err
    first, second = (json.loads(line) for line in Path("a.jsonl").read_text().splitlines())
    assert first["prompt"] == "ab"
    assert second["prompt"] == [{"role": "user", "content": "hi"}]
    traces = [Trace.from_json(line) for line in Path("t.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer.byte()
    for trace, answer in zip(traces, (first, second), strict=True):
        start = trace.start.index(trace.mask)
        assert tokenizer.decode(trace.start, mask="", eos="|").endswith("|assistant:\n")
        assert tokenizer.decode(trace.canvases()[-1][start:]) == answer["text"]
        assert trace.forwards == answer["forwards"]


def test_gaps_are_filled_where_they_stand(sample: Run) -> None:
    [answer] = map(json.loads, sample("c.ckpt", "--infill", "ab[...3]cd[...]", "--new_tokens", "2")[1].splitlines())
    assert answer["tokens"] == 5
    assert answer["text"].startswith("ab")
    assert "cd" in answer["text"][3:]


def test_options_and_prompts_may_stand_in_any_order(sample: Run) -> None:
    orders = (
        ["c.ckpt", "a", "-b", "--chat", "--new_tokens", "4", "--preset=official"],
        ["--new_tokens", "4", "c.ckpt", "--chat", "a", "--preset=official", "--", "-b"],
    )
    outs = [sample(*order) for order in orders[1:]]
    assert [json.loads(line)["prompt"] for line in outs[0][1].splitlines()] == ["a", "-b"]
    assert "unrecognized arguments: -b" in sample(*orders[0])[2]


def test_guidance_and_cache_run(sample: Run) -> None:
    words = ["c.ckpt", "ab", "--new_tokens", "8", "--block_length", "4"]
    assert sample(*words, "--guidance", "1")[0] == 0
    exact = json.loads(sample(*words)[1])["text"]
    for scheme in ("prefix", "dual"):
        assert json.loads(sample(*words, "--cache", scheme, "--refresh_every", "1")[1])["text"] == exact


def test_a_reader_who_has_had_enough_is_no_error(sample: Run) -> None:
    words = [sys.executable, "-m", "lit_llada", "sample", "c.ckpt", *"ab", "--new_tokens", "4", "--block_length", "4"]
    pipe, end = os.pipe()
    os.close(pipe)
    done = subprocess.run(words, stdout=end, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(end)
    assert (done.returncode, done.stderr) == (0, "")


def test_film(sample: Run) -> None:
    assert sample("c.ckpt", "ab", "--new_tokens", "8", "--block_length", "8", "--film", "f.html")[0] == 0
    assert "<html" in Path("f.html").read_text().lower()


def test_the_published_layout_with_a_tokenizer_given(sample: Run) -> None:
    assert "has no tokenizer beside it; give one with --tokenizer PATH" in sample(str(GOLDEN / "dense_a"), "a")[2]


MISTAKES = {
    "gone.ckpt a": "gone.ckpt: no such file or folder",
    "c.ckpt": "there is no prompt; give one, or --file FILE, or -",
    "c.ckpt ''": "prompt 1 is empty; give it at least one token",
    "c.ckpt 'x <|mask|>'": "prompt 1 spells the mask token <|mask|>",
    "c.ckpt a --new_tokens 50": "block_length 32 does not divide the 50 new tokens of prompt 1",
    "c.ckpt a --new_tokens 0": "new_tokens is 0; ask for at least 1",
    "c.ckpt a --preset slow": "unknown preset 'slow'; there are official, benchmark, fast",
    "c.ckpt a --tempreature 1": "did you mean temperature?",
    "c.ckpt a --steps 4": "count threshold decides the number of steps by itself; leave steps out",
    "c.ckpt --file gone.txt": "gone.txt cannot be read: No such file or directory",
    "c.ckpt --file empty.txt": "empty.txt is empty; write one prompt a line",
    "c.ckpt a --out gone/a.jsonl": "gone/a.jsonl cannot be written: No such file or directory",
    "c.ckpt a --device cuda:99": "--device cuda:99 is not here",
    "c.ckpt a --tokenizer gone.json": "gone.json: no such file",
    "c.ckpt a --chat --template llama": "template llama: no such file; give auto, llada",
    "c.ckpt a --chat --template llada": "take plain",
    "c.ckpt a --chat --infill": "--chat and --infill exclude each other",
    "c.ckpt a --ema true": "holds no averaged weights",
    "c.ckpt a --batch_size 0": "--batch_size is 0; it must be at least 1",
    "c.ckpt a --guidance 1 --cache dual": "guidance and cache exclude each other",
    "": "the following arguments are required: checkpoint",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_every_mistake_is_one_line_and_status_2(sample: Run, words: str) -> None:
    import shlex

    Path("empty.txt").touch()
    status, out, err = sample(*shlex.split(words))
    assert (status, out) == (2, "")
    assert MISTAKES[words] in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in err
    assert not list(Path().glob("*.part"))


def test_the_context_of_a_published_folder_is_a_limit(
    sample: Run, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_llada.checkpoint.load import Checkpoint

    monkeypatch.setattr(Checkpoint, "context", 20)
    assert (
        "prompt 1: 9 tokens and 12 new ones exceed the context of 20"
        in sample("c.ckpt", "123456789", "--new_tokens", "12", "--preset", "official")[2]
    )


def test_context_length_is_read_from_the_folder() -> None:
    from lit_llada.checkpoint.load import load_checkpoint

    loaded = load_checkpoint(GOLDEN / "dense_a")
    fields = json.loads((GOLDEN / "dense_a" / "config.json").read_text())
    assert loaded.context == fields["max_sequence_length"]
    loaded.files = {}
    assert loaded.context is None


@pytest.mark.parametrize("verb", ["sample", "chat", "calibrate"])
def test_help_teaches_by_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"\n  lit-llada {verb} CHECKPOINT" in text  # examples keep their lines
    for option in ("--preset", "--block_length", "--temperature", "--new_tokens", "--ema"):
        assert option in text
