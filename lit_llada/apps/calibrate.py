"""``lit-llada calibrate``: how many tokens may be committed at once before the answers get worse? Measured, and saved.

The published threshold of 0.9 is right for the net it was found with. Here each rule's bound is swept over questions
with known answers, and the cheapest plan that answers as well as one token a step goes with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lit_llada.apps.findings import Point, report, write_results
from lit_llada.apps.prompts import Prompt, make_rows, parse_records, read_text
from lit_llada.apps.sample import special_ids, with_bar
from lit_llada.apps.settings import Settings, change_plan, save_plan
from lit_llada.data.chat import ChatTemplate
from lit_llada.errors import UserError
from lit_llada.sampling.answers import Answer, answer_rows
from lit_llada.sampling.plan import Count, Plan

if TYPE_CHECKING:
    from lit_llada.checkpoint.load import Checkpoint
    from lit_llada.sampling.canvas import Denoiser

Decode = Callable[[Sequence[int]], str]
SWEEPS: dict[str, list[float]] = {
    "threshold": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99],
    "factor": [0.25, 0.5, 0.75, 1.0, 1.5, 2.0],
    "frechet": [0.1, 0.25, 0.5, 0.75, 1.0],
    "entropy_bound": [0.01, 0.03, 0.1, 0.3, 1.0],
}


class Question(NamedTuple):
    """A prompt and the one text that answers it."""

    prompt: str
    answer: str


def calibrate(
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    settings: Settings,
    generation: Path,
    *,
    counts: Sequence[Count] = ("threshold",),
    bounds: Sequence[float] | None = None,
    tolerance: float = 1.0,
    template: ChatTemplate | None = None,
    batch_size: int = 8,
    context: int | None = None,
) -> Point:
    """Sweep the bounds, print the table, and write the figure, the numbers and the chosen plan beside the checkpoint.

    Args:
        checkpoint: with a tokenizer.
        questions: at least one.
        settings: everything but count rule and bound.
        generation: the generation config that the plan is saved in; figure and numbers go to its folder.
        counts: the rules to try.
        bounds: of the only rule; None for a range of each.
        tolerance: points of accuracy (percent) that the chosen plan may lose.
        template: given, every prompt is a user's message.
        batch_size: rows at once.
        context: the longest sequence the net was made for.

    Returns:
        The chosen point.

    Raises:
        UserError: bounds of several rules, or prompts that make no canvas.
    """
    plans, specials = plans_to_try(settings.plan, counts, bounds), special_ids(checkpoint, template)
    assert checkpoint.tokenizer is not None, "the command line has asked for one"
    rows = make_rows(
        [Prompt(question.prompt) for question in questions],
        checkpoint.tokenizer,
        specials,
        new_tokens=settings.new_tokens,
        template=template,
        block_length=settings.plan.block_length,
        context=context,
    )
    device, seeds = next(checkpoint.net.parameters()).device, [settings.row_seed(i) for i in range(len(rows))]

    def denoiser() -> Denoiser:
        return settings.denoiser(checkpoint.net, specials.mask)

    def answers() -> Iterator[tuple[int, Answer]]:
        for plan in plans:
            yield from answer_rows(denoiser, rows, specials, plan, seeds=seeds, batch_size=batch_size, device=device)

    answered, one = list(with_bar(answers(), len(plans) * len(rows), "calibrating")), len(rows)
    each = [dict(answered[start : start + one]) for start in range(0, len(answered), one)]
    decode = checkpoint.tokenizer.decode
    points = [score(plan, questions, found, decode) for plan, found in zip(plans, each, strict=True)]
    chosen = choose(points, tolerance)
    save_plan(generation, chosen.plan)
    report(points, chosen, tolerance)
    write_results(generation, points, chosen, tolerance, settings)
    return chosen


def read_questions(file: str) -> list[Question]:
    """JSONL with ``prompt`` and ``answer``.

    Raises:
        UserError: the file is missing, empty or of another form.
    """
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty; write one object a line, with prompt and answer")
    return [Question(r["prompt"], r["answer"]) for r in parse_records(lines, file, ("prompt", "answer"))]


def plans_to_try(plan: Plan, counts: Sequence[Count], bounds: Sequence[float] | None) -> list[Plan]:
    """One token a step first, which is the measure; then every bound of every rule.

    Raises:
        UserError: no rule, bounds of several rules, or a bound outside its range.
    """
    if not counts:
        raise UserError(f"--counts names no rule; there are {', '.join(SWEEPS)}")
    if bounds is not None and (len(counts) > 1 or not bounds):
        raise UserError("--bounds are those of one rule, at least one of them; name one rule in --counts")
    one = change_plan(plan, count="quota", steps=None)
    swept = [(count, bound) for count in counts for bound in (bounds or SWEEPS[count])]
    return [one, *(change_plan(plan, steps=None, count=count, bound=bound) for count, bound in swept)]


def score(plan: Plan, questions: Sequence[Question], answers: dict[int, Answer], decode: Decode) -> Point:
    """Exact match, blanks at both ends left out."""
    right = sum(decode(answers[i].gaps[0]).strip() == q.answer.strip() for i, q in enumerate(questions))
    forwards = sum(answer.forwards for answer in answers.values()) / len(answers)
    tokens = sum(answer.tokens for answer in answers.values()) / len(answers)
    return Point(plan, right, len(questions), forwards, tokens)


def choose(points: Sequence[Point], tolerance: float) -> Point:
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
