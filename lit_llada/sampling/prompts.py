"""Prompts from words, files and streams, and the canvas of each: a continuation, an answer, or gaps."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Canvas, prompt_canvases
from lit_llada.text.chat_template import ChatTemplate, Message
from lit_llada.text.specials import Specials
from lit_llada.text.template_choice import choose_template
from lit_llada.text.tokenizer import Tokenizer

GAP = re.compile(r"\[\.\.\.(\d*)\]")  # [...] or, with a length in tokens, [...24]


class Prompt(NamedTuple):
    """A text, or a conversation that waits for its next answer."""

    text: str
    messages: list[Message] | None = None

    @property
    def given(self) -> str | list[Message]:
        """What the user gave."""
        return self.text if self.messages is None else self.messages


def read_prompts(words: Sequence[str], file: str | None) -> list[Prompt]:
    """Prompts of the command line (``-`` stands for the standard input) and of a file.

    Raises:
        UserError: there are none, or the file is missing, empty or of another form.
    """
    prompts = []
    for word in words:
        prompts += parse_prompts(sys.stdin.read(), "the standard input") if word == "-" else [Prompt(word)]
    if file is not None:
        prompts += parse_prompts(read_text(file), file)
    if not prompts:
        raise UserError("there is no prompt; give one, or --file FILE, or - for the standard input")
    return prompts


def read_text(file: str) -> str:
    """A file's text.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{file} cannot be read: {reason}") from None


def parse_prompts(text: str, name: str) -> list[Prompt]:
    """One prompt a line; JSONL where the name ends so or the first line is an object. Blank lines do not count.

    Raises:
        UserError: no line, or one that is not an object with ``prompt`` or ``messages``.
    """
    if not text.strip():
        raise UserError(f"{name} is empty; write one prompt a line")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not name.endswith(".jsonl") and not lines[0][1].startswith('{"'):
        return [Prompt(line) for _, line in lines]
    return [_prompt(record) for record in parse_records([line for _, line in lines], name)]


def parse_records(lines: Sequence[str], name: str, needed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """JSONL as objects, each with the ``needed`` fields as strings.

    Raises:
        UserError: it names the line.
    """
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        where = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object; write one a line")
        if lacking := next((key for key in needed if not isinstance(record.get(key), str)), None):
            raise UserError(f"{where} has no text {lacking!r}; it needs {' and '.join(needed)}")
        records.append(record | {"_where": where})
    return records


def make_canvases(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    specials: Specials,
    *,
    new_tokens: int,
    template: ChatTemplate | None = None,
    infill: bool = False,
    block_length: int | None = None,
    context: int | None = None,
) -> list[Canvas]:
    """The canvas of every prompt.

    Args:
        prompts: texts and conversations.
        tokenizer: the checkpoint's tokenizer.
        specials: its special ids.
        new_tokens: masks behind a prompt, and in a gap that does not say how many.
        template: given, every text is a user's message; None takes texts as they are.
        infill: texts have gaps, and nothing is written behind them.
        block_length: length of a block, which must divide ``new_tokens``; gaps may have any length.
        context: the longest sequence the net was made for; None for no limit.

    Raises:
        UserError: it names the prompt.
    """
    for number, prompt in enumerate(prompts, 1):
        if tokenizer.mask in prompt.text:
            hint = "mark a gap with [...] and use --infill"
            raise UserError(f"prompt {number} spells the mask token {tokenizer.mask}; {hint}, or take it out")
    if infill:
        return [_gapped(p, i, tokenizer, specials, new_tokens, context) for i, p in enumerate(prompts, 1)]
    ids = [_ids(prompt, number, tokenizer, template) for number, prompt in enumerate(prompts, 1)]
    return prompt_canvases(ids, new_tokens, specials, block_length=block_length, context=context)


def template_of(checkpoint: Checkpoint, name: str | None = None) -> ChatTemplate:
    """The chat template asked for by name or path; else the checkpoint's, or the first that its tokenizer can write.

    Raises:
        UserError: there is no such template.
    """
    tokenizer, source = checkpoint.tokenizer, checkpoint.chat_template
    assert tokenizer is not None, "the caller has asked for one"
    if name is not None or source is None:
        return choose_template(name or "auto", tokenizer, None)
    bos = json.loads(checkpoint.files.get("tokenizer_config.json", "{}")).get("bos_token") or ""
    bos = bos if isinstance(bos, str) else bos["content"]
    return ChatTemplate(source, bos, tokenizer.eos, "the checkpoint's chat template")


def _prompt(record: dict[str, Any]) -> Prompt:
    text, messages = record.get("prompt"), record.get("messages")
    if isinstance(text, str):
        return Prompt(text)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        raise UserError(f"{record['_where']} has neither a text 'prompt' nor a list 'messages'; give one of them")
    return Prompt(str(messages[-1].get("content", "")), messages)


def _ids(prompt: Prompt, number: int, tokenizer: Tokenizer, template: ChatTemplate | None) -> Canvas:
    if prompt.messages is None and (template is None or not prompt.text):
        return tokenizer.encode(prompt.text)
    if template is None:
        raise UserError(f"prompt {number} is a conversation; add --chat, so that the checkpoint's template writes it")
    messages = prompt.messages or [{"role": "user", "content": prompt.text}]
    try:
        return template.encode(messages, tokenizer, add_generation_prompt=True).ids
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from None


def _gapped(
    prompt: Prompt, number: int, tokenizer: Tokenizer, specials: Specials, new_tokens: int, context: int | None
) -> Canvas:
    first, *rest = GAP.split(prompt.text)  # text, length, text, length, text
    if not rest or prompt.messages is not None:
        raise UserError(f"prompt {number} has no gap; mark one with [...], or with its length in tokens: [...24]")
    canvas = tokenizer.encode(first)
    for length, text in zip(rest[::2], rest[1::2], strict=True):
        canvas += [specials.mask] * int(length or new_tokens) + tokenizer.encode(text)
    if specials.mask not in canvas:
        raise UserError(f"prompt {number}: its gaps have no tokens; give them a length, such as [...24]")
    if context and len(canvas) > context:
        raise UserError(
            f"prompt {number}: {len(canvas)} tokens with its gaps exceed the context of {context}; shorten it"
        )
    return canvas
