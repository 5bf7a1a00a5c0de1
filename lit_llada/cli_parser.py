"""How does a wrong command line fail? With the one line that names the word, not with fifty lines of usage."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_llada.errors import UserError


class Parser(ArgumentParser):
    """A parser whose flags cannot be abbreviated and whose errors are UserErrors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as one line."""
        raise UserError(" ".join(message.split())) from ex
