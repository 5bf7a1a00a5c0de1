"""A bar changes nothing of what it counts, and is not drawn where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lit_llada import progress


def test_without_a_terminal_the_items_come_as_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(3):
            taken.append(i)
            yield i

    bar = progress.with_bar(items(), 3, "counting")
    assert taken == [] and next(bar) == 0 and taken == [0]
    assert [*bar] == [1, 2] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "drawn"), [(1, False), (3, True)])
def test_at_a_terminal_there_is_a_bar_if_there_is_more_than_one_item(
    total: int, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = StringIO()

    def terminal(**_: Any) -> Console:
        return Console(file=screen, force_terminal=True, width=80)

    monkeypatch.setattr(progress, "Console", terminal)
    assert [*progress.with_bar(range(total), total, "counting")] == [*range(total)]
    assert ("counting" in screen.getvalue()) == drawn
