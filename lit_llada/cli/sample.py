"""``lit-llada sample``: prompts in, answers out, as text for a reader or as JSONL for a program."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.text import Text

from lit_llada.cli.checkpoint_options import checkpoint_parser, load, read_options, template_for
from lit_llada.errors import UserError
from lit_llada.files import writing
from lit_llada.progress import with_bar

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint
    from lit_llada.sampling.prompts import Prompt
    from lit_llada.sampling.sample import Sample
    from lit_llada.sampling.settings import Settings
    from lit_llada.text.chat_template import ChatTemplate
    from lit_llada.text.tokenizer import Tokenizer

CUT_OFF = "cut off by new_tokens"

SAMPLE = """\
Continue prompts, answer messages, or fill gaps.

  lit-llada sample CHECKPOINT 'The capital of France is'
  lit-llada sample CHECKPOINT --chat 'What is 12 times 4?' --new_tokens 64
  lit-llada sample CHECKPOINT --infill 'def add(a, b):[...24]    return c'    a gap of 24 tokens; [...] has new_tokens
  lit-llada sample CHECKPOINT --infill '[...]' --temperature 1                 text from nothing
  lit-llada sample CHECKPOINT --file questions.jsonl --chat --batch_size 16 --out answers.jsonl
  lit-llada sample CHECKPOINT - < prompts.txt | jq .text                       one prompt a line; a pipe gets JSONL
  lit-llada sample CHECKPOINT 'Once' --film film.html --trace trace.jsonl

CHECKPOINT is a folder in the Hugging Face layout, org/name on the hub, or a .ckpt of a run. A .jsonl file has an object
a line with "prompt" or "messages". Options of the plan override the preset; without --preset the checkpoint's own plan
counts (lit-llada calibrate saves one), else fast. An answer is the same whatever shares its batch."""


def sample(words: list[str]) -> int:
    """``lit-llada sample CHECKPOINT [PROMPT ...]``."""
    parser = checkpoint_parser("sample", "[PROMPT ...]", SAMPLE)
    parser.add_argument("prompts", nargs="*", type=str, metavar="PROMPT", help="texts; - reads the standard input")
    parser.add_argument("--file", type=str | None, default=None, help="a file of prompts, a line each, or .jsonl")
    parser.add_argument("--chat", action="store_true", help="every prompt is a user's message")
    parser.add_argument("--infill", action="store_true", help="fill the gaps [...] or [...24]; write nothing behind")
    parser.add_argument("--batch_size", type=int, default=8, help="rows at once")
    parser.add_argument("--out", type=str | None, default=None, help="write JSONL to this file")
    parser.add_argument("--film", type=str | None, default=None, help="watch the answers come about: .html or .gif")
    parser.add_argument("--trace", type=str | None, default=None, help="write every step of every answer: JSONL")
    options = read_options(parser, words)
    if options["chat"] and options["infill"]:
        raise UserError("--chat and --infill exclude each other: an answer is written behind a message; leave one out")
    if options["batch_size"] < 1:
        raise UserError(f"--batch_size is {options['batch_size']}; it must be at least 1")
    from lit_llada.sampling.prompts import read_prompts

    prompts = read_prompts(options["prompts"], options["file"])
    checkpoint, settings = load(options)
    template = template_for(options, checkpoint) if options["chat"] else None
    outputs = Outputs(options["out"], options["film"], options["trace"])
    how = {name: options[name] for name in ("infill", "batch_size")}
    try:
        write_samples(checkpoint, prompts, settings, template, outputs, **how)
    except BrokenPipeError:  # whoever read has had enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is flushed into the pipe
    return 0


class Outputs(NamedTuple):
    """Files to write; None for none.

    Args:
        out: JSONL file of the answers.
        film: file for the film of all answers, .html or .gif.
        trace: JSONL file of what happened at every step.
    """

    out: str | None = None
    film: str | None = None
    trace: str | None = None


def write_samples(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    settings: Settings,
    template: ChatTemplate | None,
    outputs: Outputs,
    *,
    infill: bool,
    batch_size: int,
) -> None:
    """Answer every prompt and write what came of it, in the order of the prompts.

    A reader at a terminal gets text; a pipe, or the file ``outputs.out``, one JSON object a line: see :func:`record`.

    Args:
        checkpoint, prompts, settings, template, infill, batch_size: see
            :func:`~lit_llada.sampling.sample.sample_prompts`.
        outputs: files to write.

    Raises:
        UserError: a prompt that makes no canvas, or a file that cannot be written.
    """
    from lit_llada.sampling.fill import in_number_order
    from lit_llada.sampling.film import check_name
    from lit_llada.sampling.sample import sample_prompts

    out, film, trace = outputs
    if film is not None:
        check_name(film)
    numbered = sample_prompts(
        checkpoint, prompts, settings, template, infill=infill, batch_size=batch_size, trace=bool(film or trace)
    )
    began = time.perf_counter()
    with ExitStack() as stack:
        writers = [stack.enter_context(writing(Path(name))) if name else None for name in (out, trace)]
        show = _jsonl(writers[0] or sys.stdout) if out or not sys.stdout.isatty() else _text(infill)
        answers = []
        for prompt, answer in zip(prompts, in_number_order(with_bar(numbered, len(prompts), "sampling")), strict=True):
            show(prompt, answer)
            if writers[1] is not None and answer.trace is not None:
                writers[1].write(answer.trace.to_json() + "\n")
            answers.append(answer)
    if film is not None:
        _write_film(film, checkpoint, prompts, answers)
    device = next(checkpoint.net.parameters()).device
    print(summary(answers, time.perf_counter() - began, hardware(device)), file=sys.stderr)


def _write_film(path: str, checkpoint: Checkpoint, prompts: Sequence[Prompt], answers: Sequence[Sample]) -> None:
    from lit_llada.sampling.film import write_film

    assert checkpoint.tokenizer is not None, "sample_prompts has asked for one"
    pairs = enumerate(zip(prompts, answers, strict=True), 1)
    traces = {f"{i} {prompt.text[:60]}": answer.trace for i, (prompt, answer) in pairs if answer.trace}
    write_film(path, traces, piece(checkpoint.tokenizer))


def record(answer: Sample) -> dict[str, Any]:
    """One line of the output. Its tokens are the answer's alone: no prompt, no canvas behind an end."""
    return {
        "prompt": answer.prompt,
        "text": answer.text,
        "tokens": answer.tokens,
        "forwards": answer.forwards,
        "steps": answer.steps,
        "seconds": round(answer.seconds, 4),
        "tokens_per_second": round(answer.tokens / answer.seconds, 2) if answer.seconds else 0.0,
        "finish": "eos" if answer.ended else "length",
    }


def summary(answers: Sequence[Sample], seconds: float, where: str) -> str:
    """What it all took, in one line."""
    tokens, forwards = sum(a.tokens for a in answers), sum(a.forwards for a in answers)
    ended = sum(a.ended for a in answers)
    return (
        f"{count(len(answers), 'answer')} ({ended} ended by themselves): {count(tokens, 'token')} in {seconds:.1f} s, "
        f"{tokens / max(seconds, 1e-9):.1f} a second; {count(forwards, 'forward')} of a row, "
        f"{tokens / max(forwards, 1):.2f} tokens each; {where}"
    )


def measured(tokens: int, forwards: int, seconds: float, note: str = "") -> str:
    """What one answer took."""
    speed = f"{tokens / max(seconds, 1e-9):.1f} tokens a second"
    return ", ".join(filter(None, (count(tokens, "token"), count(forwards, "forward"), speed, note)))


def hardware(device: Any) -> str:
    """What computed it, in words."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {count(threads, 'thread')})"


def count(number: int, what: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def piece(tokenizer: Tokenizer) -> Callable[[int], str]:
    """id -> what a film shows of it."""
    from lit_llada.sampling.frames import END_SIGN, MASK_SIGN

    return lambda token: tokenizer.decode([token], MASK_SIGN, END_SIGN)


def _jsonl(file: Any) -> Callable[[Prompt, Sample], None]:
    def show(prompt: Prompt, answer: Sample) -> None:
        print(json.dumps(record(answer), ensure_ascii=False), file=file, flush=True)

    return show


def _text(infill: bool) -> Callable[[Prompt, Sample], None]:
    from lit_llada.cli.screen import printable

    console = Console(highlight=False, soft_wrap=True)

    def show(prompt: Prompt, answer: Sample) -> None:
        note = "" if answer.ended or infill else CUT_OFF
        console.print(Text(printable(prompt.text), style="dim"))
        console.print(Text(printable(answer.text)))
        console.print(Text(measured(answer.tokens, answer.forwards, answer.seconds, note) + "\n", style="dim italic"))

    return show
