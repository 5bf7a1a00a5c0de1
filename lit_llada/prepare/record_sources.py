"""Reads records from files, or takes those that a program generates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lit_llada.errors import UserError
from lit_llada.prepare.chunks import bar
from lit_llada.prepare.corpora.repl import repl_records
from lit_llada.prepare.corpora.twins import twin_records
from lit_llada.prepare.reading import read_rows
from lit_llada.prepare.splits import Bounds, Fractions, Split, find_bounds
from lit_llada.text.chat_template import Message
from lit_llada.text.records import Kind, conversations, form_of, prompt_of


class SourceRecord(NamedTuple):
    """A record on its way into a folder."""

    source: int  # the number of its file
    place: str  # what an error message calls it
    conversations: list[list[Message]]  # one, or of a pair chosen and rejected: see text/records.py
    task: str = ""  # the kind of a line, in an embedded corpus
    split: Split | None = None  # None: a hash of the prompt decides

    @property
    def prompt(self) -> str:
        """All messages before the first answer, as one text."""
        return prompt_of(self.conversations[0])


def prompt_bounds(records: Iterator[SourceRecord], fractions: Fractions) -> Bounds:
    """The bounds by which prompts are held out.

    Raises:
        UserError: there are fewer prompts than splits.
    """
    bounds = find_bounds((record.prompt for record in records), fractions, "record")
    if bounds is None:
        raise UserError("all records of the inputs have one prompt; give at least two, to train on and to validate on")
    return bounds


def records_of_files(kind: Kind, sources: list[dict[str, Any]], quiet: bool = False) -> Iterator[SourceRecord]:
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
                task = str(row.get("task") or row.get("template") or "")  # as version 0.1.0 called it
                yield SourceRecord(number, place, conversations(row, form), task)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None


def records_of_repl(size: int, seed: int, fractions: Fractions) -> Iterator[SourceRecord]:
    """The embedded conversations, see corpora/repl.py."""
    for prompt, answer, task, split in repl_records(size, seed, fractions):
        yield SourceRecord(0, task, [_dialogue(prompt, answer)], task, split)


def records_of_twins(max_chars: int, seed: int, fractions: Fractions) -> Iterator[SourceRecord]:
    """The embedded pairs, see corpora/twins.py."""
    for prompt, code, twin, split in twin_records(max_chars, seed, fractions):
        yield SourceRecord(0, prompt, [_dialogue(prompt, code), _dialogue(prompt, twin)], "", split)


def _dialogue(prompt: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
