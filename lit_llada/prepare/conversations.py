"""Makes prepared folders of questions with answers: for fine-tuning (chat) and for preference optimisation."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

from lit_llada.prepare.corpora.stdlib import modules, topics
from lit_llada.prepare.record_folder import Generated, RecordOptions, prepare_records
from lit_llada.prepare.record_sources import records_of_repl, records_of_twins
from lit_llada.prepare.splits import Fractions
from lit_llada.text.records import Long


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
