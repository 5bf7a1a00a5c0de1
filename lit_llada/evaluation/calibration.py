"""Calibration: how many tokens may be committed at once before answers get worse, measured on known answers.

The published threshold of 0.9 is right for the net it was found with. Here each rule's bound is swept, and the cheapest
plan that answers as well as one token a step is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_llada.checkpoint.load import Checkpoint
from lit_llada.errors import UserError
from lit_llada.evaluation.intervals import interval
from lit_llada.evaluation.result import Result
from lit_llada.progress import with_bar
from lit_llada.sampling.plan import Count, Plan
from lit_llada.sampling.prompts import Prompt, parse_records, read_text
from lit_llada.sampling.rules import RULES
from lit_llada.sampling.sample import Sample, prepare_sampling, sample_prompts
from lit_llada.sampling.settings import Settings, change_plan
from lit_llada.text.chat_template import ChatTemplate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class KnownAnswer(NamedTuple):
    """A prompt and the one text that answers it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Point:
    """A plan, and what it achieved.

    Args:
        plan: the policies.
        right: number of right answers.
        asked: number of questions.
        forwards: mean number of forwards of an answer.
        tokens: mean number of tokens of an answer, up to its first end.
    """

    plan: Plan
    right: int
    asked: int
    forwards: float
    tokens: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.asked

    @property
    def name(self) -> str:
        """The rule and its bound."""
        return "one token a step" if self.plan.count == "quota" else f"{self.plan.count} {self.plan.limit:g}"


@dataclass(frozen=True)
class Calibration(Result):
    """What a sweep found.

    Args:
        points: every plan that was tried; the first commits one token a step.
        chosen: the cheapest that is good enough.
        tolerance: points of accuracy (percent) that it was allowed to lose.
        settings: how all of them were asked.
    """

    points: list[Point]
    chosen: Point
    tolerance: float
    settings: Settings

    @property
    def plan(self) -> Plan:
        """The chosen plan."""
        return self.chosen.plan

    @property
    def uncertainty(self) -> float:
        """Half the width, in points, of the interval around the first accuracy."""
        low, high = interval(self.points[0].right, self.points[0].asked)
        return 50 * (high - low)

    def table(self) -> Table:
        """A line for each point; the chosen one has a star."""
        title = f"{self.points[0].asked} questions; * is chosen"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for name in ("plan", "right", "% right", "95 %", "forwards", "tokens each"):
            table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
        for point in self.points:
            low, high = (100 * share for share in interval(point.right, point.asked))
            shares = f"{100 * point.accuracy:.1f}", f"{low:.1f} .. {high:.1f}"
            speed = f"{point.forwards:.2f}", f"{point.tokens / point.forwards:.2f}"
            mark, style = ("*", "bold") if point is self.chosen else (" ", "")
            table.add_row(f"{mark} {point.name}", str(point.right), *shares, *speed, style=style)
        return table

    def figure(self) -> Figure:
        """Accuracy against forwards, a line for each rule, with 95 % intervals; what is in the band may be chosen."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        one = 100 * self.points[0].accuracy
        axes.axhspan(one - self.tolerance, one, color="0.9", label=f"within {self.tolerance:g} points")
        for count in dict.fromkeys(point.plan.count for point in self.points):
            line = sorted((p for p in self.points if p.plan.count == count), key=lambda p: p.forwards)
            _draw_rule(axes, count, line)
        spot = [self.chosen.forwards], [100 * self.chosen.accuracy]
        axes.scatter(*spot, s=140, facecolors="none", edgecolors="black", zorder=5, label="chosen")
        axes.set(xlabel="forwards an answer (mean)", ylabel="right answers, %", xlim=(0, None))
        axes.set_title(f"{self.points[0].asked} questions, exact match", loc="left", fontsize=10)
        axes.legend(fontsize=8)
        return figure


def _draw_rule(axes: Any, count: Count, line: Sequence[Point]) -> None:
    x, y = [p.forwards for p in line], [100 * p.accuracy for p in line]
    ends = [interval(p.right, p.asked) for p in line]
    below = [height - 100 * low for height, (low, _) in zip(y, ends, strict=True)]
    above = [100 * high - height for height, (_, high) in zip(y, ends, strict=True)]
    label = "one token a step" if count == "quota" else count.replace("_", " ")
    axes.errorbar(x, y, (below, above), marker="o", markersize=4, linewidth=1, capsize=2, label=label)
    for point, here in zip(line, zip(x, y, strict=True), strict=True):
        if count != "quota":
            bound = f"{point.plan.limit:g}"
            axes.annotate(bound, here, (3, 3), textcoords="offset points", fontsize=8, rotation=45)


def calibrate(
    checkpoint: Checkpoint | str | Path,
    questions: Sequence[KnownAnswer] | Sequence[tuple[str, str]] | str,
    plan: Plan | str | None = None,
    *,
    new_tokens: int = 128,
    counts: Sequence[Count] = ("threshold",),
    bounds: Sequence[float] | None = None,
    tolerance: float = 1.0,
    chat: bool | str = False,
    batch_size: int = 8,
    seed: int = 0,
) -> Calibration:
    """Find the cheapest sampler that answers as well as one token a step. Nothing is saved.

    Args:
        checkpoint: loaded, or what :func:`~lit_llada.load_checkpoint` takes.
        questions: (prompt, answer) pairs, or a JSONL file of them.
        plan: all but the count rule and its bound: a plan, the name of a preset, or None for the checkpoint's own.
        new_tokens: masks behind a prompt.
        counts: the rules to try.
        bounds: bounds of the only rule; None for a range of each.
        tolerance: points of accuracy (percent) that the chosen plan may lose.
        chat: write each prompt as a user's message in the checkpoint's chat template, or in the one of this name.
        batch_size: prompts at once.
        seed: seed of the noise.

    Raises:
        UserError: bounds of several rules, prompts that make no canvas, or no right answer at one token a step.
    """
    loaded, chosen, template = prepare_sampling(checkpoint, plan, chat, "calibrate")
    known = read_known_answers(questions) if isinstance(questions, str) else [KnownAnswer(*each) for each in questions]
    settings = Settings(chosen, new_tokens, seed=seed)
    how: dict[str, Any] = {"counts": counts, "bounds": bounds, "tolerance": tolerance, "batch_size": batch_size}
    return sweep(loaded, known, settings, template, **how)


def sweep(
    checkpoint: Checkpoint,
    questions: Sequence[KnownAnswer],
    settings: Settings,
    template: ChatTemplate | None = None,
    *,
    counts: Sequence[Count] = ("threshold",),
    bounds: Sequence[float] | None = None,
    tolerance: float = 1.0,
    batch_size: int = 8,
) -> Calibration:
    """Ask all questions with every plan, and choose one; arguments and errors of :func:`calibrate`."""
    plans = plans_to_try(settings.plan, counts, bounds)
    prompts = [Prompt(question.prompt) for question in questions]
    variants = [replace(settings, plan=plan) for plan in plans]
    asked = [sample_prompts(checkpoint, prompts, each, template, batch_size=batch_size) for each in variants]
    numbered = with_bar(chain.from_iterable(asked), len(plans) * len(prompts), "calibrating")
    points = []
    for plan in plans:
        found = dict(islice(numbered, len(prompts)))
        points.append(count_right(plan, questions, [found[number] for number in range(len(prompts))]))
    return Calibration(points, choose_point(points, tolerance), tolerance, settings)


def read_known_answers(file: str) -> list[KnownAnswer]:
    """JSONL with ``prompt`` and ``answer``.

    Raises:
        UserError: the file is missing, empty or of another form.
    """
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty; write one object a line, with prompt and answer")
    return [KnownAnswer(r["prompt"], r["answer"]) for r in parse_records(lines, file, ("prompt", "answer"))]


def plans_to_try(plan: Plan, counts: Sequence[Count], bounds: Sequence[float] | None) -> list[Plan]:
    """One token a step first, which is the measure; then every bound of every rule.

    Raises:
        UserError: no rule, bounds of several rules, or a bound outside its range.
    """
    swept = {name: rule.sweep for name, rule in RULES.items()}
    if not counts or not set(counts) <= set(swept):
        named = ", ".join(counts) or "no rule"
        raise UserError(f"--counts names {named}; there are {', '.join(swept)}")
    if bounds is not None and (len(counts) > 1 or not bounds):
        raise UserError("--bounds are those of one rule, at least one of them; name one rule in --counts")
    one = change_plan(plan, count="quota", steps=None)
    tried = [(count, bound) for count in counts for bound in (bounds or swept[count])]
    return [one, *(change_plan(plan, steps=None, count=count, bound=bound) for count, bound in tried)]


def count_right(plan: Plan, questions: Sequence[KnownAnswer], samples: Sequence[Sample]) -> Point:
    """Exact match, blanks at both ends left out."""
    pairs = zip(samples, questions, strict=True)
    right = sum(sample.text.strip() == question.answer.strip() for sample, question in pairs)
    forwards = sum(sample.forwards for sample in samples) / len(samples)
    tokens = sum(sample.tokens for sample in samples) / len(samples)
    return Point(plan, right, len(questions), forwards, tokens)


def choose_point(points: Sequence[Point], tolerance: float) -> Point:
    """The fewest forwards among those at most ``tolerance`` points of accuracy below the first.

    Raises:
        UserError: the first has no right answer.
    """
    if not points[0].right:
        raise UserError(
            f"one token a step answers none of the {points[0].asked} questions, so there is no accuracy to keep; give "
            "other questions, another --new_tokens, or --chat"
        )
    least = points[0].accuracy - tolerance / 100 - 1e-9
    return min((p for p in points if p.accuracy >= least), key=lambda p: (p.forwards, -p.right))
