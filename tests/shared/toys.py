"""One toy of each thing that docs/architecture.md says how to add."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import lightning as L

from lit_llada.data.batch import Batch
from lit_llada.modules.base import DiffusionModule, StepOutput
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.prepare.chunks import write_chunks
from lit_llada.prepare.manifest import in_place_when_done, item_type, write_manifest
from lit_llada.prepare.shards import Shards
from lit_llada.text.tokenizer import Tokenizer


class EverythingMasked(DiffusionModule):
    """An objective: every token is masked, and each is predicted from nothing but its place."""

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        output = self._predict(batch)
        output["loss"] = self.sum_up(output["loss"], output["count"], output["router_logits"])
        self.add_keys(batch.keys)
        return output

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        return self.validated(self._predict(batch))

    def _predict(self, batch: Batch) -> StepOutput:
        positions = batch.maskable.flatten().nonzero().squeeze(1)
        noisy = batch.tokens.masked_fill(batch.maskable, self.mask_token)
        ones = positions.new_ones(len(positions)).float()
        loss, nll, router_logits = self.trained.weighted_nll(noisy, batch.tokens, positions, ones)
        count = batch.maskable.sum()
        return StepOutput(
            loss=loss,
            count=count,
            tokens=count,
            nll=nll,
            t=ones,
            p_mask=ones,
            masked=batch.maskable,
            router_logits=router_logits,
        )


class StepCounter(L.Callback):
    """A callback: how many optimizer steps it has seen, in a file."""

    def __init__(self, file: str) -> None:
        self.file, self.steps = file, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        Path(self.file).write_text(str(self.steps))


class NumbersModule(PretrainingModule):
    """A module that learns from a kind of data of its own."""

    learns_from: ClassVar[str] = "numbers"


def prepare_numbers(inputs: list[str] = [], out: str = "data/numbers", size: int = 200) -> Path:  # noqa: B006
    """Turn the first numbers into a folder to train on.

    Args:
        inputs: none.
        out: the folder to make.
        size: how many numbers.
    """
    tokenizer = Tokenizer.byte()
    with in_place_when_done(Path(out)) as part:
        tokenizer.save(part / "tokenizer")
        splits: dict[Any, dict[str, Any]] = {}
        for name, numbers in (("train", range(size)), ("val", range(size, size + size // 4))):
            shards = Shards(part / f"{name}-text", 1 << 20)
            text = " ".join(map(str, numbers))
            shards.add(text, len(text))
            files = shards.close()
            chunks = write_chunks(part / name, files, tokenizer, item_type(tokenizer), 1, 64)
            Path(files[0]).unlink()
            tokens = sum(chunk["tokens"] for chunk in chunks)
            splits[name] = {"bytes": len(text), "chunks": chunks, "tokens": tokens, "unigram_nll": 2.3}
        write_manifest(part, "numbers", tokenizer, "byte", [], {}, splits)
    return Path(out)
