"""``lit-llada evaluate``: how many answers are exactly right, by template, and is one checkpoint better than another?

All checkpoints answer the same questions, so that they are compared question by question: that tells them apart with
far fewer questions than two shares would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lit_llada.apps.findings import interval
from lit_llada.apps.sample import with_bar
from lit_llada.apps.settings import writing
from lit_llada.data.folder import DataFolder
from lit_llada.data.questions import questions_of
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import (
    Question,
    by_template,
    canvas_length,
    choose,
    load_answerer,
    replies,
    specials_of,
)
from lit_llada.sampling.plan import Count, Plan
from lit_llada.training.sharding import weight_digest

ALL = "all"  # the last line
WHOLE = 3  # of more checkpoints than these the table holds only the differences to the first one


class Answered(NamedTuple):
    """A checkpoint, the digest of its weights, and which questions it got right."""

    path: str
    digest: str
    right: list[bool]


def evaluate(
    checkpoint: str,
    data: str = "data/repl",
    compare: list[str] = [],  # noqa: B006  (shown by the command line; nobody writes to it)
    per_template: int = 50,
    new_tokens: int | None = None,
    count: Count = "quota",
    steps: int | None = None,
    bound: float | None = None,
    block_length: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    ema: bool | None = None,
    device: str = "cpu",
    out: str | None = None,
) -> None:
    """Ask each checkpoint the same validation questions, at temperature 0, and print one table of what was right.

    Args:
        checkpoint: a run's .ckpt, a folder, or org/name on the hub.
        data: the folder of `prepare chat` whose validation questions are asked.
        compare: more checkpoints of the same vocabulary.
        per_template: questions of each template at most.
        new_tokens: masks behind a prompt (default: as many as the longest answer of the split needs with its end).
        count: how many tokens are committed in a step: quota, threshold, factor, frechet or entropy_bound.
        steps: with count quota, steps in all (default: one token a step).
        bound: of the other counts (default: the usual value of each).
        block_length: fill blocks of this many masks from left to right (default: the whole answer at once).
        batch_size: answers at once; none depends on it.
        seed: of the choice of the questions.
        ema: the averaged weights (default: if there are any).
        device: where the nets shall be, one after the other.
        out: write the numbers to this file, as JSON.

    Raises:
        UserError: data that ask no questions, or a checkpoint of another vocabulary.
    """
    for name, value in {"per_template": per_template, "new_tokens": new_tokens, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    plan = Plan(steps, block_length, count=count, bound=bound, stop_at_eos=bool(block_length))
    folder = DataFolder.open(data)
    known, template = questions_of([folder], "val")
    canvas, questions = new_tokens or canvas_length(known, block_length), choose(known, per_template, seed)
    answered = []
    for path in [checkpoint, *compare]:
        net = load_answerer(path, folder.tokenizer, data, ema, device)
        specials = specials_of(template, folder.tokenizer, net.config.vocabulary)
        said = replies(
            net,
            questions,
            canvas,
            folder.tokenizer,
            specials,
            plan,
            seeds=range(len(questions)),
            batch_size=batch_size,
            device=device,
        )
        texts = {number: reply.text for number, reply in with_bar(said, len(questions), Path(path).name)}
        right = [texts[number] == question.answer for number, question in enumerate(questions)]
        answered.append(Answered(path, weight_digest(net), right))
    title = f"{data}: exact match, %, of {len(questions):,} validation questions, {canvas} new tokens"
    show(title, questions, answered)
    if out is not None:
        asked = {"data": data, "digest": folder.digest, "per_template": per_template, "new_tokens": canvas}
        with writing(Path(out)) as file:
            numbers = {**asked, "seed": seed, "plan": vars(plan), **numbers_of(questions, answered)}
            file.write(json.dumps(numbers, indent=2) + "\n")


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """How much larger the second share is than the first, with a 95 % interval for answers to the same questions.

    Newcombe's interval for paired shares (1998, Statistics in Medicine 17, p. 2635, method 10): the Wilson intervals of
    both shares put together with the correlation of the answers, which is shrunk by half a question where positive.

    Returns:
        The difference, its lower and its upper end, as shares.
    """
    n = len(first)
    both, neither = sum(a and b for a, b in zip(first, second, strict=True)), n - sum(map(max, first, second))
    one, other = sum(first) - both, sum(second) - both
    product = both * neither - one * other
    spread = math.prod((both + one, neither + other, both + other, neither + one))
    shrunk = max(product - n / 2, 0) if product > 0 else product
    phi = shrunk / math.sqrt(spread) if spread else 0.0
    (p, (p_low, p_high)), (q, (q_low, q_high)) = ((sum(x) / n, interval(sum(x), n)) for x in (first, second))

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return q - p, q - p - reach(q - q_low, p_high - p), q - p + reach(q_high - q, p - p_low)


def numbers_of(questions: Sequence[Question], answered: Sequence[Answered]) -> dict[str, Any]:
    """Everything that the table shows, as shares: ``checkpoints``, and the ``differences`` of every two of them."""
    groups = groups_of(questions)

    def shares(right: Sequence[bool]) -> dict[str, Any]:
        picked = {name: [right[i] for i in numbers] for name, numbers in groups.items()}
        return {
            name: {"right": sum(x), "asked": len(x), "share": sum(x) / len(x), "interval": interval(sum(x), len(x))}
            for name, x in picked.items()
        }

    def differences(first: Answered, second: Answered) -> dict[str, Any]:
        pairs = {name: [(first.right[i], second.right[i]) for i in some] for name, some in groups.items()}
        found = {name: paired_difference(*zip(*pair, strict=True)) for name, pair in pairs.items()}
        return {name: {"difference": d, "interval": (low, high)} for name, (d, low, high) in found.items()}

    checkpoints = [{"path": a.path, "digest": a.digest, "templates": shares(a.right)} for a in answered]
    compared = [{"from": a.path, "to": b.path, "templates": differences(a, b)} for a, b in combinations(answered, 2)]
    return {"checkpoints": checkpoints, "differences": compared}


def groups_of(questions: Sequence[Question]) -> dict[str, list[int]]:
    """The numbers of the questions on each line of the table; the last one has all."""
    groups = by_template(questions)
    return {**(groups if len(groups) > 1 else {}), ALL: [*range(len(questions))]}


def show(title: str, questions: Sequence[Question], answered: Sequence[Answered]) -> None:
    """The table: a column for each checkpoint, and one for every two of them; of many, some in a line below."""
    console = Console(soft_wrap=True, highlight=False)
    letters = [chr(ord("A") + i) for i in range(len(answered))]
    found = numbers_of(questions, answered)
    differences = [*zip(combinations(letters, 2), found["differences"], strict=True)]
    number = len(differences) if len(answered) <= WHOLE else len(answered) - 1  # those of the first one come first
    columns, below = differences[:number], differences[number:]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    heads = [*(f"{x}  (95 %)" for x in letters), *(f"{b} - {a}  (95 %)" for (a, b), _ in columns)]
    table.add_column("template", no_wrap=True)
    table.add_column("asked", justify="right")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    groups = groups_of(questions)
    for name, numbers in groups.items():
        shares = [
            percent(c["templates"][name]["share"], *c["templates"][name]["interval"]) for c in found["checkpoints"]
        ]
        moved = [change(**d["templates"][name]) for _, d in columns]
        if name == ALL and len(groups) > 1:
            table.add_section()
        table.add_row(name, str(len(numbers)), *shares, *moved)
    # A terminal narrower than the table breaks its lines; cells cut short would be worse.
    free = console.options.update(max_width=1000)
    Console(width=max(console.width, console.measure(table, options=free).maximum), highlight=False).print(table)
    for letter, one in zip(letters, answered, strict=True):
        console.print(f"{letter}  {one.path}", markup=False)
    for (a, b), difference in below:
        console.print(f"{b} - {a}, all questions: {change(**difference['templates'][ALL])}")
    if len(answered) > 1:
        console.print("* the interval of the difference (in points, question by question) does not hold 0")


def percent(share: float, low: float, high: float) -> str:
    """A share and its interval, in percent."""
    return f"{100 * share:.1f} ({100 * low:.0f}..{100 * high:.0f})"


def change(difference: float, interval: tuple[float, float]) -> str:
    """A difference and its interval, in points; with a star where it is one."""
    low, high = interval
    star = "*" if low > 0 or high < 0 else " "
    return f"{100 * difference:+.1f} ({100 * low:+.0f}..{100 * high:+.0f}){star}"
