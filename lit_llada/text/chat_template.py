"""Turns conversations into tokens: a Jinja template writes them, the tokenizer reads them, the answers are marked.

A folder's own template (:meth:`ChatTemplate.load`) or one of three that stand here (:meth:`ChatTemplate.named`):

* ``llada``: ``<|startoftext|>``, then for every turn its role between header tokens, a blank line and the content up to
  ``<|eot_id|>``. Contents stay as they are.
* ``llada_moe``: ``<role>HUMAN</role>content<|role_end|>``. The published examples begin with the system message
  "detailed thinking off"; nothing is added here, so a conversation that wants it says so.
* ``plain``: ``user:``, a line break, the content, the tokenizer's end-of-document token; for a tokenizer that has no
  header tokens, such as the one of bytes.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_llada.errors import UserError

if TYPE_CHECKING:
    from lit_llada.text.tokenizer import Tokenizer

Message = dict[str, str]  # {"role": "user", "content": "..."}
ROLES = ("system", "user", "assistant")

TEMPLATES = {
    "llada": (
        "<|startoftext|>{% for message in messages %}"
        "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "llada_moe": (
        "{% for message in messages %}"
        "<role>{{ 'HUMAN' if message.role == 'user' else message.role | upper }}</role>"
        "{{ message.content }}<|role_end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
    ),
    # A line break, not a space, before the content: a learnt vocabulary glues a space to the word that follows.
    "plain": (
        "{% for message in messages %}{{ message.role }}:\n{{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    ),
}


class Encoded(NamedTuple):
    """A conversation as ids, and where the assistant speaks in it: ``ids[start:stop]`` for every answer."""

    ids: list[int]
    answers: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template as Hugging Face folders carry it, rendered as they render it: in a sandbox.

    Args:
        source: text of the template.
        bos_token: text that the template's ``bos_token`` stands for.
        eos_token: text that its ``eos_token`` stands for.
        name: name of the template in an error message.

    Raises:
        UserError: the template does not parse.
    """

    source: str
    bos_token: str = ""
    eos_token: str = ""
    name: str = "chat template"

    def __post_init__(self) -> None:
        try:
            _compile(self.source)
        except jinja2.TemplateError as error:
            raise UserError(f"{self.name} does not parse: {error}; correct it") from None

    @classmethod
    def named(cls, name: str, tokenizer: Tokenizer) -> ChatTemplate:
        """One of ``TEMPLATES``.

        Raises:
            UserError: no such name, or a tokenizer that lacks the special tokens which the template writes.
        """
        if name not in TEMPLATES:
            raise UserError(f"chat template {name!r} is not known; take one of {', '.join(TEMPLATES)}, or a folder")
        template = cls(TEMPLATES[name], eos_token=tokenizer.eos, name=f"chat template {name!r}")
        if turn_end(template, tokenizer) is None:
            raise UserError(f"{template.name}: the tokenizer has no special token that ends its turns; take plain")
        return template

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a published folder: ``chat_template.jinja``, or the entry of ``tokenizer_config.json``.

        Returns:
            None where the folder has neither.

        Raises:
            UserError: a configuration that is not a JSON object, or a template that does not parse.
        """
        file, config = Path(folder) / "chat_template.jinja", Path(folder) / "tokenizer_config.json"
        try:
            names = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            source = file.read_text(encoding="utf-8") if file.is_file() else _default(names.get("chat_template"))
            bos, eos = (_text(names.get(key)) for key in ("bos_token", "eos_token"))
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError(
                f"{config} is not a JSON object with a default chat_template; correct or remove it"
            ) from None
        return None if source is None else cls(source, bos, eos, f"chat template of {folder}")

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text; with ``add_generation_prompt`` up to where the assistant begins to speak.

        Raises:
            UserError: the template fails on these messages, or refuses them.
        """
        values: dict[str, Any] = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        values |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:  # templates ask whether the last two are none
            return _compile(self.source).render(values, tools=None, documents=None)
        except (jinja2.TemplateError, TypeError) as error:
            raise UserError(f"{self.name} does not render these messages: {error}") from None

    def encode(self, messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = False) -> Encoded:
        """Ids of the whole conversation, tokenised at once, and the spans of its answers.

        An answer begins where the generation prompt before it ends, and closes with the turn-end token. A token that
        holds the end of the generation prompt and the beginning of the answer counts as answer: nothing of an answer
        is given away.

        Args:
            messages: ``{"role": system | user | assistant, "content": text}``, the first not from the assistant.
            tokenizer: the vocabulary that the template was made for.
            add_generation_prompt: end with the header of an assistant's turn.

        Raises:
            UserError: messages of another form, a content that spells a special token, or a template whose text of a
                conversation's beginning is not the beginning of its text.
        """
        check_messages(messages, tokenizer)
        text = self.render(messages, add_generation_prompt)
        end = _turn_end(self, tokenizer)
        ids, offsets = tokenizer.encode_with_offsets(text)
        starts, stops = [start for start, _ in offsets], [stop for _, stop in offsets]
        answers = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, stop = self._answer(messages, i, text, end)
                answers.append((bisect_right(stops, start), bisect_left(starts, stop)))
        return Encoded(ids, answers)

    def _answer(self, messages: Sequence[Message], i: int, text: str, end: str | None) -> tuple[int, int]:
        """Where in ``text`` the answer of message ``i`` stands, in characters."""
        prompt = self.render(messages[:i], add_generation_prompt=True)
        through = text if end is not None else self.render(messages[: i + 1])
        stop = len(through) if end is None else text.find(end, len(prompt)) + len(end)
        if not text.startswith(prompt) or not text.startswith(through) or stop <= len(prompt):
            raise UserError(
                f"{self.name}: what it writes up to message {i + 1} is not the beginning of what it writes in all; "
                "answers cannot be told from prompts, take another template"
            )
        return len(prompt), stop


def turn_end(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """Id of the token that ends an assistant's turn: the first special one that the template writes after its content.

    None where it writes none; an answer then ends where its text does.
    """
    end = _turn_end(template, tokenizer)
    return None if end is None else tokenizer.special_ids[end]


def check_messages(messages: Sequence[Message], tokenizer: Tokenizer) -> None:
    """Refuse what is not a conversation, and contents that would end a turn or mask a token by what they say.

    Raises:
        UserError: it names the message by its number, from 1.
    """
    if not messages:
        raise UserError("messages: there are none; give at least one from the user")
    for number, message in enumerate(messages, 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES:
            raise UserError(f"message {number}: role {role!r} is not one of {', '.join(ROLES)}")
        if number == 1 and role == "assistant":
            raise UserError("message 1 is the assistant's; a conversation begins with the user or the system")
        if not isinstance(content, str):
            raise UserError(f"message {number}: content is {type(content).__name__}; give it as a string")
        spelt = next((token for token in tokenizer.special_ids if token in content), None)
        if spelt is not None:
            raise UserError(f"message {number} spells the special token {spelt}; take it out or write it differently")


@lru_cache(maxsize=16)
def _turn_end(template: ChatTemplate, tokenizer: Tokenizer) -> str | None:
    probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    _, _, tail = template.render(probe)[len(template.render(probe[:1])) :].partition("answer")
    found = [token for token in tokenizer.special_ids if token in tail]
    return min(found, key=lambda token: (tail.index(token), -len(token)), default=None)


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _default(entry: str | list[dict[str, str]] | None) -> str | None:
    """A folder may have several templates: the one called default is the chat's."""
    return {item["name"]: item["template"] for item in entry}["default"] if isinstance(entry, list) else entry


def _text(token: str | dict[str, str] | None) -> str:
    return (token["content"] if isinstance(token, dict) else token) or ""
