"""Which small tasks can a model be asked on every machine, with answers that nobody has to believe?

Lines typed at Python's prompt, over the real words of Python's language reference, answered by Python itself. One word
in ten or so is held out, so that a validation line asks for the rule and not for a memory.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from lit_llada.errors import UserError
from lit_llada.files import text_hash
from lit_llada.prepare.corpora.stdlib import topics

# From easy to hard. {w} and {v} are words, {c} is a letter of w, {i} an index into it, {a} and {b} are numbers.
TASKS = {
    "len": "len({w!r})",
    "index": "{w!r}[{i}]",
    "upper": "{w!r}.upper()",
    "starts": "{w!r}.startswith({c!r})",
    "count": "{w!r}.count({c!r})",
    "slice": "{w!r}[:3]",
    "remove": "{w!r}.replace({c!r}, '')",
    "max": "max({a}, {b})",
    "concat": "{w!r} + {v!r}",
    "double": "{w!r} * 2",
    "reverse": "{w!r}[::-1]",
    "variable": "s = {w!r}\n>>> s.upper()",
    "first": "sorted({w!r})[0]",
    "swap": "s = {w!r} + '-' + {v!r}\n>>> s.split('-')[1]",
    "compare": "{w!r} < {v!r}",
    "add": "{a} + {b}",
}


def words() -> list[str]:
    """The words of three to six letters in Python's language reference, in alphabetical order.

    Raises:
        UserError: this Python has no language reference.
    """
    found = {word.lower() for _, text in topics() for word in re.findall(r"\b[A-Za-z]{3,6}\b", text)}
    if not found:
        raise UserError("this Python carries no language reference to take words from; give files of your own")
    return sorted(found)


def repl_records(size: int, seed: int, share: float) -> Iterator[tuple[str, str, str, bool]]:
    """(prompt, answer, task, held out) of `size` lines, less those that were drawn before.

    A line with words is held out together with its words, a line with numbers alone by a hash of its text.
    """
    rng = random.Random(seed)
    held_out = {word: text_hash(word) < share * 2**64 for word in words()}
    sides = {side: [word for word, held in held_out.items() if held == side] for side in (False, True)}
    if not all(sides.values()):
        raise UserError(f"val_fraction {share} leaves no word on one side; set it nearer to 0.1")
    seen = set()
    for number in range(size):
        task, held = [*TASKS][number % len(TASKS)], rng.random() < share
        prompt = _line(TASKS[task], sides[held], rng)
        if "{w" not in TASKS[task]:
            held = text_hash(prompt) < share * 2**64
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, answer(prompt), task, held


def answer(prompt: str) -> str:
    """What Python prints for a prompt of one or more lines."""
    *before, last = prompt.replace(">>> ", "").split("\n")
    names: dict[str, object] = {}
    for line in before:
        exec(line, names)
    return repr(eval(last, names))


def _line(form: str, choices: list[str], rng: random.Random) -> str:
    w, v = rng.choice(choices), rng.choice(choices)
    a, b, i = rng.randrange(1000), rng.randrange(1, 1000), rng.randrange(len(w))
    return ">>> " + form.format(w=w, v=v, c=w[rng.randrange(len(w))], a=a, b=b, i=i)
