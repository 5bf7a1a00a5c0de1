"""A bar for long work, where somebody looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def with_bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The same items, with a bar on the standard error if that is a terminal and there is more than one item."""
    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        yield from items
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)
