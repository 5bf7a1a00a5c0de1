"""Exact match: records become questions, a net answers them, and answers are compared with the records."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lit_llada.backbone.transformer import Backbone
from lit_llada.checkpoint.load import load_checkpoint
from lit_llada.data.folder import DataFolder, Record, is_remote, read_records
from lit_llada.errors import UserError
from lit_llada.sampling.canvas import Denoiser, prompt_canvases
from lit_llada.sampling.fill import fill_canvases
from lit_llada.sampling.plan import Plan
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.specials import Specials, until_end
from lit_llada.text.tokenizer import Tokenizer

UNNAMED = "records"  # the group of those that have no task
ROUND_TO = 8  # the length of a canvas without blocks


class Question(NamedTuple):
    """A prompt, and the one text that answers it.

    Attributes:
        ids: ids of all before the answer, up to where the assistant begins to speak.
        answer: the right text.
        length: tokens of the right answer, its end included.
        prompt: text of the last message, for a reader.
        task: the kind of the record: of a REPL line, what is done with its words.
    """

    ids: list[int]
    answer: str
    length: int
    prompt: str
    task: str


class Reply(NamedTuple):
    """What a net wrote: the text up to its first end, and whether there was one within the canvas."""

    text: str
    ended: bool


def to_questions(records: Sequence[Record], template: ChatTemplate, tokenizer: Tokenizer) -> list[Question]:
    """Each record as a question: ids exactly as they are trained on, and the answer as its tokens would be read."""
    found, ends = [], Specials.of(tokenizer, 0, template).ends
    for record in records:
        messages = [*record.messages, {"role": "assistant", "content": record.answer}]
        ids, answers = template.encode(messages, tokenizer)
        start, stop = answers[-1]
        text = tokenizer.decode(until_end(ids[start:stop], ends)[0])
        found.append(Question(ids[:start], text, stop - start, record.prompt, record.task or UNNAMED))
    return found


def questions_of(folders: Sequence[DataFolder], split: str) -> tuple[list[Question], ChatTemplate]:
    """The questions of a split of one or more folders of one vocabulary, and the template that they are written with.

    Raises:
        UserError: a folder of another kind, a remote one, or one whose split is empty.
    """
    template = None
    found: list[Question] = []
    for folder in folders:
        if folder.kind != "chat":
            raise UserError(
                f"{folder.location} holds {folder.kind}, not questions with one right answer: give a folder made by"
                " `lit-llada prepare chat`"
            )
        if is_remote(folder.location):
            raise UserError(f"{folder.location} is remote, and questions are read as text: give a local copy")
        template = ChatTemplate(**folder.manifest["chat_template"])
        found += to_questions(read_records(folder.location, split), template, folder.tokenizer)
    if template is None or not found:
        raise UserError(f"the {split} split of {', '.join(f.location for f in folders)} has no question")
    return found, template


def choose_questions(questions: Sequence[Question], per_task: int, seed: int) -> list[Question]:
    """At most so many of each task, drawn by seed; tasks in alphabetical order.

    A larger number takes the same questions and more.
    """
    groups = by_task(questions)
    return [questions[i] for name in groups for i in shuffled(groups[name], name, seed)[:per_task]]


def by_task(questions: Sequence[Question]) -> dict[str, list[int]]:
    """The numbers of the questions of each task, in alphabetical order of their names."""
    groups: dict[str, list[int]] = {name: [] for name in sorted({question.task for question in questions})}
    for number, question in enumerate(questions):
        groups[question.task].append(number)
    return groups


def shuffled(numbers: Sequence[int], name: str, seed: int) -> list[int]:
    """The same numbers in an order that depends on nothing but them, the name and the seed."""
    return random.Random(f"{seed} {name}").sample(numbers, len(numbers))


def canvas_length(questions: Sequence[Question], block_length: int | None) -> int:
    """Masks that hold the longest answer with its end, in whole blocks (without blocks in multiples of 8)."""
    unit = block_length or ROUND_TO
    return -(-max(question.length for question in questions) // unit) * unit


def replies(
    net: Denoiser,
    questions: Sequence[Question],
    new_tokens: int,
    tokenizer: Tokenizer,
    specials: Specials,
    plan: Plan,
    *,
    seeds: Sequence[int],
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Reply]]:
    """Answer every question, prompts of like lengths together; no reply depends on what shares its batch.

    Args:
        net: the mask predictor, in eval mode.
        questions: at least one.
        new_tokens: masks behind each prompt.
        tokenizer: tokenizer that reads the answers.
        specials: the mask, the ends, what is never produced.
        plan: the policies of the sampler, of fixed length.
        seeds: seed of each question's noise.
        batch_size: answers at once.
        device: device of the net.

    Yields:
        The question's number and the reply, batch by batch, the longest prompts first.

    Raises:
        UserError: blocks that do not divide ``new_tokens``, or fewer steps than blocks.
    """
    canvases = prompt_canvases([q.ids for q in questions], new_tokens, specials, block_length=plan.block_length)
    answers = fill_canvases(lambda: net, canvases, specials, plan, seeds=seeds, batch_size=batch_size, device=device)
    for number, answer in answers:
        yield number, Reply(tokenizer.decode(answer.gaps[0]), answer.ended)


def load_answerer(path: str, tokenizer: Tokenizer, data: str, ema: bool | None, device: str) -> Backbone:
    """The net of a checkpoint that speaks the vocabulary of the data.

    Args:
        path: anything that :func:`load_checkpoint` takes.
        tokenizer: tokenizer of the data.
        data: name of the data in an error message.
        ema: see :func:`load_checkpoint`.
        device: where the net shall be.

    Raises:
        UserError: it was trained with another vocabulary, or cannot be loaded.
    """
    checkpoint = load_checkpoint(path, device=device, ema=ema)
    mine, rows = checkpoint.tokenizer, checkpoint.net.config.vocabulary
    # Where no tokenizer is found, the run's card may still say which it was; without one, the ids must fit.
    cards = (entry.get("tokenizer") for entry in checkpoint.run_card.get("data", []))
    known = mine.digest if mine else next((card["digest"] for card in cards if card), tokenizer.digest)
    fits = checkpoint.mask_id == tokenizer.mask_id and tokenizer.vocab_size <= rows
    if known != tokenizer.digest or not fits:
        raise UserError(
            f"{path} and {data} are of different vocabularies (the checkpoint's has {mine.vocab_size if mine else rows}"
            f" ids, the data's {tokenizer.vocab_size}): prepare the data with --tokenizer of that checkpoint"
        )
    return checkpoint.net
