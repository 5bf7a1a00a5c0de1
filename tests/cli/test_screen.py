"""What a reader sees of a canvas: settled text, guesses, masks, and nothing that a terminal would obey."""

from __future__ import annotations

import io
from collections.abc import Iterator

import torch
from rich.console import Console

from lit_llada.cli.screen import Reader, printable, tail, watch
from lit_llada.sampling.canvas import State
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

T = Tokenizer.byte()
IDS, M = Specials(T.mask_id, T.eos_id), T.mask_id


def state(row: list[int], guesses: dict[int, int] | None = None) -> State:
    """A state that shows ``row``, with guesses at some of its masks."""
    canvas = torch.tensor([row])
    zero, predicted = torch.zeros(canvas.shape), canvas.clone()
    probability = zero.clone()
    for position, token in (guesses or {}).items():
        predicted[0, position], probability[0, position] = token, 0.5
    real = torch.ones_like(canvas, dtype=torch.bool)
    return State(1, canvas, real, zero.byte(), zero, zero, predicted, probability, torch.ones(1, dtype=torch.int64))


def reader(plan: Plan = Plan(), start: int = 1) -> Reader:  # noqa: B008
    return Reader(T, IDS, plan, start)


# ---------------------------------------------------------------------- what a reader sees


def test_settled_is_what_no_later_step_changes() -> None:
    row = [0, 1, 2, 3, 4, 5, M, 7, M]
    assert reader().settled(state(row)) == [1, 2, 3, 4, 5]
    verify = Plan(count="threshold", remask="verify", block_length=4)
    assert reader(verify).settled(state(row)) == [1, 2, 3, 4]
    aligned = Plan(count="threshold", remask="verify", block_length=4, aligned=True)
    assert reader(aligned).settled(state(row)) == [1, 2, 3]
    assert reader(Plan(remask="remdm")).settled(state(row)) == []
    assert reader(Plan(remask="remdm")).settled(state(row[:6])) == [1, 2, 3, 4, 5]


def test_nothing_behind_an_end_is_settled_text() -> None:
    assert reader().settled(state([0, 1, T.eos_id, 3, M])) == [1]
    assert reader().text(state([0, *b"ab", T.eos_id])) == "ab"


def test_the_picture_has_text_guesses_ends_and_masks() -> None:
    row = [0, *"é".encode(), M, M, M, ord("c"), T.eos_id, ord("d")]
    picture = reader().picture(state(row, {3: ord("b"), 4: T.eos_id}))
    assert picture.plain == "éb∎░c"
    dim = {i for span in picture.spans if span.style == "dim" for i in range(span.start, span.end)}
    assert dim == {1, 2, 3}


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x9b") == "a�[2Jb\tc\nd�"


def test_only_the_tail_of_a_long_answer_is_drawn() -> None:
    from rich.text import Text

    console = Console(width=10, height=5, file=io.StringIO())
    assert tail(Text("\n".join("abcdef")), console).plain == "d\ne\nf"
    assert tail(Text("one"), console).plain == "one"


def test_without_a_terminal_text_comes_as_it_settles() -> None:
    out = io.StringIO()
    console = Console(file=out, soft_wrap=True)
    seen = []

    def states() -> Iterator[State]:
        for row in ([M, M, M, M], [97, M, M, 98], [97, 0xC3, M, 98], [97, 0xC3, 0xA9, 98]):
            yield state([0, *row])
            seen.append(out.getvalue())

    _, stopped = watch(states(), reader(), console)
    assert seen == ["", "a", "a", "aéb"]  # half a character waits for its other half
    assert out.getvalue() == "aéb\n"
    assert not stopped
