"""Makes batches of prompts with answers: conversations or preference pairs of prepared folders."""

from __future__ import annotations

from typing import Any, ClassVar

from lit_llada.data.base import PreparedDataModule
from lit_llada.data.folder import DataFolder
from lit_llada.data.kinds import KINDS
from lit_llada.data.layout import AnswerBatches, Eos, Layout, RowLayout, Turns
from lit_llada.data.order import AnyOrder, Buckets, GlobalOrder
from lit_llada.data.streaming import RecordRows
from lit_llada.errors import UserError
from lit_llada.text.chat_template import ChatTemplate


class AnswerDataModule(PreparedDataModule):
    """Prompts with answers, for fine-tuning or preference optimisation, out of folders made by `lit-llada prepare`.

    Args:
        path: One folder of `prepare chat` or of `prepare preference`, several, or folder -> weight for a mixture.
        length: Tokens in a row: of a packed one exactly, of a padded one at most.
        batch_size: Conversations, or pairs, in a batch of one rank.
        layout: ``padded``: one to a row, as long as the longest of the batch; ``packed``: best fit into rows of
            `length` tokens, each seeing only itself.
        eos: What follows an answer. ``batch``: EOS up to the longest of the batch, part of the answer (LLaDA's SFT;
            needs padded rows). ``one``: nothing but its own end (VRPO). ``block``: EOS up to a multiple of
            `block_length` tokens, part of the answer (block diffusion).
        block_length: Tokens of a block, for ``eos: block``.
        turns: ``one``: a single answer of each dialogue with what comes before it, another one each epoch (LLaDA's
            SFT); ``all``: every answer of the dialogue in one sample.
        bucketing: Put conversations of like length together (in training), so that little is padding. With
            ``eos: batch`` that also takes away the long runs of EOS by which a model learns to end early: leave it off.
        val_rows: Validate on this many records, spread evenly over the validation split (default: all). A test always
            reads its whole split.
        num_workers: Reading processes; the batches are the same. Default: 2 where a GPU is to be fed, so that it never
            waits; else 0.
        seed: Seed of the order of the records, and of the choice of turns; None for the run's (``seed_everything``).
        shuffle_window: Shuffle the chunks, then records inside windows of so many chunks; 0: all at once.
            Default: 0 for local folders, 8 for remote ones.
        cache_dir: Where LitData keeps fetched chunks.
        verify: Compare the hash of every chunk with the manifest's before training (reads all data once).

    Raises:
        UserError: at `setup`, for whatever cannot be trained on; all ranks raise together.
    """

    def __init__(
        self,
        path: str | list[str] | dict[str, float] = "data/repl",
        length: int = 512,
        batch_size: int = 16,
        layout: Layout = "padded",
        eos: Eos = "batch",
        block_length: int = 32,
        turns: Turns = "one",
        bucketing: bool = False,
        val_rows: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        shuffle_window: int | None = None,
        cache_dir: str | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__(path, batch_size, val_rows, num_workers, seed, shuffle_window, cache_dir, verify)
        self.length, self.layout, self.eos, self.block_length = length, layout, eos, block_length
        self.turns, self.bucketing = turns, bucketing

    numbers: ClassVar[dict[str, int]] = {"length": 1, "block_length": 1, **PreparedDataModule.numbers}

    @property
    def kind(self) -> str:
        """``chat`` or ``preference``."""
        return self.folders[0].kind

    @property
    def chat_template(self) -> ChatTemplate:
        """The template that the (first) folder was prepared with."""
        return ChatTemplate(**self.manifest["chat_template"])

    def check(self, folder: DataFolder) -> None:
        if KINDS[folder.kind].datamodule != "AnswerDataModule":
            raise UserError(
                f"{folder.location} holds {folder.kind}, not answers: train on it with"
                f" {KINDS[folder.kind].datamodule}, or give a folder"
                " made by `lit-llada prepare chat` or `lit-llada prepare preference`"
            )
        if self.layout == "packed" and self.eos == "batch":
            raise UserError(
                "data.eos is batch, but data.layout is packed, where nothing is the longest of the batch: set data.eos"
                " to one or block, or data.layout to padded"
            )
        longest = max(int(lengths.max()) for lengths in folder.lengths.values())
        filled = longest + (self.block_length - 1 if self.eos == "block" else 0)
        if filled > self.length:
            more = f", and up to {filled - longest} EOS follow" if filled > longest else ""
            raise UserError(
                f"data.length is {self.length}, but a record of {folder.location} has {longest} tokens{more}: set"
                f" data.length to {filled}, or prepare with a smaller --max_length"
            )

    def open_rows(self, folder: DataFolder, split: str) -> RecordRows:
        return folder.records(split, self.cache_dir)

    def batches(self, split: str, order: AnyOrder) -> AnswerBatches:
        how = RowLayout(self.layout, self.length, self.eos, self.block_length)
        return AnswerBatches(self.rows[split], order, self.eos_id, how, turns=self.turns, seed=self.seed)

    def regrouped(self, order: GlobalOrder) -> AnyOrder:
        if not self.bucketing:
            return order
        return Buckets(order, [folder.lengths["train"].max(1) for folder in self.folders], self.seed)

    def position_identity(self) -> dict[str, Any]:
        return {"bucketing": self.bucketing}

    def options(self) -> dict[str, Any]:
        return {"layout": self.layout, "eos": self.eos, "block_length": self.block_length, "turns": self.turns}
