"""Prompts in, answers out: what the command ``sample`` prints, and what a notebook calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_llada.checkpoint.generation import read_generation
from lit_llada.checkpoint.load import Checkpoint, load_checkpoint
from lit_llada.errors import UserError
from lit_llada.sampling.fill import Answer, fill_canvases, in_number_order
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.prompts import Prompt, make_canvases, template_of
from lit_llada.sampling.settings import Cache, Settings, choose_plan
from lit_llada.sampling.trace import Trace
from lit_llada.text.chat_template import ChatTemplate, Message
from lit_llada.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """An answer, and what it took. ``print(sample)`` shows its text.

    Args:
        prompt: what was given: a text, or the messages of a conversation.
        text: what was written: up to its first end, or of an infilling the whole text.
        tokens: tokens written, none of the prompt's, none behind an end.
        ended: whether an end token was written; else ``new_tokens`` has cut the answer off.
        steps: denoising steps.
        forwards: forward passes of this prompt's canvas.
        seconds: from the start of the batch until this answer was complete.
        trace: how it came about, if that was asked for: see ``lit_llada.sampling.film.write_film``.
    """

    prompt: str | list[Message]
    text: str
    tokens: int
    ended: bool
    steps: int
    forwards: int
    seconds: float
    trace: Trace | None = None

    def __str__(self) -> str:
        return self.text


def sample(
    checkpoint: Checkpoint | str | Path,
    prompts: str | Sequence[str | list[Message]],
    plan: Plan | str | None = None,
    *,
    new_tokens: int = 128,
    chat: bool | str = False,
    infill: bool = False,
    guidance: float = 0.0,
    cache: Cache | None = None,
    seed: int = 0,
    batch_size: int = 8,
    trace: bool = False,
) -> list[Sample]:
    """Continue texts, answer messages, or fill gaps. An answer depends on its number and the seed, not on its batch.

    Args:
        checkpoint: loaded, or what :func:`~lit_llada.load_checkpoint` takes.
        prompts: a text, or several texts and conversations (lists of ``{"role": ..., "content": ...}``).
        plan: how the canvas is filled: a plan, the name of a preset, or None for the checkpoint's own, else ``fast``.
        new_tokens: masks behind a prompt, and in a gap that does not say how many.
        chat: write each prompt as a user's message in the checkpoint's chat template, or in the one of this name.
        infill: fill the gaps ``[...]`` or ``[...24]`` of each text; nothing is written behind it.
        guidance: scale of the classifier-free guidance.
        cache: ``prefix``, ``dual`` or ``vicinity``: remember keys and values; approximate.
        seed: seed of the noise.
        batch_size: prompts at once.
        trace: keep every step of every answer.

    Returns:
        One sample for each prompt, in order.

    Raises:
        UserError: a checkpoint without a tokenizer, an unknown preset, a prompt that makes no canvas.
    """
    loaded, chosen, template = prepare_sampling(checkpoint, plan, chat, "sample")
    settings = Settings(chosen, new_tokens, guidance, cache, seed=seed)
    texts = [prompts] if isinstance(prompts, str) else prompts
    asked = [Prompt(text) if isinstance(text, str) else Prompt(str(text[-1]["content"]), text) for text in texts]
    numbered = sample_prompts(loaded, asked, settings, template, infill=infill, batch_size=batch_size, trace=trace)
    return [*in_number_order(numbered)]


def prepare_sampling(
    checkpoint: Checkpoint | str | Path, plan: Plan | str | None, chat: bool | str, caller: str
) -> tuple[Checkpoint, Plan, ChatTemplate | None]:
    """The checkpoint loaded, the plan that is meant, and the template if there is to be one; see :func:`sample`.

    Raises:
        UserError: a checkpoint without a tokenizer, an unknown preset or template.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    if loaded.tokenizer is None:
        raise UserError(f"{caller}: the checkpoint has no tokenizer; give load_checkpoint(..., tokenizer=PATH)")
    chosen = plan if isinstance(plan, Plan) else choose_plan(plan, read_generation(loaded))
    return loaded, chosen, template_of(loaded, chat if isinstance(chat, str) else None) if chat else None


def sample_prompts(
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
    settings: Settings,
    template: ChatTemplate | None = None,
    *,
    infill: bool = False,
    batch_size: int = 8,
    trace: bool = False,
) -> Iterator[tuple[int, Sample]]:
    """Answer prompts batch by batch, the longest first.

    Args:
        checkpoint: with a tokenizer.
        prompts: at least one.
        settings: everything that decides an answer.
        template: given, every text is a user's message.
        infill: texts have gaps, which are what is written.
        batch_size: prompts at once.
        trace: keep every step of every answer.

    Returns:
        The prompts' numbers and their samples, as they are complete.

    Raises:
        UserError: at once, a prompt that makes no canvas.
    """
    tokenizer, specials = checkpoint.tokenizer, checkpoint.specials(template)
    assert tokenizer is not None, "the caller has asked for one"
    canvases = make_canvases(
        prompts,
        tokenizer,
        specials,
        new_tokens=settings.new_tokens,
        template=template,
        infill=infill,
        block_length=settings.plan.block_length,
        context=checkpoint.context,
    )
    numbered = fill_canvases(
        lambda: settings.predictor(checkpoint.net, specials.mask),
        canvases,
        specials,
        settings.plan,
        seeds=[settings.prompt_seed(number) for number in range(len(canvases))],
        batch_size=batch_size,
        device=next(checkpoint.net.parameters()).device,
        record=trace,
    )
    return ((number, _to_sample(prompts[number], answer, tokenizer, infill)) for number, answer in numbered)


def _to_sample(prompt: Prompt, answer: Answer, tokenizer: Tokenizer, infill: bool) -> Sample:
    return Sample(
        prompt=prompt.given,
        text=tokenizer.decode(answer.ids if infill else answer.gaps[0]),
        tokens=answer.tokens,
        ended=answer.ended,
        steps=answer.steps,
        forwards=answer.forwards,
        seconds=answer.seconds,
        trace=answer.trace,
    )
