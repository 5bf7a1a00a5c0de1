"""Cells after each step, lines that keep words together, colours one can read on, and text that no terminal obeys."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_llada.sampling.frames import (
    CONFIDENCE_STOPS,
    ORDER_STOPS,
    Cell,
    ansi,
    blend,
    columns,
    flow,
    frames,
    ink_on,
    rgb,
    visible,
    widest,
)  # fmt: skip
from lit_llada.sampling.trace import Event, Trace

MASK = 9
EVENTS = [
    Event(1, 1, MASK, 4, 0.5, 1.0, "selected"),
    Event(2, 1, 4, MASK, 0.0, 0.0, "remasked"),
    Event(2, 2, -1, MASK, 0.0, 0.0, "grown"),
    Event(3, 1, MASK, 5, 0.9, 1.0, "forced"),
    Event(3, 2, MASK, -1, 0.0, 0.0, "shrunk"),
]
TRACE = Trace([3, MASK], MASK, EVENTS, steps=4)


def test_cells_after_each_step() -> None:
    start = Cell("given", 3)
    assert frames(TRACE) == [
        [start, Cell("mask", MASK)],
        [start, Cell("written", 4, 1, 0.5)],
        [start, Cell("back", MASK, 2, 0.0), Cell("mask", MASK, 2, 0.0)],
        [start, Cell("written", 5, 3, 0.9)],
        [start, Cell("written", 5, 3, 0.9)],
    ]
    assert [[cell.token for cell in cells] for cells in frames(TRACE)] == TRACE.canvases()


def test_the_room_of_a_cell_is_that_of_its_longest_text() -> None:
    assert widest(TRACE, {3: "given", 4: "longer", 5: "x\n"}.__getitem__) == ["given", "longer", "░"]
    assert widest(TRACE, {3: "given", 4: "xy", 5: "x\n"}.__getitem__) == ["given", "x↵", "░"]


def test_lines_break_after_words_line_ends_and_at_the_margin() -> None:
    assert flow(["ab", "c↵", "de", "f", "gh"], 3) == [[(0, "ab")], [(1, "c↵")], [(2, "de"), (3, "f")], [(4, "gh")]]
    assert flow([], 3) == [[]] and flow(["abcd"], 3) == [[(0, "abc")]]
    assert flow(["↵", "↵"], 3, break_at_ends=False) == [[(0, "↵"), (1, "↵")]]
    assert ["".join(text for _, text in line) for line in flow(list("one two three"), 9)] == ["one two ", "three"]
    words = ["one", " two", " th", "ree"]
    assert ["".join(text for _, text in line) for line in flow(words, 12)] == ["one two", " three"]


@given(st.lists(st.text("ab \n", min_size=1, max_size=5), max_size=40), st.integers(5, 20), st.booleans())
def test_lines_hold_every_position_once_and_fit(pieces: list[str], width: int, ends: bool) -> None:
    lines = flow([visible(piece) for piece in pieces], width, ends)
    assert [i for line in lines for i, _ in line] == list(range(len(pieces)))
    assert all(sum(columns(text) for _, text in line) <= width for line in lines)


def test_control_characters_take_one_visible_column() -> None:
    assert visible("a\n\tb\x00\x1b\u202e") == "a↵→b···"
    assert (columns("abc"), columns("日本"), columns("e\u0301")) == (3, 4, 1)


@pytest.mark.parametrize("stops", [CONFIDENCE_STOPS, ORDER_STOPS])
def test_every_colour_can_be_read_on(stops: tuple[str, ...]) -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [x / 255 / 12.92 if x <= 10 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for i in range(101):
        fill = blend(stops, i / 100)
        low, high = sorted((luminance(fill), luminance(rgb(ink_on(fill)))))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert blend(stops, -1) == rgb(stops[0]) and blend(stops, 2) == rgb(stops[-1])


def test_a_terminal_sees_colours_and_no_commands_of_the_model() -> None:
    hostile = {3: "\x1b[2J\x07", 4: "x", 5: "\x9b31m\n"}.__getitem__
    last = ansi(TRACE, hostile)
    assert re.sub(r"\x1b\[(48;2;\d+;\d+;\d+;38;2;\d+;\d+;\d+|0|2|31)m", "", last) == "·[2J··31m↵\n"
    assert "\x1b[31m░\x1b[0m\x1b[2m░\x1b[0m" in ansi(TRACE, hostile, 2)
    assert ansi(TRACE, hostile, 1, "order") != ansi(TRACE, hostile, 1)
