"""Compares checkpoints by exact match, task by task and question by question.

All checkpoints answer the same questions, so that they are compared question by question: that tells them apart with
far fewer questions than two shares would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_llada.backbone.devices import pick_device
from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.digest import weight_digest
from lit_llada.data.folder import DataFolder
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import (
    Question,
    by_task,
    canvas_length,
    choose_questions,
    load_answerer,
    questions_of,
    replies,
)
from lit_llada.evaluation.intervals import interval, paired_difference
from lit_llada.evaluation.result import Result
from lit_llada.progress import with_bar
from lit_llada.sampling.plan import Plan
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials

ALL = "all"  # the last line
WHOLE = 3  # of more checkpoints than these the table holds only the differences to the first one


class Answered(NamedTuple):
    """A checkpoint, the digest of its weights, and which questions it got right."""

    path: str
    digest: str
    right: list[bool]


@dataclass(frozen=True)
class Comparison(Result):
    """Which questions each checkpoint answered exactly right.

    Args:
        data: the folder that asked.
        data_digest: digest of its contents.
        questions: what was asked.
        answered: one entry for each checkpoint, in the order in which they were given.
        plan: how the answers were sampled.
        new_tokens: masks behind a prompt.
        per_task: questions of each task at most.
        seed: seed of the choice of the questions.
    """

    data: str
    data_digest: str
    questions: list[Question]
    answered: list[Answered]
    plan: Plan
    new_tokens: int
    per_task: int
    seed: int

    @property
    def groups(self) -> dict[str, list[int]]:
        """The numbers of the questions on each line of the table; the last line has all."""
        groups = by_task(self.questions)
        return {**(groups if len(groups) > 1 else {}), ALL: [*range(len(self.questions))]}

    def shares(self, right: Sequence[bool]) -> dict[str, dict[str, Any]]:
        """Line of the table -> right answers, questions asked, share, and its 95 % interval."""
        found = {}
        for name, numbers in self.groups.items():
            hits, asked = sum(right[i] for i in numbers), len(numbers)
            found[name] = {"right": hits, "asked": asked, "share": hits / asked, "interval": interval(hits, asked)}
        return found

    def differences(self, first: Answered, second: Answered) -> dict[str, dict[str, Any]]:
        """Line of the table -> how much larger the second share is than the first, and its paired 95 % interval."""
        found = {}
        for name, numbers in self.groups.items():
            before, after = [first.right[i] for i in numbers], [second.right[i] for i in numbers]
            difference, low, high = paired_difference(before, after)
            found[name] = {"difference": difference, "interval": (low, high)}
        return found

    def numbers(self) -> dict[str, Any]:
        """Everything as plain values, shares as fractions: ``checkpoints``, and the ``differences`` of every two."""
        pairs = combinations(self.answered, 2)
        return {
            "data": self.data,
            "digest": self.data_digest,
            "per_task": self.per_task,
            "new_tokens": self.new_tokens,
            "seed": self.seed,
            "plan": vars(self.plan),
            "checkpoints": [{"path": a.path, "digest": a.digest, "tasks": self.shares(a.right)} for a in self.answered],
            "differences": [{"from": a.path, "to": b.path, "tasks": self.differences(a, b)} for a, b in pairs],
        }

    def table(self) -> Table:
        """A column for each checkpoint, and one for every two of them; of many, only those with the first one."""
        asked = f"{self.data}: exact match, %, of {len(self.questions):,} validation questions"
        title = f"{asked}, {self.new_tokens} new tokens"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        columns, _ = self.lettered_differences()
        table.add_column("task", no_wrap=True)
        table.add_column("asked", justify="right")
        for head in [*self.letters, *(name for name, _ in columns)]:
            table.add_column(f"{head}  (95 %)", justify="right", no_wrap=True)
        shares = [self.shares(one.right) for one in self.answered]
        for name, numbers in self.groups.items():
            if name == ALL and len(self.groups) > 1:
                table.add_section()
            cells = [percent(share[name]["share"], *share[name]["interval"]) for share in shares]
            moved = [change(**found[name]) for _, found in columns]
            table.add_row(name, str(len(numbers)), *cells, *moved)
        return table

    @property
    def letters(self) -> list[str]:
        """What the table calls the checkpoints: A, B, C."""
        return [chr(ord("A") + i) for i in range(len(self.answered))]

    def lettered_differences(self) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, dict[str, Any]]]]:
        """Differences by a name like ``B - A``: those that have a column of the table, and the others."""
        pairs = combinations(zip(self.letters, self.answered, strict=True), 2)
        found = [(f"{b} - {a}", self.differences(first, second)) for (a, first), (b, second) in pairs]
        columns = len(found) if len(self.answered) <= WHOLE else len(self.answered) - 1  # those of the first come first
        return found[:columns], found[columns:]


def evaluate(
    checkpoints: str | Sequence[str],
    data: str = "data/repl",
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    *,
    per_task: int = 50,
    new_tokens: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    ema: bool | None = None,
    device: str = "auto",
) -> Comparison:
    """Ask each checkpoint the same validation questions, and count the answers that are exactly right.

    Args:
        checkpoints: a run's .ckpt, a folder, or org/name on the hub; or several of one vocabulary.
        data: the folder of `prepare chat` whose validation questions are asked.
        plan: how answers are sampled.
        per_task: questions of each task at most.
        new_tokens: masks behind a prompt; None for as many as the longest answer of the split needs with its end.
        batch_size: answers at once; none depends on it.
        seed: seed of the choice of the questions.
        ema: the averaged weights; None takes them if there are any.
        device: where the nets shall be, one after the other; ``auto`` takes the GPU if there is one.

    Raises:
        UserError: data that ask no questions, or a checkpoint of another vocabulary.
    """
    for name, value in {"per_task": per_task, "new_tokens": new_tokens, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    device = pick_device(device)
    folder = DataFolder.open(data)
    known, template = questions_of([folder], "val")
    canvas = new_tokens or canvas_length(known, plan.block_length)
    questions = choose_questions(known, per_task, seed)
    how: dict[str, Any] = {"plan": plan, "batch_size": batch_size, "device": device}
    answered = []
    for path in [checkpoints] if isinstance(checkpoints, str) else checkpoints:
        net = load_answerer(path, folder.tokenizer, data, ema, device)
        right = answer_all(net, questions, canvas, folder, template, Path(path).name, **how)
        answered.append(Answered(path, weight_digest(net), right))
    return Comparison(data, folder.digest, questions, answered, plan, canvas, per_task, seed)


def answer_all(
    net: Backbone,
    questions: list[Question],
    canvas: int,
    folder: DataFolder,
    template: ChatTemplate,
    name: str,
    **how: Any,
) -> list[bool]:
    """Which questions the net answers exactly right."""
    specials = Specials.of(folder.tokenizer, net.config.vocabulary, template)
    said = replies(net, questions, canvas, folder.tokenizer, specials, seeds=range(len(questions)), **how)
    texts = {number: reply.text for number, reply in with_bar(said, len(questions), name)}
    return [texts[number] == question.answer for number, question in enumerate(questions)]


def percent(share: float, low: float, high: float) -> str:
    """A share and its interval, in percent."""
    return f"{100 * share:.1f} ({100 * low:.0f}..{100 * high:.0f})"


def change(difference: float, interval: tuple[float, float]) -> str:
    """A difference and its interval, in points; with a star where the interval does not hold 0."""
    low, high = interval
    star = "*" if low > 0 or high < 0 else " "
    return f"{100 * difference:+.1f} ({100 * low:+.0f}..{100 * high:+.0f}){star}"
