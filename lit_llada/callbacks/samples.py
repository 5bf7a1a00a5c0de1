"""What does the model write by now? Texts continued, answered, filled and free, step by step, in TensorBoard."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lit_llada.callbacks.loggers import log_figure, log_text, writers
from lit_llada.callbacks.periodic import Looking
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Row, pad_rows
from lit_llada.sampling.film import write_film
from lit_llada.sampling.frames import END, MASK, visible
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Order, Plan
from lit_llada.sampling.trace import Recorder, Trace
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials, until_end


class SampleLogger(Looking):
    """Sample every n optimizer steps and at the end of training, from the averaged weights if there are any.

    TensorBoard gets a table of the texts (``samples/texts``) and, for each sample, the canvas of every step as text
    and a picture of the denoising; beside its files lies a film to click through (``films/``). All ranks sample
    alike, as sharded weights need; rank 0 writes. The noise is a function of (seed, step, sample), and no other random
    numbers are touched: training goes on as if nothing had been drawn.

    Where the run's data have a chat template (:class:`~lit_llada.data.answer_datamodule.AnswerDataModule`), prompts are
    what a user asks: each is written in that template up to where the assistant begins to speak, and of the answer is
    shown what stands before the end of its turn. Free samples and infillings are texts in any run.

    Args:
        every_n_steps: optimizer steps between two looks.
        prompts: texts to be continued, or in a chat a user's questions.
        free: number of samples from nothing.
        infills: texts with gaps to be filled.
        gap: what stands for a gap in ``infills``.
        gap_length: tokens of a gap.
        length: tokens of continuations (prompt included) and of free samples.
        steps: denoising steps; a sample with fewer masks takes one step for each of them.
        block_length: fill blocks of this many masks from left to right; None for the whole canvas at once.
        order: who is committed first, see :class:`~lit_llada.sampling.plan.Plan`.
        temperature: 0 takes the likeliest token (free samples are then all alike), 1 samples from the model.
        seed: of the noise.
        film: write ``films/step_NNNNNN.html``, a page with all samples, into the folder of the TensorBoard logger.
        before: sample before the first step too, see :class:`~lit_llada.callbacks.periodic.Looking`, and show those
            texts beside each later one.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        prompts: list[str] = ["The ", "def "],  # noqa: B006  (shown by the command line; nobody writes to it)
        free: int = 2,
        infills: list[str] = ["The value of [...] is returned.\n"],  # noqa: B006
        gap: str = "[...]",
        gap_length: int = 24,
        length: int = 128,
        steps: int = 64,
        block_length: int | None = None,
        order: Order = "low_confidence",
        temperature: float = 0.7,
        seed: int = 0,
        film: bool = True,
        before: bool = False,
    ) -> None:
        if wrong := [text for text in infills if gap not in text]:
            raise UserError(f"SampleLogger.infills: {wrong[0]!r} has no gap; mark it with {gap}")
        super().__init__(every_n_steps, before)
        self.prompts, self.free, self.infills = prompts, free, infills
        self.gap, self.gap_length, self.length = gap, gap_length, length
        self.plan = Plan(steps=steps, block_length=block_length, order=order, temperature=temperature)
        self.seed, self.film = seed, film
        self.latest: dict[str, str] = {}  # the last texts by name, for whoever wants to print them

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuse what could only fail later."""
        super().on_train_start(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        if (tokenizer := getattr(data, "tokenizer", None)) is None:
            raise UserError("SampleLogger needs a datamodule with a tokenizer; leave the callback out or give one")
        template = getattr(data, "chat_template", None)
        self._specials = Specials.of(tokenizer, pl_module.backbone.vocabulary, template)
        self._questions = {} if template is None else {f"prompt_{i}": text for i, text in enumerate(self.prompts, 1)}
        self._rows = self.canvases(tokenizer, template)

    def look(self, trainer: L.Trainer, pl_module: Any) -> dict[str, str]:
        """The texts by name."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        traces = self.draw(pl_module.denoiser, self._rows, self._specials, pl_module.device, trainer.global_step)
        self.latest = {
            name: text_of(trace, tokenizer, self._specials, self._questions.get(name)) for name, trace in traces.items()
        }
        if not writers(trainer):
            return self.latest
        from lit_llada.callbacks.figures import denoising_figure

        def piece(token: int) -> str:
            return str(tokenizer.decode([token], MASK, END))

        film = self._write_film(trainer, traces, piece)
        log_text(trainer, "samples/texts", f"{samples_table(self.latest, self.start)}{film}")
        for name, trace in traces.items():
            log_text(trainer, f"samples/{name}", transcript(trace, tokenizer))
            title = f"{name.replace('_', ' ')} · training step {trainer.global_step}"
            log_figure(trainer, f"samples/{name}", denoising_figure(trace, piece, title))
        return self.latest

    def _write_film(self, trainer: L.Trainer, traces: dict[str, Trace], piece: Callable[[int], str]) -> str:
        """The page, and a line of Markdown that says where it is."""
        if not self.film or not traces:
            return ""
        named = {name.replace("_", " "): trace for name, trace in traces.items()}
        name = f"films/step_{trainer.global_step:06d}.html"
        for folder in (Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)):
            (folder / "films").mkdir(parents=True, exist_ok=True)
            write_film(folder / name, named, piece, f"Samples at training step {trainer.global_step}")
        return f"\n\nStep by step, beside the files of this log: `{name}`"

    def canvases(self, tokenizer: Any, template: ChatTemplate | None = None) -> dict[str, Row]:
        """The samples to be drawn, by name, as ids with masks; with a template the prompts are a user's questions.

        Raises:
            UserError: a prompt leaves no room or is no message, or there are more blocks than steps.
        """
        found: dict[str, Row] = {}
        for i, text in enumerate(self.prompts, 1):
            ids = tokenizer.encode(text) if template is None else question_ids(text, tokenizer, template)
            if len(ids) >= self.length:
                raise UserError(
                    f"SampleLogger.length {self.length} leaves no room after the prompt {text!r}, which has {len(ids)}"
                    " tokens: make sampling.length larger, or the prompt shorter"
                )
            found[f"prompt_{i}"] = ids + [tokenizer.mask_id] * (self.length - len(ids))
        for i in range(1, self.free + 1):
            found[f"free_{i}"] = [tokenizer.mask_id] * self.length
        for i, text in enumerate(self.infills, 1):
            first, *rest = (tokenizer.encode(part) for part in text.split(self.gap))
            found[f"infill_{i}"] = sum(([tokenizer.mask_id] * self.gap_length + ids for ids in rest), first)
        width, steps = self.plan.block_length, self.plan.steps
        most = max((ids.count(tokenizer.mask_id) for ids in found.values()), default=0)
        if width and steps and (blocks := -(-most // width)) > steps:
            raise UserError(f"SampleLogger.steps {steps} are too few for {blocks} blocks; each needs at least one")
        return found

    def draw(
        self, denoiser: nn.Module, rows: dict[str, Row], specials: Specials, device: torch.device, step: int
    ) -> dict[str, Trace]:
        """Sample all canvases in one batch, padded on the right; each row has its own noise and its own end."""
        if not rows:
            return {}
        canvas, real = (part.to(device) for part in pad_rows([*rows.values()], specials))
        seeds = torch.arange(len(rows)) + (self.seed * 1_000_003 + step) * 10_007
        states = generate(denoiser, canvas, specials, self.plan, real=real, seeds=seeds, details=True)
        return dict(zip(rows, Recorder(states, specials.mask).finish(), strict=True))


def question_ids(text: str, tokenizer: Any, template: ChatTemplate) -> list[int]:
    """A user's message as a conversation is trained on, up to where the assistant begins to speak.

    Raises:
        UserError: a text that spells a special token, or that the template refuses.
    """
    try:
        return template.encode([{"role": "user", "content": text}], tokenizer, add_generation_prompt=True).ids
    except UserError as error:
        raise UserError(f"SampleLogger.prompts {text!r}: {error}") from None


def text_of(trace: Trace, tokenizer: Any, specials: Specials, question: str | None = None) -> str:
    """What a sample came to; of a question's answer what stands before its first end, which is shown as a sign."""
    ids = trace.canvases()[-1]
    if question is None:
        return str(tokenizer.decode(ids, MASK, END))
    ids = ids[trace.start.index(specials.mask) :]
    answer, ended = until_end(ids, specials.ends)
    return f"{question}\n{tokenizer.decode(answer, MASK, END)}{END if ended else ''}"


def transcript(trace: Trace, tokenizer: Any) -> str:
    """The canvas after every step, one line each, as a Markdown code block."""
    lines = [f"{i:4d} {visible(tokenizer.decode(c, MASK, END))}" for i, c in enumerate(trace.canvases())]
    return "\n".join(["~~~~", *lines, "~~~~"])


def samples_table(now: dict[str, str], before: dict[str, str] | None = None) -> str:
    """A Markdown table of texts, with nothing in them taken for Markdown or HTML; beside each what it was before."""
    looks = {"before": before, "now": now} if before else {"text": now}
    rows = [["sample", *looks], ["---"] * (1 + len(looks))]
    rows += [[name.replace("_", " "), *(escape(visible(texts[name])) for texts in looks.values())] for name in now]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def escape(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(text, quote=False))
