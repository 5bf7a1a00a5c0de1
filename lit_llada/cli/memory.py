"""Explains that memory ran out: one line that says what was asked for and what would make it smaller."""

from __future__ import annotations

import re
from typing import Any

# What makes a command that trains nothing smaller.
SMALLER = {
    "sample": ["--batch_size", "--new_tokens", "--dtype bfloat16"],
    "chat": ["--new_tokens", "--dtype bfloat16", "--device cpu"],
    "calibrate": ["--batch_size", "--new_tokens", "--dtype bfloat16"],
    "evaluate": ["--batch_size", "--new_tokens", "--device cpu"],
}


def asked_for(error: BaseException) -> str | None:
    """What an allocation that failed wanted, and where; None if ``error`` is about something else."""
    text = " ".join(str(error).split())
    failed = isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory|ALLOC_FAILED", text)
    if not failed and not isinstance(error, MemoryError):
        return None
    size = re.search(r"llocate ([\d.]+) ?(\w*[bB](?:ytes)?)\b", text)
    whole = re.search(r"(GPU \d+) has a total capacity of ([\d.]+ \w+)", text)
    wanted = f"{_readable(size[1], size[2])} more" if size else "more than there is"
    return wanted + (f" on {whole[1]} of {whole[2]}" if whole else "")


def smaller(verb: str, model: Any, data: Any, trainer: Any) -> list[str]:
    """At most three options with which a step of this run needs less, those first that change the least of it."""
    fits, parts = verb == "fit", trainer.accumulate_grad_batches
    accumulated = f" with trainer.accumulate_grad_batches {2 * parts}" if fits else ""
    sharded = type(trainer.strategy).__name__ == "FSDP2Strategy"
    options = {
        f"data.batch_size {data.batch_size // 2}{accumulated}": data.batch_size > 1,
        "model.checkpointing true": fits and not model.checkpointing,
        "model.lora.rank 8": fits and model.init_from is not None and model.lora is None,
        f"data.length {data.length // 2}": True,
        "more devices" if sharded else "trainer.strategy FSDP2Strategy on more devices": True,
        "trainer.precision bf16-true": not str(trainer.precision).startswith("bf16"),
    }
    return [option for option, applies in options.items() if applies][:3]


def _readable(number: str, unit: str) -> str:
    return f"{float(number) / 2**30:.1f} GiB" if unit == "bytes" else f"{number} {unit}"
