"""Every form that people's rows have becomes the same conversations; what is none is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from lit_llada.errors import UserError
from lit_llada.text.chat_template import ChatTemplate, Encoded
from lit_llada.text.records import conversations, encode, form_of, prompt_of, shorten
from lit_llada.text.tokenizer import Tokenizer

USER, BOT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
SYSTEM = {"role": "system", "content": "be brief"}


def read(row: dict[str, Any], kind: Any = "chat") -> list[list[dict[str, str]]]:
    return conversations(row, form_of(row, kind))


@pytest.mark.parametrize("row", [
    {"prompt": "2 + 2?", "response": "4"},
    {"prompt": "2 + 2?", "completion": "4"},
    {"prompt": [USER], "completion": [BOT]},
    {"prompt": "2 + 2?", "answer": "4", "source": "of no interest"},
    {"question": "2 + 2?", "answer": "4"},
    {"instruction": "2 + 2?", "input": "", "output": "4"},
    {"messages": [USER, BOT]},
    {"messages": [USER, BOT, {"role": "user", "content": "and now?"}]},
    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
])  # fmt: skip
def test_forms_of_chat(row: dict[str, Any]) -> None:
    assert read(row) == [[USER, BOT]]


def test_alpacas_input_follows_the_instruction_and_a_system_field_comes_first() -> None:
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "be brief"}
    assert read(row) == [[SYSTEM, {"role": "user", "content": "Add.\n\n2, 2"}, BOT]]


@pytest.mark.parametrize("row", [
    {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    {"prompt": [USER], "chosen": [BOT], "rejected": [WRONG]},
    {"prompt": "2 + 2?", "chosen": [USER, BOT], "rejected": [USER, WRONG]},
    {"chosen": [USER, BOT], "rejected": [USER, WRONG]},
    {"chosen": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "rejected": [USER, WRONG]},
])  # fmt: skip
def test_forms_of_preference(row: dict[str, Any]) -> None:
    assert read(row, "preference") == [[USER, BOT], [USER, WRONG]]


def bad(message: str, row: Any, kind: str = "chat") -> Any:
    return pytest.param(row, kind, message, id=message)


@pytest.mark.parametrize(("row", "kind", "message"), [
    bad(r"no chat record in the fields text, id; known are messages; .*prompt \+ response", {"text": "x", "id": 1}),
    bad("no preference record in the fields prompt", {"prompt": "x"}, "preference"),
    bad("field 'answer' is missing", {"prompt": "x", "answer": None}),
    bad("answer .message 2. is empty", {"prompt": "x", "answer": "  "}),
    bad("answer .message 4. is empty", {"messages": [USER, BOT, USER, BOT | {"content": ""}]}),
    bad("message 1 has no role", {"messages": [{"content": "x"}]}),
    bad("message 2 has no content", {"messages": [USER, {"role": "assistant"}]}),
    bad("message 1 has no role", {"messages": ["x"]}),
    bad("message 1: unknown role 'tool'; known are system, user", {"messages": [{"role": "tool", "content": "x"}]}),
    bad("message 1: its content is list, not text", {"messages": [{"role": "user", "content": []}]}),
    bad("half a surrogate pair", {"prompt": "\ud800", "answer": "x"}),
    bad("field 'messages' is str; give a list of messages", {"messages": "x"}),
    bad("field 'prompt' is int; give text or a list", {"prompt": 1, "answer": "x"}),
    bad("no message of the assistant", {"messages": [USER]}),
    bad("first message is the assistant's", {"messages": [BOT, USER, BOT]}),
    bad("are the same", {"prompt": "x", "chosen": "y", "rejected": "y"}, "preference"),
    bad("no prompt: give a field 'prompt'", {"chosen": "y", "rejected": "z"}, "preference"),
    bad("here their prompts do", {"chosen": [USER, BOT], "rejected": [SYSTEM, USER, WRONG]}, "preference"),
])  # fmt: skip
def test_what_is_no_record_is_one_line(row: dict[str, Any], kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(row, kind)
    assert "\n" not in str(caught.value)


def test_the_prompt_is_all_before_the_first_answer() -> None:
    long, short = [SYSTEM, USER, BOT, USER, WRONG], [SYSTEM, USER, WRONG]
    assert prompt_of(long) == prompt_of(short) != prompt_of([USER, BOT])
    assert "4" not in prompt_of(long)


def test_ids_end_with_the_last_answer_and_of_a_pair_only_that_one_counts() -> None:
    tokenizer = Tokenizer.byte()
    template = ChatTemplate.named("plain", tokenizer)
    [one] = encode([[USER, BOT, USER, WRONG]], template, tokenizer)
    assert [tokenizer.decode(one.ids[a:b], eos="|") for a, b in one.answers] == ["4|", "5|"]
    assert one.answers[-1][1] == len(one.ids)
    first, second = encode([[USER, BOT, USER, BOT], [USER, BOT, USER, WRONG]], template, tokenizer)
    assert [len(side.answers) for side in (first, second)] == [1, 1]
    assert second.ids[slice(*second.answers[0])] == [ord("5"), tokenizer.eos_id]


def test_long_records_are_dropped_cut_or_refused() -> None:
    record = [Encoded(list(range(10)), [(2, 4), (8, 10)])]
    assert shorten(record, 10, "refuse") is record
    assert shorten(record, 9, "drop") is None
    assert shorten(record, 9, "cut") == [Encoded(list(range(9)), [(2, 4), (8, 9)])]
    assert shorten(record, 8, "cut") == [Encoded(list(range(4)), [(2, 4)])]  # what is left must end with an answer
    with pytest.raises(UserError, match="10 tokens, but max_length is 9"):
        shorten(record, 9, "refuse")
    with pytest.raises(UserError, match="the prompt fills max_length 2"):
        shorten(record, 2, "cut")
    pair = [Encoded([1, 2, 3], [(1, 3)]), Encoded([1, 2, 3, 4], [(1, 4)])]
    assert [len(one.ids) for one in shorten(pair, 3, "cut") or []] == [3, 3]
    assert shorten(pair, 3, "drop") is None  # both sides go
