"""Makes prepared folders of questions with answers: for fine-tuning (chat) and for preference optimisation."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_llada.errors import UserError
from lit_llada.files import file_digest
from lit_llada.prepare.chunks import console
from lit_llada.prepare.corpora.stdlib import modules, topics
from lit_llada.prepare.manifest import (
    SHARD,
    in_place_when_done,
    up_to_date,
    write_manifest,
)
from lit_llada.prepare.reading import ROWS, list_files
from lit_llada.prepare.record_chunks import Encoder, write_records
from lit_llada.prepare.record_sources import (
    SourceRecord,
    prompt_bounds,
    records_of_files,
    records_of_repl,
    records_of_twins,
)
from lit_llada.prepare.shards import Shards
from lit_llada.prepare.splits import Bounds, Fractions, Split
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.records import Kind, Long
from lit_llada.text.template_choice import choose_template, choose_tokenizer
from lit_llada.text.tokenizer import Tokenizer


def prepare_chat(
    inputs: list[str] = [],  # noqa: B006
    out: str = "data/repl",
    corpus: Literal["repl"] = "repl",
    size: int = 40_000,
    seed: int = 1,
    tokenizer: str = "byte",
    template: str = "auto",
    max_length: int = 4096,
    long: Long = "drop",
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Turn questions with answers into a folder to fine-tune on.

    A row is {prompt, response | completion | answer}, {question, answer}, {instruction, input, output},
    {messages: [{role, content}]} or ShareGPT's {conversations: [{from, value}]}; the fields of a file's first row
    decide. Rows are split by a hash of the prompt.

    Args:
        inputs: files and folders of .jsonl .parquet, also .gz .bz2 .xz .zst; none for the embedded corpus.
        out: the folder to make; it appears when everything in it is done.
        corpus: lines typed at Python's prompt, when there are no inputs; words are held out, not lines.
        size: lines to draw, when there are no inputs; one that is drawn twice is kept once.
        seed: seed of the lines.
        tokenizer: byte, the path of a tokenizer.json, or the folder of a checkpoint or of prepared data.
        template: auto (the checkpoint folder's own, else the first that the tokenizer has the tokens for), llada,
            llada_moe, plain, or the path of a Jinja file or of a folder with one.
        max_length: tokens of a record at most.
        long: what becomes of a longer one: drop it, cut its end off, or refuse; dropped and cut ones are counted.
        val_fraction: share of the prompts (embedded: of the words) held out for validation.
        test_fraction: share of the prompts (embedded: of the words) held out for `lit-llada test`; 0 makes no such
            split.
        workers: processes that tokenize.
        chunk_mb: size of a chunk.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing or malformed (with file and row), or ``out`` cannot be used.
    """
    name = f"REPL lines over the words of Python {platform.python_version()}"
    generated = Generated(name, topics, {"size": size, "seed": seed}, records_of_repl)
    how, fractions = RecordOptions(tokenizer, template, max_length, long), Fractions(val_fraction, test_fraction)
    return prepare_records("chat", inputs, out, generated, how, fractions, workers, chunk_mb, overwrite)


def prepare_preference(
    inputs: list[str] = [],  # noqa: B006
    out: str = "data/stdlib_pairs",
    corpus: Literal["stdlib"] = "stdlib",
    max_chars: int = 400,
    seed: int = 1,
    tokenizer: str = "byte",
    template: str = "auto",
    max_length: int = 4096,
    long: Long = "drop",
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Turn pairs of answers, the better one and the worse one, into a folder for preference optimisation.

    A row is {prompt, chosen, rejected} or {chosen, rejected}; each may be a text or a list of messages, and where
    there is no prompt, chosen and rejected are whole conversations that differ in their last message.

    Args:
        inputs: files and folders of .jsonl .parquet, also .gz .bz2 .xz .zst; none for the embedded corpus.
        out: the folder to make; it appears when everything in it is done.
        corpus: functions of the standard library and twins that do not parse, when there are no inputs; whole
            files are held out.
        max_chars: characters of a prompt and its function together at most, when there are no inputs.
        seed: seed of the damage.
        tokenizer: see prepare chat.
        template: see prepare chat.
        max_length: tokens of a prompt with its answer at most.
        long: what becomes of a longer pair: drop it, cut its end off, or refuse; dropped and cut ones are counted.
        val_fraction: share of the prompts (embedded: of the files) held out for validation.
        test_fraction: share of the prompts (embedded: of the files) held out for `lit-llada test`; 0 makes no such
            split.
        workers: processes that tokenize.
        chunk_mb: size of a chunk.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing or malformed (with file and row), or ``out`` cannot be used.
    """
    name = f"functions of the standard library of Python {platform.python_version()} and their twins"
    generated = Generated(name, modules, {"max_chars": max_chars, "seed": seed}, records_of_twins)
    how, fractions = RecordOptions(tokenizer, template, max_length, long), Fractions(val_fraction, test_fraction)
    return prepare_records("preference", inputs, out, generated, how, fractions, workers, chunk_mb, overwrite)


class Generated(NamedTuple):
    """Records generated by a program: REPL lines, damaged functions, answers drawn from a model.

    Args:
        name: what the manifest calls their source.
        source: gives the named texts that they are generated from, whose hash names the source.
        options: options of the generator, which the manifest keeps.
        records: generates them, called with the fractions and the options.
        facts: more entries of the manifest; the generator may fill them while it runs.
    """

    name: str
    source: Callable[[], Iterator[tuple[str, str]]]
    options: dict[str, Any]
    records: Callable[..., Iterator[SourceRecord]]
    facts: dict[str, Any] = {}  # noqa: RUF012


class RecordOptions(NamedTuple):
    """How records become ids: the options of the commands, by their names."""

    tokenizer: str
    template: str
    max_length: int
    long: Long


def prepare_records(
    kind: Kind,
    inputs: list[str],
    out: str,
    generated: Generated,
    how: RecordOptions,
    fractions: Fractions,
    workers: int,
    chunk_mb: float,
    overwrite: bool,
) -> Path:
    """Make a folder of the records of the inputs, or of the generated ones; the errors are those of the commands."""
    fractions.check()
    target = Path(out)
    tokenizer, folder = choose_tokenizer(how.tokenizer)
    template = choose_template(how.template, tokenizer, folder)
    if inputs:
        sources = [{"name": str(file), "sha256": file_digest(file)} for file in list_files(inputs, ROWS)]
    else:
        sources = [{"name": generated.name, "sha256": _digest("\0".join(named) for named in generated.source())}]
    options = {
        "tokenizer": tokenizer.digest,
        "template": _digest([template.source, template.bos_token, template.eos_token]),
        "max_length": how.max_length,
        "long": how.long,
        **fractions.options,
        "chunk_mb": chunk_mb,
        **({} if inputs else generated.options),
    }
    if up_to_date(target, kind, sources, options, overwrite):
        console.print(f"{target} is up to date")
        return target
    bounds = Bounds.of(fractions)
    if inputs:
        bounds = prompt_bounds(records_of_files(kind, sources, quiet=True), fractions)
        records = records_of_files(kind, sources)
    else:
        records = generated.records(fractions=fractions, **generated.options)
    encoder = Encoder(template, tokenizer, how.max_length, how.long)
    with in_place_when_done(target) as part:
        shards = functools.partial(_shard, records, bounds, sources, fractions.splits)
        splits = _build(part, shards, encoder, workers, chunk_mb)
        _save_tokenizer(part, tokenizer, template)
        chat = {"source": template.source, "bos_token": template.bos_token, "eos_token": template.eos_token}
        named = {"chat_template": {**chat, "name": template.name}, **({} if inputs else generated.facts)}
        write_manifest(part, kind, tokenizer, how.tokenizer, sources, options, splits, **named)
    for name, split in splits.items():
        lost = "".join(f", {split[how]:,} longer ones {how}" for how in ("dropped", "cut") if split[how])
        console.print(f"{target}/{name}: {split['records']:,} records, {split['tokens']:,} tokens{lost}")
    return target


def _build(
    part: Path, shard: Callable[[Path], dict[Split, list[str]]], encoder: Encoder, workers: int, chunk_mb: float
) -> dict[Split, dict[str, Any]]:
    """Fill `part` with the chunks of every split; what the manifest says of them."""
    with tempfile.TemporaryDirectory(dir=part) as scratch:  # in there, so that the next run removes a killed one's too
        shards = shard(Path(scratch))
        splits = {name: write_records(part / name, files, encoder, workers, chunk_mb) for name, files in shards.items()}
    for name, split in splits.items():
        if not split["records"]:
            raise UserError(f"no record of the {name} split is within max_length {encoder.max_length}; raise it")
    return splits


def _shard(
    records: Iterator[SourceRecord],
    bounds: Bounds,
    sources: list[dict[str, Any]],
    splits: tuple[Split, ...],
    scratch: Path,
) -> dict[Split, list[str]]:
    """Lay the records into shards of their splits, in order, and count them in their sources."""
    shards = {name: Shards(scratch / name, SHARD) for name in splits}
    for source in sources:
        source["records"] = 0
    for record in records:
        sources[record.source]["records"] += 1
        split = record.split or bounds.split_of(record.prompt)
        item = {"place": record.place, "record": record.conversations, "task": record.task}
        size = sum(len(message["content"].encode()) for messages in record.conversations for message in messages)
        shards[split].add(item, size)
    return {name: each.close() for name, each in shards.items()}


def _save_tokenizer(part: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Tokenizer and template side by side, as published folders have them."""
    tokenizer.save(part / "tokenizer")
    (part / "tokenizer" / "chat_template.jinja").write_text(template.source)
    config = part / "tokenizer" / "tokenizer_config.json"
    names = json.loads(config.read_text()) | ({"bos_token": template.bos_token} if template.bos_token else {})
    config.write_text(json.dumps(names, indent=2) + "\n")


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()
