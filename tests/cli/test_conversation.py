"""What a reader sees of an answer and when, and what the commands of a conversation do."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.cli.conversation import Chat
from lit_llada.cli.screen import Reader, printable, tail, watch
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import State
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.settings import Settings
from lit_llada.text.chat_template import ChatTemplate
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


# ---------------------------------------------------------------------- the conversation


@pytest.fixture
def chat(checkpoint: Checkpoint) -> Chat:
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    settings = Settings(Plan(block_length=4), new_tokens=8)
    return Chat(checkpoint, ChatTemplate.named("plain", T), settings, console=console)


def said(chat: Chat) -> str:
    """What was printed since the last call."""
    file = chat.console.file
    text = file.getvalue()  # type: ignore[attr-defined]
    file.truncate(0)
    file.seek(0)
    return text


def test_turns_add_up_and_can_be_undone(chat: Chat) -> None:
    chat.answer("one")
    assert re.search(r"\n\d tokens?, 8 forwards, [\d.]+ tokens a second", said(chat))
    first = list(chat.messages)
    assert [m["role"] for m in first] == ["user", "assistant"]
    assert T.eos not in first[1]["content"]
    chat.answer("two")
    assert chat.messages[:2] == first
    assert len(chat.messages) == 4
    chat.command("/undo")
    assert chat.messages == first
    chat.command("/reset")
    assert chat.messages == []
    with pytest.raises(UserError, match="no turn to forget"):
        chat.command("/undo")


def test_the_same_turn_gets_the_same_answer(chat: Chat) -> None:
    chat.command("/set temperature 1")
    chat.answer("one")
    chat.answer("two")
    one = chat.messages[1]["content"]
    chat.command("/reset")
    chat.answer("one")
    assert chat.messages[1]["content"] == one
    chat.command("/reset")
    chat.command("/set seed 1")
    chat.answer("one")
    assert chat.messages[1]["content"] != one


def test_what_does_not_fit_is_told_and_forgotten(chat: Chat) -> None:
    chat.context = 40
    chat.answer("one")
    before = list(chat.messages)
    with pytest.raises(UserError, match="exceed the context of 40; /undo forgets its last turn"):
        chat.answer("a question that is longer than this")
    with pytest.raises(UserError, match="spells the special token"):
        chat.answer(T.mask)
    assert chat.messages == before


def test_commands(chat: Chat, tmp_path: Path) -> None:
    chat.command("/set count threshold")
    chat.command("/set new_tokens 4")
    assert (chat.settings.plan.count, chat.settings.new_tokens) == ("threshold", 4)
    chat.command("/plan")
    assert "* count threshold" in said(chat)
    chat.command("/help")
    assert "/set NAME VALUE" in said(chat)
    for wrong, line in {
        "/set steps 4": "count threshold decides the number of steps",
        "/set temprature 1": "did you mean temperature",
        "/set temperature": "/set takes a name and a value",
        "/film x.html": "once there is an answer",
        "/save x.jsonl": "once there is an answer",
        "/dance": "/dance is not a command",
        "/": "/ is not a command",
    }.items():
        with pytest.raises(UserError, match=line):
            chat.command(wrong)
    chat.command("/system be brief")
    chat.answer("one")
    chat.command(f"/save {tmp_path / 'talk.jsonl'}")
    [line] = (tmp_path / "talk.jsonl").read_text().splitlines()
    messages = json.loads(line)["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    chat.command("/system")
    assert chat.system is None


def test_the_film_of_an_answer(chat: Chat, tmp_path: Path) -> None:
    chat.answer("one")
    chat.command(f"/film {tmp_path / 'film.html'}")
    assert "<html" in (tmp_path / "film.html").read_text().lower()
