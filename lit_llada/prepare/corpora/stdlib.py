"""Text that every machine has: the prose and the code of the running Python's own standard library.

Nothing is copied into this project; the text differs between Python versions, so numbers belong to a corpus hash.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Literal

from lit_llada.errors import UserError

Corpus = Literal["prose", "code", "all"]

# Tests, generated tables, vendored copies, and what some installations lack.
SKIPPED = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "distutils", "turtledemo",
    "ensurepip", "encodings", "pydoc_data", "msilib", "tkinter",
}  # fmt: skip


def embedded(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Named documents: the language reference and unique docstrings (prose), the modules themselves (code).

    ``all`` is the language reference and the modules: these hold the docstrings already, and a docstring that is held
    out as prose while its module is trained on would tell nothing.

    Where the library's source is zipped away or stripped, the docstrings of the modules that are imported stand in.

    Raises:
        UserError: there is no text at all.
    """
    found = False
    if corpus in ("prose", "all"):
        for document in prose() if corpus == "prose" else topics():
            found = True
            yield document
    if corpus in ("code", "all"):
        for name, text in modules():
            found = True
            yield name, text
    if not found:
        raise UserError("this Python carries no standard library source to train on; give files of your own")


def topics() -> Iterator[tuple[str, str]]:
    """The language reference, where this Python has it."""
    with contextlib.suppress(ImportError):
        found = import_module("pydoc_data.topics").topics
        yield from ((f"topics/{name}", text) for name, text in sorted(found.items()))


def prose() -> Iterator[tuple[str, str]]:
    """The topics of the language reference, then every docstring once."""
    yield from topics()
    seen: set[str] = set()
    for name, text in docstrings() if any(modules()) else imported_docstrings():
        if text not in seen:
            seen.add(text)
            yield name, text


def modules() -> Iterator[tuple[str, str]]:
    """Every module of the standard library that is there as a file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        skipped = SKIPPED & set(relative.parts) or any(part.startswith("config-") for part in relative.parts)
        if skipped or path.name.startswith("_sysconfigdata") or path.name == "sitecustomize.py":
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


@functools.cache  # seconds of parsing, and a run asks twice: for the hash, then for the text
def docstrings() -> tuple[tuple[str, str], ...]:
    """The docstrings of all modules, classes and functions, file by file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple(
        (f"{name}:{getattr(node, 'name', '')}", docstring)
        for name, text in modules()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
    )


def imported_docstrings() -> Iterator[tuple[str, str]]:
    """What :func:`docstrings` would give, from the modules that this process has imported."""
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in sys.stdlib_module_names:
            for key, value in sorted(vars(module).items()):
                if (inspect.isclass(value) or inspect.isroutine(value)) and (docstring := inspect.getdoc(value)):
                    yield f"{name}:{key}", docstring
