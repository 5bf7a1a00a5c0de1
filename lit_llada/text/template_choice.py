"""Finds the tokenizer and the chat template that a user names: by name, file or folder, checked before any work."""

from __future__ import annotations

from pathlib import Path

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lit_llada.errors import UserError
from lit_llada.text.chat_template import TEMPLATES, ChatTemplate, turn_end
from lit_llada.text.tokenizer import Tokenizer

GIVEN = {"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents", "raise_exception"}


def choose_tokenizer(name: str) -> tuple[Tokenizer, Path | None]:
    """The tokenizer, and the folder that may have a chat template beside it.

    Raises:
        UserError: an unknown name, or one that would have to be learnt.
    """
    if name == "byte":
        return Tokenizer.byte(), None
    if name.startswith("bpe:"):
        raise UserError(f"tokenizer {name}: answers are read in the model's own vocabulary; give its folder, or byte")
    path = Path(name)
    if (path / "tokenizer" / "tokenizer.json").is_file():  # prepared data
        path /= "tokenizer"
    return Tokenizer.load(path), path if path.is_dir() else path.parent


def choose_template(name: str, tokenizer: Tokenizer, folder: Path | None) -> ChatTemplate:
    """A template by name or by path; ``auto`` takes the folder's own, else the first that the tokenizer can write.

    Raises:
        UserError: there is no such template, it uses a variable that nobody sets, or it ends no answer.
    """
    if name == "auto":
        found = None if folder is None else ChatTemplate.load(folder)
        template = found or next(filter(None, (_named_or_none(known, tokenizer) for known in TEMPLATES)))
    elif name in TEMPLATES:
        template = ChatTemplate.named(name, tokenizer)
    else:
        template = _from_path(name, tokenizer)
    _check_variables(template)
    if turn_end(template, tokenizer) is None:
        raise UserError(
            f"{template.name} writes no special token of the tokenizer after an answer, so a model could not learn to"
            " stop; take another template"
        )
    return template


def _named_or_none(name: str, tokenizer: Tokenizer) -> ChatTemplate | None:
    try:
        return ChatTemplate.named(name, tokenizer)
    except UserError:
        return None


def _from_path(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    path = Path(name)
    if path.is_dir():
        found = ChatTemplate.load(path)
        if found is None:
            raise UserError(f"template {name}: this folder has none; name a file, or one of {', '.join(TEMPLATES)}")
        return found
    if not path.is_file():
        raise UserError(f"template {name}: no such file; give auto, {', '.join(TEMPLATES)} or a path")
    try:
        return ChatTemplate(path.read_text(encoding="utf-8"), eos_token=tokenizer.eos, name=f"chat template {name}")
    except UnicodeDecodeError:
        raise UserError(f"template {name}: not UTF-8 text; convert it first") from None


def _check_variables(template: ChatTemplate) -> None:
    """Refuse a template that writes a variable which nobody sets: it would stand there as nothing.

    Templates may well ask whether one is defined; so a conversation is rendered, and what is missed is named.
    """
    strict = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, extensions=["jinja2.ext.loopcontrols"])
    unknown = meta.find_undeclared_variables(strict.parse(template.source)) - GIVEN
    probe = [{"role": role, "content": role} for role in ("user", "assistant")]
    values = {"messages": probe, "bos_token": template.bos_token, "eos_token": template.eos_token}
    try:
        strict.from_string(template.source).render(values, add_generation_prompt=False, tools=None, documents=None)
    except jinja2.TemplateError as error:
        missed = [name for name in sorted(unknown) if str(error) == f"'{name}' is undefined"]
        if missed:
            raise UserError(f"{template.name} writes {missed[0]!r}, a variable that nobody sets; correct it") from None
