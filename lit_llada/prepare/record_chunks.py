"""Turns shards of records into LitData chunks of ids and answers, with lengths and text beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_llada.errors import UserError
from lit_llada.prepare.chunks import bar, described, write_items
from lit_llada.prepare.manifest import item_type
from lit_llada.prepare.shards import encode_in_order, items
from lit_llada.text.chat_template import ChatTemplate, Encoded
from lit_llada.text.records import Long, encode, shorten
from lit_llada.text.tokenizer import Tokenizer


class Encoder(NamedTuple):
    """Turns records into ids."""

    template: ChatTemplate
    tokenizer: Tokenizer
    max_length: int
    long: Long

    def shard(self, name: str) -> list[tuple[dict[str, Any], list[Encoded] | None, bool]]:
        """(record, its ids and answers or None if it is too long, whether it was cut) of a shard.

        Raises:
            UserError: begins with the place of the record.
        """
        found = []
        for item in items(name):
            try:
                whole = encode(item["record"], self.template, self.tokenizer)
                kept = shorten(whole, self.max_length, self.long)
            except UserError as error:
                raise UserError(f"{item['place']}: {error}") from None
            found.append((item, kept, kept != whole))
        return found


def write_records(folder: Path, shards: list[str], encoder: Encoder, workers: int, chunk_mb: float) -> dict[str, Any]:
    """Tokenize records into `folder`, the same whatever the number of workers; what the manifest says of the split.

    An item is ``[ids, spans]`` of a conversation, or ``[ids, spans, ids, spans]`` of a pair (chosen, rejected), with
    spans ``[start, stop, start, stop, ...]``. ``lengths.npy`` has the tokens of each, ``records.jsonl`` its text: a
    file that can be prepared again.
    """
    dtype = getattr(torch, item_type(encoder.tokenizer))
    counts: Counter[str] = Counter(dict.fromkeys(("records", "dropped", "cut", "tokens", "answer_tokens"), 0))
    tasks: Counter[str] = Counter()
    lengths: list[list[int]] = []
    encoded = encode_in_order(shards, encoder.shard, workers)
    progress = bar(encoded, f"tokenizing {folder.name}", len(shards))

    def kept(shards: Iterable[list[tuple[dict[str, Any], list[Encoded] | None, bool]]]) -> Iterator[list[Tensor]]:
        for item, record, shortened in (entry for shard in shards for entry in shard):
            if record is None:
                counts["dropped"] += 1
                continue
            lengths.append([len(one.ids) for one in record])
            counts["records"] += 1
            counts["cut"] += shortened
            counts["tokens"] += sum(lengths[-1])
            counts["answer_tokens"] += sum(stop - start for one in record for start, stop in one.answers)
            if name := item.get("task"):
                tasks[name] += 1
            text.write(json.dumps(_text(item)) + "\n")
            spans = (torch.tensor(one.answers, dtype=torch.int32).flatten() for one in record)
            ids = (torch.tensor(one.ids, dtype=torch.int32).to(dtype) for one in record)
            yield [part for one in zip(ids, spans, strict=True) for part in one]

    folder.mkdir()
    with (folder / "records.jsonl").open("w") as text:
        chunks = write_items(folder, kept(progress), "records", chunk_bytes=max(1, int(chunk_mb * 1e6)))
    np.save(folder / "lengths.npy", np.array(lengths, np.int32))
    files = [described(folder / name) for name in ("lengths.npy", "records.jsonl")]
    named = {"tasks": dict(sorted(tasks.items()))} if tasks else {}
    return {**counts, "longest": max(map(max, lengths), default=0), **named, "chunks": chunks, "files": files}


def _text(item: dict[str, Any]) -> dict[str, Any]:
    """A record in the form that it could be prepared from again."""
    chosen, *rejected = item["record"]
    named = {"task": item["task"]} if item.get("task") else {}
    if not rejected:
        return {"messages": chosen, **named}
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[0][-1:], **named}
