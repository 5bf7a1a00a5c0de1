"""A parser of command lines whose errors are one line that names the word, not fifty lines of usage."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_llada.errors import UserError


class Parser(ArgumentParser):
    """A parser whose flags cannot be abbreviated and whose errors are UserErrors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def known_names(self) -> set[str]:
        """Every single name of an option: ``trainer`` and ``max_steps`` of ``--trainer.max_steps``."""
        return {name for action in self._actions for name in action.dest.split(".")}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the reason as one line, with the name that was probably meant."""
        text = reason(message)
        named = re.search(r"option '([\w.]+)'|: --([\w.]+)|'([\w.]+)' is not accepted", text)
        if named and "did you mean" not in text:
            known = sorted(self.known_names())
            unknown = next((name for name in next(filter(None, named.groups())).split(".") if name not in known), "?")
            longer = [name for name in known if name.startswith(unknown)]
            if close := longer or difflib.get_close_matches(unknown, known, n=1, cutoff=0.7):
                text += f" (did you mean {close[0]}?)"
        raise UserError(text) from ex


def reason(message: str) -> str:
    """What went wrong, out of jsonargparse's account of every type that it tried.

    ``Parser key "model": Does not validate against any ... Errors: - Parser key "lr": Expected a <class 'float'>. ...``
    becomes ``model: lr: Expected a float. Got value: abc``.
    """
    key = re.match(r'Parser key "([^"]+)":\s', message)
    tried = re.search(r"Errors:\n(.*?)(\n\s*Given value type|\Z)", message, re.DOTALL)
    if tried:
        items = [item for item in re.split(r"^\s*- ", tried.group(1), flags=re.MULTILINE) if item.strip()]
        items = [reason(item.strip()) for item in items if "<class 'NoneType'>" not in item] or items
        return (f"{key.group(1)}: " if key else "") + "; ".join(items)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return text.replace("Expected a typing.Literal", "Expected one of ")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and what single ranks raised inside a distributed save."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        ranks = getattr(cause, "failures", None)
        if isinstance(ranks, dict):  # torch.distributed.checkpoint: rank -> (exception, traceback)
            waiting.extend(failure[0] for failure in ranks.values())
        waiting.extend((cause.__cause__, cause.__context__))
