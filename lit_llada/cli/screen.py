"""Shows a canvas at a terminal while it is filled: committed text, guesses, masks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lit_llada.sampling.canvas import State
from lit_llada.sampling.frames import END_SIGN, MASK_SIGN
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials, until_end

if TYPE_CHECKING:
    from lit_llada.text.tokenizer import Tokenizer

FRAMES = 15  # pictures of the canvas in a second, at most


def printable(text: str) -> str:
    """The text without control characters, which a model of bytes may write and a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)


class Reader:
    """Reads the answer in the first row of a state.

    Args:
        tokenizer: the vocabulary.
        specials: the mask and the ends.
        plan: whether committed tokens may be taken back.
        start: where in the row the answer begins.
    """

    def __init__(self, tokenizer: Tokenizer, specials: Specials, plan: Plan, start: int) -> None:
        self.tokenizer, self.specials, self.plan, self.start = tokenizer, specials, plan, start

    def settled(self, state: State) -> list[int]:
        """The beginning of the answer that no later step can change, up to (not including) its first end."""
        answer = state.canvas[0][state.real[0]].tolist()[self.start :]
        stop = next((i for i, token in enumerate(answer) if token == self.specials.mask), len(answer))
        if self.plan.remask != "none" and stop < len(answer):  # only what is left behind with its block
            width, shift = self.plan.block_length or len(answer), self.start if self.plan.aligned else 0
            stop = max((stop + shift) // width * width - shift, 0)
        return until_end(answer[:stop], self.specials.ends)[0]

    def text(self, state: State) -> str:
        """What is settled, as text."""
        return self.tokenizer.decode(self.settled(state))

    def picture(self, state: State) -> Text:
        """Everything up to the first committed end: committed text, dim guesses, masks, and ∎ for a guessed end.

        Tokens of one kind that stand together are decoded together, since a character may take several of them.
        """
        parts = (x[0][state.real[0]][self.start :].tolist() for x in (state.canvas, state.predicted, state.probability))
        pairs = []
        for token, guess, chance in zip(*parts, strict=True):
            if token in self.specials.ends:
                break
            if token != self.specials.mask:
                pairs.append(("", token))
            elif chance == 0:
                pairs.append((MASK_SIGN, token))
            else:
                pairs.append((END_SIGN if guess in self.specials.ends else "guess", guess))
        text = Text()
        for kind, run in groupby(pairs, lambda pair: pair[0]):
            tokens = [token for _, token in run]
            piece = kind * len(tokens) if kind in (MASK_SIGN, END_SIGN) else printable(self.tokenizer.decode(tokens))
            text.append(piece, style="dim" if kind else "")
        return text


def watch(states: Iterable[State], reader: Reader, console: Console) -> tuple[State, bool]:
    """Show the states, then the settled text: a live picture on a terminal, elsewhere text as it settles.

    Returns:
        The last state, and whether Ctrl-C came before the end.
    """
    state, stopped, shown, drawn = None, False, "", 0.0
    live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
    with live if console.is_terminal else nullcontext():
        try:
            for state in states:
                if not console.is_terminal:
                    shown += _write_on(reader.text(state).rstrip("�"), shown, console)
                elif time.monotonic() > drawn + 1 / FRAMES:
                    live.update(tail(reader.picture(state), console), refresh=True)
                    drawn = time.monotonic()
        except KeyboardInterrupt:
            stopped = True
    if state is None:
        raise KeyboardInterrupt
    _write_on(reader.text(state), shown, console)
    console.print()
    return state, stopped


def tail(text: Text, console: Console) -> Text:
    """The last lines that fit on the screen: what stands above it could not be drawn again."""
    lines = text.wrap(console, console.width)
    return Text("\n").join(lines[-max(console.height - 2, 1) :])


def _write_on(text: str, shown: str, console: Console) -> str:
    """Print what has come behind ``shown``, and return it."""
    more = text[len(shown) :] if text.startswith(shown) else ""
    console.print(Text(printable(more)), end="")
    console.file.flush()
    return more
