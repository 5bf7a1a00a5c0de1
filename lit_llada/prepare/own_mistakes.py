"""Makes preference pairs of a model's own mistakes: answers drawn from it, judged by the right ones.

The chosen answer is the record's, the rejected one is a wrong answer that the model itself has given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from lit_llada.backbone.devices import pick_device
from lit_llada.checkpoint.digest import weight_digest
from lit_llada.data.folder import DataFolder, Record, read_records
from lit_llada.errors import UserError
from lit_llada.evaluation.exact_match import Question, Reply, canvas_length, load_answerer, questions_of, replies
from lit_llada.evaluation.wrong_answers import Found, asker, find_wrong
from lit_llada.files import file_digest
from lit_llada.prepare.chunks import console
from lit_llada.prepare.record_folder import Generated, RecordOptions, prepare_records
from lit_llada.prepare.record_sources import SourceRecord
from lit_llada.prepare.splits import Fractions, Split
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials
from lit_llada.text.tokenizer import Tokenizer

PLAN = Plan(temperature=1.0)  # samples from the model, one token a step


def prepare_own_mistakes(
    checkpoint: str,
    data: str = "data/repl",
    out: str = "data/repl_pairs",
    size: int = 2000,
    samples: int = 4,
    prompts: int | None = None,
    plan: Plan = PLAN,
    new_tokens: int | None = None,
    unended: bool = False,
    mixed: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    ema: bool | None = None,
    device: str = "auto",
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Draw answers from a model, and make a preference folder of its wrong ones.

    Args:
        checkpoint: the model: a run's .ckpt, a folder, or org/name on the hub.
        data: the folder of `prepare chat` whose questions are asked; training and validation pairs come of its own
            training and validation questions. Those of its test split, if it has one, are left alone.
        out: the folder to make; it appears when everything in it is done.
        size: training pairs at most, as many of each task as far as its wrong answers go; validation pairs in
            proportion.
        samples: answers drawn to each prompt; the first wrong one is taken.
        prompts: training prompts asked at most, evenly over the tasks (default: three times size).
        plan: how the answers are sampled.
        new_tokens: masks behind a prompt (default: as many as the longest answer needs with its end).
        unended: also take wrong answers that fill the canvas without an end; they get one.
        mixed: only prompts to which the model also gave the right answer: what it can do, but does not always.
        seed: seed of the order of the prompts and of the noise.
        batch_size: answers at once; none depends on it.
        ema: the averaged weights (default: if there are any).
        device: where the net shall be; auto takes the GPU if there is one.
        workers: processes that tokenize.
        chunk_mb: size of a chunk.
        overwrite: replace a folder that was made of something else.

    Returns:
        The folder.

    Raises:
        UserError: data that ask no questions, a checkpoint of another vocabulary, or no wrong answer at all.
    """
    limit = 3 * size if prompts is None else prompts
    for name, value in {"size": size, "samples": samples, "prompts": limit, "batch_size": batch_size}.items():
        if value < 1:
            raise UserError(f"prepare preference: {name} is {value}; it must be at least 1")
    device = pick_device(device)
    folder = DataFolder.open(data)
    splits: tuple[Split, ...] = ("train", "val")
    asked = {split: questions_of([folder], split) for split in splits}
    net = load_answerer(checkpoint, folder.tokenizer, data, ema, device)
    canvas = new_tokens or canvas_length([q for known, _ in asked.values() for q in known], plan.block_length)
    digest = weight_digest(net)
    facts: dict[str, Any] = {"checkpoint": {"path": str(checkpoint), "digest": digest}, "drawn": {}}

    def records(fractions: Fractions, **_: Any) -> Iterator[SourceRecord]:
        for split, (known, template) in asked.items():
            specials = Specials.of(folder.tokenizer, net.config.vocabulary, template)

            def answer(some: list[Question], seeds: list[int], specials: Specials = specials) -> Iterable[Any]:
                how: dict[str, Any] = {"seeds": seeds, "batch_size": batch_size, "device": device}
                said = replies(net, some, canvas, folder.tokenizer, specials, plan, **how)
                return track(said, "drawing answers", len(some), console=console, transient=True)

            scale = len(known) / len(asked["train"][0])
            wanted, most = math.ceil(size * scale), math.ceil(limit * scale)
            ask, usable = asker(known, answer, samples, seed), usable_in(folder.tokenizer, unended)
            found = find_wrong(known, ask, wanted, most, seed, usable, mixed)
            facts["drawn"][split] = found.counts
            if not found.pairs:
                raise UserError(_nothing(checkpoint, f"{data}/{split}", found))
            yield from _pairs(found, read_records(data, split), known, split)

    def source() -> Iterator[tuple[str, str]]:
        yield "checkpoint", digest
        yield from ((split, file_digest(Path(data, split, "records.jsonl"))) for split in asked)

    given = folder.manifest["options"]
    drawing = {
        "size": size,
        "samples": samples,
        "prompts": limit,
        "new_tokens": canvas,
        "unended": unended,
        "mixed": mixed,
    }
    options = {**drawing, "seed": seed, "plan": _changed(plan)}
    generated = Generated(f"answers of {checkpoint} to {data}", source, options, records, facts)
    how = RecordOptions(data, "auto", given["max_length"], "drop")
    fractions = Fractions(given["val_fraction"])
    return prepare_records("preference", [], out, generated, how, fractions, workers, chunk_mb, overwrite)


def usable_in(tokenizer: Tokenizer, unended: bool) -> Callable[[Reply], bool]:
    """An answer that ended, and that a record can hold: not blank, of whole characters, spelling no special token."""

    def usable(reply: Reply) -> bool:
        spoilt = "\ufffd" in reply.text or any(token in reply.text for token in tokenizer.special_ids)
        return (reply.ended or unended) and bool(reply.text.strip()) and not spoilt

    return usable


def _pairs(found: Found, records: Sequence[Record], known: Sequence[Question], split: Split) -> Iterator[SourceRecord]:
    for number, rejected in found.pairs:
        record = records[number]
        sides = [[*record.messages, {"role": "assistant", "content": text}] for text in (record.answer, rejected)]
        yield SourceRecord(0, known[number].task, sides, record.task, split)


def _changed(plan: Plan) -> dict[str, Any]:
    """What names the plan in the manifest: all that differs from the usual."""
    return {name: value for name, value in vars(plan).items() if value != getattr(Plan(), name)}


def _nothing(checkpoint: str, where: str, found: Found) -> str:
    total = Counter[str]()
    for count in found.counts.values():
        total.update(count)
    return (
        f"{checkpoint}: of {total['drawn']:,} answers to {where} {total['right']:,} are right, {total['wrong']:,} wrong"
        f" and {total['unended']:,} without an end, and none of them makes a pair; raise --samples, --temperature or"
        f" --prompts{', or --new_tokens' if total['unended'] else ''}"
    )
