"""Pairs of functions whose better one anybody can tell: the one that Python can parse.

A docstring's first paragraph asks for a function of the standard library; its twin has one token too many or too few.
"""

from __future__ import annotations

import ast
import copy
import io
import random
import tokenize
import warnings
from collections.abc import Iterator

from lit_llada.errors import UserError
from lit_llada.prepare.corpora.stdlib import modules
from lit_llada.prepare.splits import Bounds, Fractions, Split

HELD_OUT_MOST: tuple[Split, ...] = ("test", "val", "train")  # a prompt of several splits is of the first one here


def twin_records(max_chars: int, seed: int, fractions: Fractions) -> Iterator[tuple[str, str, str, Split]]:
    """(prompt, function, damaged twin, split): whole files are held out, and prompts that occur in them too.

    Half of the twins have lost a token and half have one twice, so that length tells nothing.

    Raises:
        UserError: this Python has too little source of its standard library.
    """
    bounds = Bounds.of(fractions)
    found = [
        (prompt, code, bounds.split_of(name))
        for name, text in modules()
        for prompt, code in functions(text)
        if len(prompt) + len(code) <= max_chars
    ]
    split_of: dict[str, Split] = {}
    for name in HELD_OUT_MOST:
        for prompt, _, split in found:
            if split == name:
                split_of.setdefault(prompt, name)
    if set(split_of.values()) != set(fractions.splits):
        raise UserError("this Python carries too little source of its standard library; give files of your own")
    seen = set()
    for prompt, code, split in found:
        if (prompt, code) not in seen and split == split_of[prompt]:
            seen.add((prompt, code))
            twin = damaged(code, random.Random(f"{seed}\0{prompt}\0{code}"), delete=len(seen) % 2 == 0)
            if twin is not None:
                yield prompt, code, twin, split


def functions(text: str) -> Iterator[tuple[str, str]]:
    """First paragraph of the docstring, and the function without docstring and decorators."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            bare = copy.copy(node)
            bare.body, bare.decorator_list = node.body[1:], []
            if bare.body:
                yield docstring.split("\n\n")[0], ast.unparse(bare)


def damaged(code: str, rng: random.Random, delete: bool) -> str | None:
    """`code` with one token deleted (or twice) so that it does not parse any more; None if no token does that."""
    lines = [0]
    for line in code.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    tokens = [
        (lines[token.start[0] - 1] + token.start[1], lines[token.end[0] - 1] + token.end[1])
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    ]
    rng.shuffle(tokens)
    for start, stop in tokens:
        before, token, after = code[:start], code[start:stop], code[stop:]
        if delete:
            twin = before + (after[1:] if before.endswith(" ") and after.startswith(" ") else after)
        else:
            twin = before + token + (" " if token[-1].isalnum() else "") + token + after
        if not parses(twin):
            return twin
    return None


def parses(code: str) -> bool:
    """Whether Python takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd literals in what is damaged
        try:
            ast.parse(code)
        except SyntaxError:
            return False
    return True
