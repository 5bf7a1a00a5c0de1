"""A result is a table: printed as text, and as HTML in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from lit_llada.evaluation.result import Result


@dataclass(frozen=True)
class Toy(Result):
    word: str

    def table(self) -> Table:
        table = Table("word", "number")
        table.add_row(self.word, "7")
        return table


def test_print_shows_the_whole_table_as_text() -> None:
    text = str(Toy("long" * 60))  # wider than any terminal: nothing is cut
    assert "long" * 60 in text and "number" in text and "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_notebook_shows_html_in_which_words_are_only_words() -> None:
    shown = Toy("<b>x</b>")._repr_mimebundle_()
    assert shown["text/plain"] == str(Toy("<b>x</b>"))
    assert shown["text/html"].startswith("<pre>") and "&lt;b&gt;x&lt;/b&gt;" in shown["text/html"]
    assert "<b>x" not in shown["text/html"]


def test_rich_prints_it_as_a_table() -> None:
    console = Console(width=60)
    with console.capture() as capture:
        console.print(Toy("here"))
    assert "here" in capture.get() and "Toy(" not in capture.get()
