"""Small tasks for every machine, with answers that can be checked.

Lines typed at Python's prompt, over the real words of Python's language reference, answered by Python itself. One word
in ten or so is held out, so that a validation line asks for the rule and not for a memory.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from lit_llada.errors import UserError
from lit_llada.prepare.corpora.stdlib import topics
from lit_llada.prepare.splits import Bounds, Fractions, Split

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


def repl_records(size: int, seed: int, fractions: Fractions) -> Iterator[tuple[str, str, str, Split]]:
    """(prompt, answer, task, split) of `size` lines, less those that were drawn before.

    A line with words is held out together with its words, a line with numbers alone by a hash of its text.

    Raises:
        UserError: a split has no word, or this Python has no language reference.
    """
    rng, bounds = random.Random(seed), Bounds.of(fractions)
    words_of: dict[Split, list[str]] = {name: [] for name in fractions.splits}
    for word in words():
        words_of[bounds.split_of(word)].append(word)
    if not all(words_of.values()):
        given = ", ".join(f"{name} {value}" for name, value in fractions.options.items())
        raise UserError(f"{given} leaves no word on one side; set it nearer to 0.1")
    seen = set()
    for number in range(size):
        task = [*TASKS][number % len(TASKS)]
        split = _drawn_split(rng.random(), fractions)
        prompt = _line(TASKS[task], words_of[split], rng)
        if "{w" not in TASKS[task]:
            split = bounds.split_of(prompt)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, answer(prompt), task, split


def _drawn_split(number: float, fractions: Fractions) -> Split:
    """The split of a number that is drawn from [0, 1): in the order of :class:`Bounds`."""
    if number < fractions.test:
        return "test"
    return "val" if number < fractions.test + fractions.val else "train"


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
