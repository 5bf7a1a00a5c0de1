"""Somebody's questions and answers -> a prepared folder, for fine-tuning (chat) or preference optimisation."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_llada.errors import UserError
from lit_llada.files import file_digest, text_hash
from lit_llada.prepare.chunks import console
from lit_llada.prepare.corpora.stdlib import modules, topics
from lit_llada.prepare.manifest import (
    SHARD,
    check_share,
    in_place_when_done,
    up_to_date,
    write_manifest,
)
from lit_llada.prepare.reading import ROWS, list_files
from lit_llada.prepare.record_chunks import Encoder, write_records
from lit_llada.prepare.record_sources import Row, bound_of, file_rows, repl_rows, twin_rows
from lit_llada.prepare.shards import Shards
from lit_llada.text.chat_template import ChatTemplate
from lit_llada.text.records import Kind, Long, prompt_of
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
    workers: int = 2,
    chunk_mb: float = 64,
    overwrite: bool = False,
) -> Path:
    """Turn questions with answers into a folder to fine-tune on.

    A row is {prompt, response | completion | answer}, {question, answer}, {instruction, input, output},
    {messages: [{role, content}]} or ShareGPT's {conversations: [{from, value}]}; the fields of a file's first row
    decide. Rows are split into training and validation by a hash of the prompt.

    Args:
        inputs: files and folders of .jsonl .parquet, also .gz .bz2 .xz .zst; none for the embedded corpus.
        out: the folder to make; it appears when everything in it is done.
        corpus: lines typed at Python's prompt, when there are no inputs; words are held out, not lines.
        size: lines to draw, when there are no inputs; one that is drawn twice is kept once.
        seed: of the lines.
        tokenizer: byte, the path of a tokenizer.json, or the folder of a checkpoint or of prepared data.
        template: auto (the checkpoint folder's own, else the first that the tokenizer has the tokens for), llada,
            llada_moe, plain, or the path of a Jinja file or of a folder with one.
        max_length: tokens of a record at most.
        long: what becomes of a longer one: drop it, cut its end off, or refuse; dropped and cut ones are counted.
        val_fraction: share of the prompts (embedded: of the words) held out.
        workers: processes that tokenize.
        chunk_mb: size of a chunk.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing or malformed (with file and row), or ``out`` cannot be used.
    """
    drawn = f"REPL lines over the words of Python {platform.python_version()}"
    embedded = Embedded(drawn, topics, {"size": size, "seed": seed}, repl_rows)
    model = Model(tokenizer, template, max_length, long)
    return prepare_records("chat", inputs, out, embedded, model, val_fraction, workers, chunk_mb, overwrite)


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
        max_chars: of a prompt and its function together, when there are no inputs.
        seed: of the damage.
        tokenizer: see prepare chat.
        template: see prepare chat.
        max_length: tokens of a prompt with its answer at most.
        long: what becomes of a longer pair: drop it, cut its end off, or refuse; dropped and cut ones are counted.
        val_fraction: share of the prompts (embedded: of the files) held out.
        workers: processes that tokenize.
        chunk_mb: size of a chunk.
        overwrite: replace a folder that was made of something else.

    Raises:
        UserError: an input is missing or malformed (with file and row), or ``out`` cannot be used.
    """
    drawn = f"functions of the standard library of Python {platform.python_version()} and their twins"
    embedded = Embedded(drawn, modules, {"max_chars": max_chars, "seed": seed}, twin_rows)
    model = Model(tokenizer, template, max_length, long)
    return prepare_records("preference", inputs, out, embedded, model, val_fraction, workers, chunk_mb, overwrite)


class Embedded(NamedTuple):
    """Records that nobody wrote down."""

    name: str
    source: Callable[[], Iterator[tuple[str, str]]]  # named texts that it is drawn from
    options: dict[str, Any]
    rows: Callable[..., Iterator[Row]]  # called with share and the options
    facts: dict[str, Any] = {}  # noqa: RUF012  what else the manifest says; whoever makes the rows may fill it


class Model(NamedTuple):
    """How records are written; the options of the commands."""

    tokenizer: str
    template: str
    max_length: int
    long: Long


def prepare_records(
    kind: Kind,
    inputs: list[str],
    out: str,
    embedded: Embedded,
    model: Model,
    val_fraction: float,
    workers: int,
    chunk_mb: float,
    overwrite: bool,
) -> Path:
    """The records of the inputs, or the embedded ones, as a folder; the errors are those of the commands above."""
    check_share(val_fraction)
    target = Path(out)
    tokenizer, folder = choose_tokenizer(model.tokenizer)
    template = choose_template(model.template, tokenizer, folder)
    if inputs:
        sources = [{"name": str(file), "sha256": file_digest(file)} for file in list_files(inputs, ROWS)]
    else:
        sources = [{"name": embedded.name, "sha256": _digest("\0".join(named) for named in embedded.source())}]
    options = {
        "tokenizer": tokenizer.digest,
        "template": _digest([template.source, template.bos_token, template.eos_token]),
        "max_length": model.max_length,
        "long": model.long,
        "val_fraction": val_fraction,
        "chunk_mb": chunk_mb,
        **({} if inputs else embedded.options),
    }
    if up_to_date(target, kind, sources, options, overwrite):
        console.print(f"{target} is up to date")
        return target
    rows = file_rows(kind, sources) if inputs else embedded.rows(share=val_fraction, **embedded.options)
    bound = bound_of(file_rows(kind, sources, quiet=True), val_fraction) if inputs else 0
    encoder = Encoder(template, tokenizer, model.max_length, model.long)
    with in_place_when_done(target) as part:
        splits = _build(part, rows, bound, sources, encoder, workers, chunk_mb)
        _save_model(part, tokenizer, template)
        chat = {"source": template.source, "bos_token": template.bos_token, "eos_token": template.eos_token}
        named = {"chat_template": {**chat, "name": template.name}, **({} if inputs else embedded.facts)}
        write_manifest(part, kind, tokenizer, model.tokenizer, sources, options, splits, **named)
    for name, split in splits.items():
        lost = "".join(f", {split[how]:,} longer ones {how}" for how in ("dropped", "cut") if split[how])
        console.print(f"{target}/{name}: {split['records']:,} records, {split['tokens']:,} tokens{lost}")
    return target


def _build(
    part: Path,
    rows: Iterator[Row],
    bound: int,
    sources: list[dict[str, Any]],
    encoder: Encoder,
    workers: int,
    chunk_mb: float,
) -> dict[str, dict[str, Any]]:
    """Fill `part` with the chunks of both splits; what the manifest says of them."""
    with tempfile.TemporaryDirectory(dir=part) as scratch:  # in there, so that the next run removes a killed one's too
        shards = {name: Shards(Path(scratch, name), SHARD) for name in ("train", "val")}
        for source in sources:
            source["records"] = 0
        for row in rows:
            sources[row.source]["records"] += 1
            held_out = text_hash(prompt_of(row.record[0])) < bound if row.held_out is None else row.held_out
            item = {"place": row.place, "record": row.record, "task": row.task}
            size = sum(len(message["content"].encode()) for messages in row.record for message in messages)
            shards["val" if held_out else "train"].add(item, size)
        splits = {n: write_records(part / n, s.close(), encoder, workers, chunk_mb) for n, s in shards.items()}
    for name, split in splits.items():
        if not split["records"]:
            raise UserError(f"no record of the {name} split is within max_length {encoder.max_length}; raise it")
    return splits


def _save_model(part: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
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
