"""The frames of a film: what stands where after each step, its colours and lines, and its text for a terminal.

The film, the terminal and TensorBoard's figure show the same cells: a :class:`Trace` is read here only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from lit_llada.sampling.trace import Trace

Colour = Literal["confidence", "order"]
RGB = tuple[int, int, int]

# From unsure to sure: orange to blue, which all eyes tell apart.
CONFIDENCE_STOPS = ("#b93a0b", "#ea8a35", "#fcd34d", "#b5dcb4", "#8cc4e8")
# From first to last: viridis without its darkest end.
ORDER_STOPS = ("#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#f0e51c")
MASK_SIGN, END_SIGN = "░", "∎"

# What stands at a position once an event of this reason has happened.
KIND_OF_REASON = {
    "selected": "written",
    "forced": "written",
    "remasked": "back",
    "ended": "ended",
    "grown": "mask",
    "shrunk": "gone",
}


class Cell(NamedTuple):
    """What stands at one position after a step.

    Attributes:
        kind: ``given``, ``mask``, ``written``, ``back`` (a mask where something was taken back), ``ended`` (EOS filled
            in behind an end) or ``gone``.
        token: its id.
        step: when it came to stand there; 0 for what was given.
        confidence: the probability it had when it was committed.
    """

    kind: str
    token: int
    step: int = 0
    confidence: float = 1.0


def frames(trace: Trace) -> list[list[Cell]]:
    """The cells of the canvas after each step, the given one first; a row that grows has more of them later."""
    cells = [Cell("mask" if token == trace.mask else "given", token) for token in trace.start]
    found, events = [cells], iter(trace.events)
    event = next(events, None)
    for step in range(1, trace.steps + 1):
        cells = list(cells)
        while event is not None and event.step == step:
            cells += [Cell("gone", trace.mask)] * (event.position + 1 - len(cells))
            cells[event.position] = Cell(KIND_OF_REASON[event.reason], event.new, step, event.confidence)
            event = next(events, None)
        while cells and cells[-1].kind == "gone":
            cells.pop()
        found.append(cells)
    return found


def widest(trace: Trace, piece: Callable[[int], str]) -> list[str]:
    """For each position the longest text that ever stood there: what keeps a film's layout still while it plays."""
    found = [shown(cell, piece) for cell in frames(trace)[0]]
    for event in trace.events:
        found += [""] * (event.position + 1 - len(found))
        cell = Cell(KIND_OF_REASON[event.reason], event.new)
        if cell.kind in ("written", "ended"):  # of two that are as long the later one, for the sake of its line end
            found[event.position] = max(shown(cell, piece), found[event.position], key=columns)
    return [text or MASK_SIGN for text in found]


def shown(cell: Cell, piece: Callable[[int], str]) -> str:
    """The text of a cell, as signs that can be seen."""
    if cell.kind in ("mask", "back"):
        return MASK_SIGN
    return END_SIGN if cell.kind == "ended" else visible(piece(cell.token)) or " "


def colour_of(cell: Cell, colour: Colour, steps: int) -> RGB | None:
    """The fill of a written cell; None for all others."""
    if cell.kind != "written":
        return None
    if colour == "confidence":
        return blend(CONFIDENCE_STOPS, cell.confidence)
    return blend(ORDER_STOPS, (cell.step - 1) / max(steps - 1, 1))


def blend(stops: Sequence[str], share: float) -> RGB:
    """The colour at 0..1 of a scale, with straight lines between its stops."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    a, b = rgb(stops[low]), rgb(stops[low + 1])
    red, green, blue = (round(x + (place - low) * (y - x)) for x, y in zip(a, b, strict=True))
    return red, green, blue


def rgb(colour: str) -> RGB:
    """``#rrggbb`` as three numbers."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def ink_on(fill: RGB) -> str:
    """Black or white, whichever has the better contrast (WCAG's luminance): at least 4.5 on any colour."""
    linear = [(x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4) for x in (y / 255 for y in fill)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def ansi(trace: Trace, piece: Callable[[int], str], step: int = -1, colour: Colour = "confidence") -> str:
    """One canvas as text for a terminal with 24-bit colours.

    Given tokens are plain, written ones on the colour of their confidence or order, masks dim, masks of what was taken
    back red. Control characters of the model's text are made visible and so do not reach the terminal.

    Args:
        trace: the run.
        piece: id -> text.
        step: which canvas; the last if nothing else is said.
        colour: what the colours say.
    """
    text = []
    for cell in frames(trace)[step]:
        sign, fill = shown(cell, piece), colour_of(cell, colour, trace.steps)
        if fill is not None:
            style = "48;2;{};{};{};38;2;{};{};{}".format(*fill, *rgb(ink_on(fill)))
        else:
            style = {"given": "", "back": "31"}.get(cell.kind, "2")
        text.append(f"\x1b[{style}m{sign}\x1b[0m" if style else sign)
        text.append("\n" * (sign.endswith("↵") and cell.kind in ("given", "written")))
    return "".join(text)


def visible(piece: str) -> str:
    """Line ends, tabs and other control characters as signs that take one column."""
    signs = {"\n": "↵", "\t": "→", "\r": "↵"}
    return "".join(signs.get(c, c if c.isprintable() else "·") for c in piece)


def columns(text: str) -> int:
    """How many columns of a terminal the text takes: two for wide characters, none for those that combine."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def flow(pieces: Sequence[str], width: int, break_at_ends: bool = True) -> list[list[tuple[int, str]]]:
    """Break tokens into lines of ``[(position, text), ..]``: behind the last space that fits, and after line ends.

    Args:
        pieces: visible text, one for each position.
        width: columns of a line; a piece that is longer is cut.
        break_at_ends: begin a new line after a line end.
    """
    lines: list[list[tuple[int, str]]] = [[]]
    used = 0
    for position, piece in enumerate(pieces):
        cut = piece if columns(piece) <= width else piece[:width]
        if lines[-1] and used + columns(cut) > width:
            word = _last_word(lines[-1], cut, min(width // 3, width - columns(cut)))
            lines.append(lines[-1][len(lines[-1]) - word :])
            del lines[-2][len(lines[-2]) - word :]
            used = sum(columns(text) for _, text in lines[-1])
        lines[-1].append((position, cut))
        used += columns(cut)
        if break_at_ends and piece.endswith("↵"):
            lines.append([])
            used = 0
    return lines if lines[-1] or len(lines) == 1 else lines[:-1]


def _last_word(line: list[tuple[int, str]], following: str, most: int) -> int:
    """How many tokens at the end of a full line belong to the word that does not fit; 0 where none of it is there."""
    if following.startswith(" "):
        return 0
    length = 0
    for count, (_, text) in enumerate(reversed(line)):
        if text.endswith(" "):
            return count
        length += columns(text)
        if length > most:
            break
        if text.startswith(" "):
            return count + 1 if count + 1 < len(line) else 0
    return 0
