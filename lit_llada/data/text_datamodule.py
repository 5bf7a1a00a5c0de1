"""Makes batches of text: packed rows of prepared folders."""

from __future__ import annotations

from typing import Any, ClassVar

from lit_llada.data.base import PreparedDataModule
from lit_llada.data.folder import DataFolder
from lit_llada.data.kinds import KINDS
from lit_llada.data.order import AnyOrder
from lit_llada.data.streaming import TextBatches, TokenRows
from lit_llada.errors import UserError


class DiffusionDataModule(PreparedDataModule):
    """Packed rows for pre-training out of folders made by `lit-llada prepare`.

    Args:
        path: One folder, several (every row of each is used once an epoch), or folder -> weight for a mixture.
            A folder may be a URL that LitData reads (s3://, gs://, azure://, r2://, hf://).
        length: Tokens in a row.
        batch_size: Rows in a batch of one rank.
        val_rows: Validate on this many rows, spread evenly over the validation split (default: all). A test
            always reads its whole split.
        num_workers: Reading processes; the batches are the same. Default: 2 where a GPU is to be fed, so that it never
            waits; else 0, the fastest for local folders.
        seed: Seed of the order of the rows; None for the run's (``seed_everything``).
        shuffle_window: Shuffle the chunks, then rows inside windows of so many chunks; 0: all rows at once.
            Default: 0 for local folders, 8 for remote ones, so that a row does not cost a download.
        cache_dir: Where LitData keeps fetched chunks.
        verify: Compare the hash of every chunk with the manifest's before training (reads all data once).

    Raises:
        UserError: at `setup`, for whatever cannot be trained on; all ranks raise together.
    """

    def __init__(
        self,
        path: str | list[str] | dict[str, float] = "data/stdlib",
        length: int = 256,
        batch_size: int = 16,
        val_rows: int | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        shuffle_window: int | None = None,
        cache_dir: str | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__(path, batch_size, val_rows, num_workers, seed, shuffle_window, cache_dir, verify)
        self.length = length

    numbers: ClassVar[dict[str, int]] = {"length": 1, **PreparedDataModule.numbers}

    def check(self, folder: DataFolder) -> None:
        if KINDS[folder.kind].datamodule != "DiffusionDataModule":
            raise UserError(
                f"{folder.location} holds {folder.kind}, not text: train on it with {KINDS[folder.kind].datamodule}, or"
                " give a folder made by `lit-llada prepare text`"
            )

    def open_rows(self, folder: DataFolder, split: str) -> TokenRows:
        return folder.rows(split, self.length, self.cache_dir)

    def batches(self, split: str, order: AnyOrder) -> TextBatches:
        return TextBatches(self.rows[split], order, self.eos_id)

    def position_identity(self) -> dict[str, Any]:
        return {"length": self.length}

    # ---- what is in the data (after setup)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per validation token: bits per byte = nats per token / bytes_per_token / ln 2."""
        splits = self._evaluated
        return sum(s["bytes"] for s in splits) / sum(s["tokens"] for s in splits)

    @property
    def unigram_nll(self) -> float:
        """Nats per validation token of the training split's unigram model (several folders: weighted by tokens)."""
        splits = self._evaluated
        return sum(s["unigram_nll"] * s["tokens"] for s in splits) / sum(s["tokens"] for s in splits)

    @property
    def baseline_levels(self) -> dict[str, float]:
        """Bits per byte of models without a net on the validation text (several folders: weighted by bytes)."""
        splits = self._evaluated
        total = sum(s["bytes"] for s in splits)
        names = splits[0].get("reference_bits_per_byte", {})  # folders of an earlier version have none
        return {n: sum(s["reference_bits_per_byte"][n] * s["bytes"] for s in splits) / total for n in names}

    @property
    def _evaluated(self) -> list[dict[str, Any]]:
        """What the manifests say of the split that the figures are of: validation, or the test while there is one."""
        split = "test" if self.trainer is not None and self.trainer.testing else "val"
        return [manifest["splits"][split] for manifest in self.manifests]
