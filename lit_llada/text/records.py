"""Reads rows of data in many forms as conversations, and turns these into ids with their answers marked.

A record is one conversation (chat) or two that differ in their last message (preference: chosen, then rejected).
Nothing is read or written here. Errors say what is wrong; whoever knows the file and the row says where.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from lit_llada.errors import UserError

if TYPE_CHECKING:
    from lit_llada.text.chat_template import ChatTemplate, Encoded, Message
    from lit_llada.text.tokenizer import Tokenizer

Kind = Literal["chat", "preference"]
Long = Literal["drop", "cut", "refuse"]
Form = tuple[str, ...]  # the fields by which a row's form is known

FORMS: dict[str, list[Form]] = {
    "chat": [
        ("messages",),
        ("conversations",),  # ShareGPT
        ("instruction", "output"),  # Alpaca, which may have an input
        ("prompt", "response"),
        ("prompt", "completion"),
        ("prompt", "answer"),
        ("question", "answer"),
    ],
    "preference": [("prompt", "chosen", "rejected"), ("chosen", "rejected")],
}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def form_of(keys: Iterable[str], kind: Kind) -> Form:
    """The first form of `kind` whose fields are all there.

    Raises:
        UserError: there is none; it names what was found and what would do.
    """
    found = list(map(str, keys))
    for form in FORMS[kind]:
        if set(form) <= set(found):
            return form
    known = "; ".join(" + ".join(form) for form in FORMS[kind])
    raise UserError(f"no {kind} record in the fields {', '.join(found) or 'of nothing'}; known are {known}")


def conversations(row: dict[str, Any], form: Form) -> list[list[Message]]:
    """The conversation of a row, or its two; each ends with an answer (later messages have none, and are left out).

    Raises:
        UserError: a field is missing, a message has no role or content, an answer is empty, a pair is none.
    """
    for field in form:
        if row.get(field) is None:
            raise UserError(f"field {field!r} is missing; every row of a file must be of one form")
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if "rejected" in form:
        prompt = _messages(row["prompt"], "user", "prompt") if "prompt" in form else []
        return _pair(*(_answered(system, prompt, row[side], side) for side in ("chosen", "rejected")))
    if len(form) == 1:
        return [_checked([*system, *_messages(row[form[0]], None, form[0])])]
    asked, answer = form
    question = row[asked]
    if asked == "instruction" and row.get("input"):
        question = f"{question}\n\n{row['input']}"
    return [_checked([*system, *_messages(question, "user", asked), *_messages(row[answer], "assistant", answer)])]


def prompt_of(messages: list[Message]) -> str:
    """All that comes before the first answer, as one text: records that begin alike must not be on both sides."""
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return "\0".join(message["role"] + "\0" + message["content"] for message in messages[:first])


def encode(record: list[list[Message]], template: ChatTemplate, tokenizer: Tokenizer) -> list[Encoded]:
    """Ids up to the end of the last answer, and the answers: all of a conversation, the last one of each of a pair.

    Raises:
        UserError: see ``ChatTemplate.encode``.
    """
    encoded = [template.encode(messages, tokenizer) for messages in record]
    if len(record) > 1:
        encoded = [one._replace(answers=one.answers[-1:]) for one in encoded]
    return [one._replace(ids=one.ids[: one.answers[-1][1]]) for one in encoded]


def shorten(record: list[Encoded], max_length: int, long: Long) -> list[Encoded] | None:
    """What is left of a record longer than `max_length` tokens: nothing, or its beginning.

    A cut answer has lost its end; an answer that would begin after the cut is no answer any more.

    Raises:
        UserError: `long` is ``refuse``, or the prompt alone is too long to be cut.
    """
    longest = max(len(one.ids) for one in record)
    if longest <= max_length:
        return record
    if long == "refuse":
        raise UserError(f"{longest} tokens, but max_length is {max_length}; raise it, or give --long drop or cut")
    if long == "drop":
        return None
    kept = []
    for one in record:
        answers = [(start, min(stop, max_length)) for start, stop in one.answers if start < max_length]
        if not answers:
            raise UserError(f"the prompt fills max_length {max_length}; raise it, or give --long drop")
        kept.append(one._replace(ids=one.ids[: answers[-1][1]], answers=answers))
    return kept


def _messages(value: Any, role: str | None, field: str) -> list[Message]:
    """A text in one role, or a list of messages."""
    if role is not None and isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list):
        wanted = "text or a list of messages" if role else "a list of messages"
        raise UserError(f"field {field!r} is {type(value).__name__}; give {wanted}")
    return [_message(message, number) for number, message in enumerate(value, 1)]


def _message(message: Any, number: int) -> Message:
    message = message if isinstance(message, dict) else {}
    role, content = (message.get(name, message.get(other)) for name, other in (("role", "from"), ("content", "value")))
    if role is None or content is None:
        lacks = "role; give it system, user or assistant" if role is None else "content; give it a text"
        raise UserError(f"message {number} has no {lacks}")
    if role not in ROLES:
        raise UserError(f"message {number}: unknown role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"message {number}: its content is {type(content).__name__}, not text")
    try:
        content.encode()
    except UnicodeEncodeError:  # JSON can spell it
        raise UserError(f"message {number}: its content holds half a surrogate pair; repair it") from None
    return {"role": ROLES[role], "content": content}


def _checked(messages: list[Message]) -> list[Message]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UserError("no message of the assistant, so nothing to learn; leave the row out")
    if answers[0] == 0:
        raise UserError("the first message is the assistant's; a conversation begins with the user or the system")
    for i in answers:
        if not messages[i]["content"].strip():
            raise UserError(f"the answer (message {i + 1}) is empty; leave the row out")
    return messages[: answers[-1] + 1]


def _answered(system: list[Message], prompt: list[Message], answer: Any, field: str) -> list[Message]:
    """One side of a pair: the answer alone, or the whole conversation, whose beginning is the prompt."""
    messages = _messages(answer, "assistant", field)
    whole = bool(messages) and messages[0]["role"] != "assistant"
    if not whole and not prompt:
        raise UserError(f"no prompt: give a field 'prompt', or the whole conversation in {field!r}")
    return _checked([*system, *([] if whole else prompt), *messages])


def _pair(chosen: list[Message], rejected: list[Message]) -> list[list[Message]]:
    if chosen == rejected:
        raise UserError("chosen and rejected are the same; leave the row out")
    if chosen[:-1] != rejected[:-1]:
        raise UserError("chosen and rejected must differ in their last message alone, and here their prompts do")
    return [chosen, rejected]
