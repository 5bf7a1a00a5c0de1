"""Where do records come from? Somebody's files, or what Python itself can ask and answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lit_llada.errors import UserError
from lit_llada.prepare.chunks import bar
from lit_llada.prepare.corpora.repl import repl_records
from lit_llada.prepare.corpora.twins import twin_records
from lit_llada.prepare.manifest import held_out_below
from lit_llada.prepare.reading import read_rows
from lit_llada.text.chat_template import Message
from lit_llada.text.records import Kind, conversations, form_of, prompt_of


class Row(NamedTuple):
    """A record on its way into a folder."""

    source: int  # the number of its file
    place: str  # what an error message calls it
    record: list[list[Message]]  # see records.py
    task: str = ""  # the kind of a line, in an embedded corpus
    held_out: bool | None = None  # None: a hash of the prompt decides


def bound_of(rows: Iterator[Row], share: float) -> int:
    """The hash below which a prompt is held out.

    Raises:
        UserError: there are no two prompts.
    """
    bound = held_out_below((prompt_of(row.record[0]) for row in rows), share, "record")
    if bound is None:
        raise UserError("all records of the inputs have one prompt; give at least two, to train on and to validate on")
    return bound


def file_rows(kind: Kind, sources: list[dict[str, Any]], quiet: bool = False) -> Iterator[Row]:
    """The records of the files; the form of each file is noted in its source.

    Raises:
        UserError: begins with the file and the row.
    """
    files = bar(sources, "reading", disable=quiet)
    for number, source in enumerate(files):
        form = None
        for row_number, row in read_rows(Path(source["name"])):
            place = f"{source['name']}:{row_number}"
            try:
                if form is None:
                    form = form_of(row, kind)
                    source["form"] = " + ".join(form)
                yield Row(number, place, conversations(row, form), str(row.get("task") or row.get("template") or ""))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None


def repl_rows(size: int, seed: int, share: float) -> Iterator[Row]:
    """The embedded conversations, see repl.py."""
    for prompt, answer, task, held_out in repl_records(size, seed, share):
        yield Row(0, task, [_dialogue(prompt, answer)], task, held_out)


def twin_rows(max_chars: int, seed: int, share: float) -> Iterator[Row]:
    """The embedded pairs, see twins.py."""
    for prompt, code, twin, held_out in twin_records(max_chars, seed, share):
        yield Row(0, prompt, [_dialogue(prompt, code), _dialogue(prompt, twin)], "", held_out)


def _dialogue(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
