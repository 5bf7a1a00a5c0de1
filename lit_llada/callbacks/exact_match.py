"""How many answers are exactly right by now? A few questions of each task, asked while the net is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lit_llada.callbacks.loggers import log_scalars, log_text
from lit_llada.callbacks.periodic import Looking
from lit_llada.callbacks.samples import escape
from lit_llada.data.folder import DataFolder
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import (
    Question,
    Reply,
    by_task,
    canvas_length,
    choose_questions,
    questions_of,
    replies,
    tally,
)
from lit_llada.sampling.frames import visible
from lit_llada.sampling.plan import Count, Plan
from lit_llada.text.specials import Specials

SHOWN = 2  # questions of each task in TensorBoard's table


class ExactMatch(Looking):
    """Ask validation questions every n optimizer steps and at the end of training, of the averaged weights if any.

    An answer counts if it is, up to its first end, exactly the record's. Logged are ``val/exact_match`` (the share of
    right answers among all that were asked), ``val/exact_match/<task>``, and in TensorBoard's texts
    (``exact_match/answers``) a table with the same two questions of each task every time, the answers marked right
    or wrong. All ranks answer alike, as sharded weights need; rank 0 writes. No random numbers are touched: training
    goes on as if nothing had been asked.

    Args:
        every_n_steps: optimizer steps between two looks.
        per_task: questions of each task; the same ones each time.
        data: the folder of `prepare chat` whose validation questions are asked; None for the run's own.
        new_tokens: masks behind a prompt; None for as many as the longest answer of the split needs with its end.
        count: how many are committed in a step, see :class:`~lit_llada.sampling.plan.Plan`; only ``quota`` takes as
            many steps on every rank as sharded weights need.
        steps: with ``count: quota``, steps in all; None for one token a step.
        bound: of the other counts; None for the usual value.
        block_length: fill blocks of this many masks from left to right; None for the whole answer at once.
        batch_size: answers at once; none depends on it.
        seed: of the choice of the questions.
        before: ask before the first step too, see :class:`~lit_llada.callbacks.periodic.Looking`, and show those
            answers beside each later one.

    Raises:
        UserError: an option outside its range; when training starts, data that cannot be asked.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        per_task: int = 10,
        data: str | None = None,
        new_tokens: int | None = None,
        count: Count = "quota",
        steps: int | None = None,
        bound: float | None = None,
        block_length: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        before: bool = False,
    ) -> None:
        numbers = {"every_n_steps": every_n_steps, "per_task": per_task, "batch_size": batch_size}
        for name, value in {**numbers, "new_tokens": new_tokens}.items():
            if value is not None and value < 1:
                raise UserError(f"ExactMatch.{name} is {value}; it must be at least 1")
        super().__init__(every_n_steps, before)
        self.per_task, self.data, self.new_tokens = per_task, data, new_tokens
        self.plan = Plan(count=count, steps=steps, bound=bound, block_length=block_length)
        self.batch_size, self.seed = batch_size, seed
        self.questions: list[Question] = []
        self.latest: dict[str, tuple[int, int]] = {}  # task -> (right, asked), for whoever wants to report them

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Read the questions, and refuse what could only fail later."""
        super().on_train_start(trainer, pl_module)
        run = getattr(trainer, "datamodule", None)
        folders = getattr(run, "folders", []) if self.data is None else [DataFolder.open(self.data)]
        if not folders:
            raise UserError("ExactMatch needs prepared data to ask about: set exact_match.data to a folder of chat")
        self._tokenizer = folders[0].tokenizer
        if self._tokenizer.digest != getattr(getattr(run, "tokenizer", None), "digest", None):
            raise UserError(f"exact_match.data {self.data} has another tokenizer than the run's data; prepare it again")
        if self.plan.count != "quota" and trainer.world_size > 1 and _sharded(pl_module.denoiser):
            raise UserError(
                f"exact_match.count {self.plan.count} takes as many steps as an answer needs, and the ranks that share"
                " a net must all take the same: set exact_match.count to quota"
            )
        known, template = questions_of(folders, "val")
        self._canvas = self.new_tokens or canvas_length(known, self.plan.block_length)
        self._specials = Specials.of(self._tokenizer, pl_module.backbone.vocabulary, template)
        self.questions = choose_questions(known, self.per_task, self.seed)

    def look(self, trainer: L.Trainer, pl_module: Any) -> list[Reply]:
        """The replies to all questions, in their order."""
        answered = replies(
            pl_module.denoiser,
            self.questions,
            self._canvas,
            self._tokenizer,
            self._specials,
            self.plan,
            seeds=range(len(self.questions)),
            batch_size=self.batch_size,
            device=pl_module.device,
        )
        said = [reply for _, reply in sorted(answered)]
        right = [reply.text == question.answer for question, reply in zip(self.questions, said, strict=True)]
        self.latest = tally(self.questions, right)
        shares = {f"val/exact_match/{name}": hits / asked for name, (hits, asked) in self.latest.items()}
        log_scalars(trainer, {"val/exact_match": sum(right) / len(right), **shares})
        log_text(
            trainer, "exact_match/answers", replies_table(self.questions, said, trainer.global_step, self.start or ())
        )
        return said


def replies_table(questions: Sequence[Question], now: Sequence[Reply], step: int, before: Sequence[Reply] = ()) -> str:
    """A Markdown table of the first questions of each task, with what was answered before (if asked) and now."""
    looks = {"before (step 0)": before, f"now (step {step})": now} if before else {f"now (step {step})": now}
    heads = ["task", "prompt", "wanted", *looks]
    rows = [heads, ["---"] * len(heads)]
    for numbers in by_task(questions).values():
        for i in numbers[:SHOWN]:
            asked = questions[i]
            given = (escape(visible(text)) for text in (asked.task, asked.prompt, asked.answer))
            rows.append([*given, *(_marked(look[i], asked.answer) for look in looks.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _marked(reply: Reply, wanted: str) -> str:
    text = reply.text if reply.ended else f"{reply.text} … (no end)"
    return f"{'✓' if reply.text == wanted else '✗'} {escape(visible(text))}"


def _sharded(net: nn.Module) -> bool:
    return any(isinstance(part, FSDPModule) for part in net.modules())
