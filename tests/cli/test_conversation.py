"""What a reader sees of an answer and when, and what the commands of a conversation do."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.cli.conversation import Chat
from lit_llada.errors import UserError
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.settings import Settings
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.tokenizer import Tokenizer

T = Tokenizer.byte()


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
