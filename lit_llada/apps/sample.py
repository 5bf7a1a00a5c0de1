"""``lit-llada sample``: prompts in, answers out, as text for a reader or as JSONL for a program."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from lit_llada.apps.prompts import Prompt, make_rows
from lit_llada.apps.screen import END, MASK, printable
from lit_llada.apps.settings import Settings, writing
from lit_llada.data.chat import ChatTemplate
from lit_llada.sampling.answers import Answer, answer_rows, in_order
from lit_llada.sampling.canvas import Specials
from lit_llada.sampling.film import check_name, write_film

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint
    from lit_llada.data.tokenizer import Tokenizer

CUT_OFF = "cut off by new_tokens"


def sample(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    template: ChatTemplate | None = None,
    infill: bool = False,
    batch_size: int = 8,
    context: int | None = None,
    out: str | None = None,
    film: str | None = None,
    trace: str | None = None,
) -> None:
    """Answer every prompt and write what came of it, in the order of the prompts.

    A reader at a terminal gets text; a pipe, or the file ``out``, gets one JSON object a line: ``prompt``, ``text``,
    ``tokens`` (of the answer up to its first end), ``forwards``, ``steps``, ``seconds`` (from the start of the batch
    that the row shared until the row was complete), ``tokens_per_second``, ``finish`` (eos | length).

    Args:
        checkpoint: with a tokenizer.
        prompts: at least one.
        settings: everything that decides an answer.
        template: given, every text is a user's message.
        infill: texts have gaps, which are what is written.
        batch_size: rows at once; no answer depends on it.
        context: the longest sequence the net was made for.
        out: a JSONL file.
        film: a file for the film of all answers, .html or .gif.
        trace: a JSONL file for what happened at every step.

    Raises:
        UserError: a prompt that makes no canvas, or a file that cannot be written.
    """
    tokenizer, specials, plan = checkpoint.tokenizer, special_ids(checkpoint, template), settings.plan
    assert tokenizer is not None, "the command line has asked for one"
    if film is not None:
        check_name(film)
    rows = make_rows(
        prompts,
        tokenizer,
        specials,
        new_tokens=settings.new_tokens,
        template=template,
        infill=infill,
        block_length=plan.block_length,
        context=context,
    )
    device = next(checkpoint.net.parameters()).device
    began = time.perf_counter()
    with ExitStack() as stack:
        writers = [stack.enter_context(writing(Path(name))) if name else None for name in (out, trace)]
        show = _jsonl(writers[0] or sys.stdout) if out or not sys.stdout.isatty() else _text(infill)
        numbered = answer_rows(
            lambda: settings.denoiser(checkpoint.net, specials.mask),
            rows,
            specials,
            plan,
            seeds=[settings.row_seed(number) for number in range(len(rows))],
            batch_size=batch_size,
            device=device,
            record=bool(film or trace),
        )
        answers = []
        for prompt, answer in zip(prompts, in_order(with_bar(numbered, len(rows), "sampling")), strict=True):
            show(prompt, answer, tokenizer.decode(answer.ids if infill else answer.gaps[0]))
            if writers[1] is not None and answer.trace is not None:
                writers[1].write(answer.trace.to_json() + "\n")
            answers.append(answer)
    if film is not None:
        pairs = enumerate(zip(prompts, answers, strict=True), 1)
        write_film(film, {f"{i} {p.text[:60]}": a.trace for i, (p, a) in pairs if a.trace}, piece(tokenizer))
    print(summary(answers, time.perf_counter() - began, hardware(device)), file=sys.stderr)


def special_ids(checkpoint: Checkpoint, template: ChatTemplate | None) -> Specials:
    """The checkpoint's ids; with a template, what ends its turns ends an answer."""
    from lit_llada.data.chat import turn_end

    eot = checkpoint.eot_id
    if template is not None and checkpoint.tokenizer is not None:
        end = turn_end(template, checkpoint.tokenizer)
        eot = eot if end is None else end  # it may have the id 0
    return Specials(checkpoint.mask_id, checkpoint.eos_id, eot, checkpoint.forbidden)


def with_bar(items: Iterator[Any], total: int, what: str) -> Iterator[Any]:
    """The same items, with a bar on the standard error where somebody looks and there is more than one."""
    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        yield from items
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def record(prompt: Prompt, answer: Answer, text: str) -> dict[str, Any]:
    """One line of the output. Its tokens are the answer's alone: no prompt, no canvas behind an end."""
    return {
        "prompt": prompt.given,
        "text": text,
        "tokens": answer.tokens,
        "forwards": answer.forwards,
        "steps": answer.steps,
        "seconds": round(answer.seconds, 4),
        "tokens_per_second": round(answer.tokens / answer.seconds, 2) if answer.seconds else 0.0,
        "finish": "eos" if answer.ended else "length",
    }


def summary(answers: Sequence[Answer], seconds: float, where: str) -> str:
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
    return lambda token: tokenizer.decode([token], MASK, END)


def _jsonl(file: Any) -> Callable[[Prompt, Answer, str], None]:
    def show(prompt: Prompt, answer: Answer, text: str) -> None:
        print(json.dumps(record(prompt, answer, text), ensure_ascii=False), file=file, flush=True)

    return show


def _text(infill: bool) -> Callable[[Prompt, Answer, str], None]:
    console = Console(highlight=False, soft_wrap=True)

    def show(prompt: Prompt, answer: Answer, text: str) -> None:
        note = "" if answer.ended or infill else CUT_OFF
        console.print(Text(printable(prompt.text), style="dim"))
        console.print(Text(printable(text)))
        console.print(Text(measured(answer.tokens, answer.forwards, answer.seconds, note) + "\n", style="dim italic"))

    return show
