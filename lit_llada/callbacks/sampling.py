"""What does the model write by now? Continuations, free samples and infillings, step by step, in TensorBoard."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_llada.callbacks.loggers import log_figure, log_text, writers
from lit_llada.callbacks.throughput import off_the_clock
from lit_llada.errors import UserError
from lit_llada.sampling.generate import Order, State, generate

MASK, END = "░", "∎"


class Trace(NamedTuple):
    """One sample: ``canvases [S + 1, L]``; of each position the step that filled it (0: given), the confidence."""

    canvases: Tensor
    step: Tensor
    confidence: Tensor


class SampleLogger(L.Callback):
    """Sample every n optimizer steps and at the end of training, from the averaged weights if there are any.

    TensorBoard gets a table of the texts (``samples/texts``) and, for each sample, the canvas of every step as text
    and a picture of the denoising. All ranks sample alike, as sharded weights need; rank 0 writes. The noise is a
    function of (seed, step), and no other random numbers are touched: training goes on as if nothing had been drawn.

    Args:
        every_n_steps: optimizer steps between two looks.
        prompts: texts to be continued.
        free: number of samples from nothing.
        infills: texts with gaps to be filled.
        gap: what stands for a gap in ``infills``.
        gap_length: tokens of a gap.
        length: tokens of continuations (prompt included) and of free samples.
        steps: denoising steps; a sample with fewer masks takes one step for each of them.
        block_length: fill blocks of this many masks from left to right; None for the whole canvas at once.
        order: ``low_confidence`` or ``random``, who is committed first.
        temperature: 0 takes the likeliest token (free samples are then all alike), 1 samples from the model.
        seed: of the noise.
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
    ) -> None:
        if wrong := [text for text in infills if gap not in text]:
            raise UserError(f"SampleLogger.infills: {wrong[0]!r} has no gap; mark it with {gap}")
        self.every_n_steps, self.prompts, self.free, self.infills = every_n_steps, prompts, free, infills
        self.gap, self.gap_length, self.length, self.steps = gap, gap_length, length, steps
        self.block_length, self.order, self.temperature, self.seed = block_length, order, temperature, seed
        self.latest: dict[str, str] = {}  # the last texts by name, for whoever wants to print them
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step
        if getattr(getattr(trainer, "datamodule", None), "tokenizer", None) is None:
            raise UserError("SampleLogger needs a datamodule with a tokenizer; leave the callback out or give one")
        self.canvases(trainer.datamodule.tokenizer)  # type: ignore[attr-defined]  # refuse bad prompts before training

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._step and trainer.global_step % self.every_n_steps == 0:
            with off_the_clock(trainer):
                self._sample(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.global_step != self._step or not self.latest:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: L.Trainer, module: Any) -> None:
        self._step = trainer.global_step
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        with evaluating(module.denoiser), trainer.precision_plugin.forward_context():
            traces = self.draw(module.denoiser, tokenizer, module.device, trainer.global_step)
        self.latest = {name: tokenizer.decode(trace.canvases[-1].tolist(), MASK, END) for name, trace in traces.items()}
        if not writers(trainer):
            return
        from lit_llada.callbacks.figures import denoising_figure

        log_text(trainer, "samples/texts", table(self.latest))
        for name, trace in traces.items():
            log_text(trainer, f"samples/{name}", transcript(trace, tokenizer))
            pieces = [piece(tokenizer, token) for token in trace.canvases[-1].tolist()]
            title = f"{name.replace('_', ' ')} · training step {trainer.global_step}"
            figure = denoising_figure(pieces, trace.step, trace.confidence, len(trace.canvases) - 1, title)
            log_figure(trainer, f"samples/{name}", figure)

    def canvases(self, tokenizer: Any) -> dict[str, list[int]]:
        """The samples to be drawn, by name, as ids with masks.

        Raises:
            UserError: a prompt leaves no room.
        """
        found: dict[str, list[int]] = {}
        for i, text in enumerate(self.prompts, 1):
            ids = tokenizer.encode(text)
            if len(ids) >= self.length:
                raise UserError(f"SampleLogger.length {self.length} leaves no room after the prompt {text!r}")
            found[f"prompt_{i}"] = ids + [tokenizer.mask_id] * (self.length - len(ids))
        for i in range(1, self.free + 1):
            found[f"free_{i}"] = [tokenizer.mask_id] * self.length
        for i, text in enumerate(self.infills, 1):
            first, *rest = (tokenizer.encode(part) for part in text.split(self.gap))
            found[f"infill_{i}"] = sum(([tokenizer.mask_id] * self.gap_length + ids for ids in rest), first)
        return found

    def draw(self, denoiser: nn.Module, tokenizer: Any, device: torch.device, step: int) -> dict[str, Trace]:
        """Sample all canvases; those of one length and number of masks together."""
        groups: dict[tuple[int, int], dict[str, list[int]]] = {}
        for name, ids in self.canvases(tokenizer).items():
            steps = min(self.steps, ids.count(tokenizer.mask_id))
            groups.setdefault((len(ids), steps), {})[name] = ids
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        traces: dict[str, Trace] = {}
        for (_, steps), group in groups.items():
            states = list(
                generate(
                    denoiser,
                    torch.tensor(list(group.values()), device=device),
                    tokenizer.mask_id,
                    steps,
                    block_length=self.block_length,
                    order=self.order,
                    temperature=self.temperature,
                    generator=generator,
                )
            )
            traces |= zip(group, split(states), strict=True)
        return traces


def split(states: list[State]) -> list[Trace]:
    """The states of a batch, row by row, on the CPU."""
    canvases = torch.stack([s.canvas for s in states]).cpu()
    committed = torch.stack([s.committed * s.step for s in states]).sum(0).cpu()
    return [Trace(*row) for row in zip(canvases.unbind(1), committed, states[-1].confidence.cpu(), strict=True)]


def piece(tokenizer: Any, token: int) -> str:
    """One token as text."""
    return str(tokenizer.decode([token], MASK, END))


def transcript(trace: Trace, tokenizer: Any) -> str:
    """The canvas after every step, one line each, as a Markdown code block."""
    from lit_llada.callbacks.figures import visible

    lines = [f"{i:4d} {visible(tokenizer.decode(c.tolist(), MASK, END))}" for i, c in enumerate(trace.canvases)]
    return "\n".join(["~~~~", *lines, "~~~~"])


def table(texts: dict[str, str]) -> str:
    """A Markdown table of texts, with nothing in them taken for Markdown or HTML."""
    from lit_llada.callbacks.figures import visible

    rows = [f"| {name.replace('_', ' ')} | {escape(visible(text))} |" for name, text in texts.items()]
    return "\n".join(["| sample | text |", "| --- | --- |", *rows])


def escape(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(text, quote=False))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part is as it was, and a sharded net holds no gathered copy."""
    modes = {part: part.training for part in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
            if isinstance(part, FSDPModule):
                part.reshard()
