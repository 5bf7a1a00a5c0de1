"""The first word picks a function; a mistake is one line and status 2, and what nobody can mend a traceback."""

from __future__ import annotations

import errno
import importlib
from typing import Any

import pytest

from lit_llada.cli.main import VERBS, main, run
from lit_llada.errors import UserError
from lit_llada.version import __version__


def test_help_names_every_verb_and_each_has_its_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb, (where, text) in VERBS.items():
        assert f"{verb} " in said and text in said
        module, name = where.split(":")
        assert callable(getattr(importlib.import_module(f"lit_llada.cli.{module}"), name))


def test_the_version_and_a_word_that_is_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"lit-llada {__version__}\n"
    assert main(["fitt"]) == 2 and capsys.readouterr().err == "error: unknown verb 'fitt'; did you mean 'fit'?\n"
    assert main([]) == 2


def failing(error: BaseException) -> Any:
    def sample(words: list[str]) -> int:
        raise error

    return sample


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a thing\nis wrong"), "error: a thing is wrong\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.txt"), "error: x.txt: No such file\n"),
        (
            MemoryError(),
            "more than there is asked for; it is less with --batch_size, --new_tokens or --dtype",
        ),
        (
            OSError(errno.ENOSPC, "full", "x"),
            "no space left on the disk while writing x; no checkpoint was complete",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(error), []) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_what_nobody_can_mend_keeps_its_traceback_and_interrupts_their_status() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), [])
    assert run(failing(KeyboardInterrupt()), []) == 130
    assert run(lambda words: None, []) == 0 and run(lambda words: 143, []) == 143
