"""Tables for TensorBoard's texts, with nothing in a model's words taken for Markdown or HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from lit_llada.sampling.frames import visible


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; its cells are Markdown, so words of a model go through :func:`escape` first."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """A text for one cell: on one line, and shown as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(visible(text), quote=False))
