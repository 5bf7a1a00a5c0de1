"""Which data does a run train on: prepared folders, checked before the first step, as one LightningDataModule."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch.distributed as dist

from lit_llada.data.folder import DataFolder, is_remote
from lit_llada.data.order import Order
from lit_llada.data.streaming import TokenRows, TrainingLoader, ValidationLoader
from lit_llada.data.tokenizer import Tokenizer
from lit_llada.errors import UserError

REMOTE_WINDOW = 8  # chunks whose rows are shuffled together when chunks have to be fetched


def agree(mine: dict[str, Any], rank: int) -> None:
    """Raise the same UserError on all processes if one of them has a problem, other data, or another one's rows."""
    everyone: list[Any] = [(rank, mine)]
    if dist.is_available() and dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (rank, mine))
    for process, (_, theirs) in enumerate(everyone):
        if "problem" in theirs:
            raise UserError(theirs["problem"] if len(everyone) == 1 else f"rank {process}: {theirs['problem']}")
    for process, (_, theirs) in enumerate(everyone):
        for name, value in theirs.items():
            if value != everyone[0][1][name]:
                first = everyone[0][1][name]
                raise UserError(f"rank {process} has {name} = {value} but rank 0 has {first}: give all ranks the same")
    shares = [share for share, _ in everyone]
    if sorted(shares) != list(range(len(everyone))) or mine["world"] != len(everyone):
        raise UserError(
            f"{len(everyone)} processes would read shares {shares} of {mine['world']}, so some the same rows: give the"
            f" strategy data_parallel_size = {len(everyone)} and tensor_parallel_size = 1"
        )


class DiffusionDataModule(L.LightningDataModule):
    """Packed rows for pre-training out of folders made by `lit-llada prepare`.

    Args:
        path: One folder, several (every row of each is used once an epoch), or folder -> weight for a mixture.
            A folder may be a URL that LitData reads (s3://, gs://, azure://, r2://, hf://).
        length: Tokens in a row.
        batch_size: Rows in a batch of one rank.
        val_rows: Validate on this many rows, spread evenly over the validation split (default: all).
        num_workers: Reading processes. 0 is the fastest for local folders; the batches are the same.
        seed: Of the order of the rows.
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
        num_workers: int = 0,
        seed: int = 1,
        shuffle_window: int | None = None,
        cache_dir: str | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__()
        self.path, self.length, self.batch_size, self.val_rows = path, length, batch_size, val_rows
        self.num_workers, self.seed, self.shuffle_window = num_workers, seed, shuffle_window
        self.cache_dir, self.verify = cache_dir, verify
        self.folders: list[DataFolder] = []
        self.rows: dict[str, list[TokenRows]] = {"train": [], "val": []}

    # ---- what is in the data (after setup)

    @property
    def manifests(self) -> list[dict[str, Any]]:
        return [folder.manifest for folder in self.folders]

    @property
    def manifest(self) -> dict[str, Any]:
        return self.manifests[0]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.folders[0].tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def mask_id(self) -> int:
        return self.tokenizer.mask_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per validation token: bits per byte = nats per token / bytes_per_token / ln 2."""
        splits = [m["splits"]["val"] for m in self.manifests]
        return sum(s["bytes"] for s in splits) / sum(s["tokens"] for s in splits)

    @property
    def unigram_nll(self) -> float:
        """Nats per validation token of the training split's unigram model (several folders: weighted by tokens)."""
        splits = [m["splits"]["val"] for m in self.manifests]
        return sum(s["unigram_nll"] * s["tokens"] for s in splits) / sum(s["tokens"] for s in splits)

    @property
    def reference_levels(self) -> dict[str, float]:
        """Bits per byte of models without a net on the validation text (several folders: weighted by bytes)."""
        splits = [m["splits"]["val"] for m in self.manifests]
        total = sum(s["bytes"] for s in splits)
        names = splits[0]["reference_bits_per_byte"]
        return {n: sum(s["reference_bits_per_byte"][n] * s["bytes"] for s in splits) / total for n in names}

    @property
    def rows_per_epoch(self) -> int:
        return self.order.rows_per_epoch

    # ---- Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Open and check all folders (the first time), then compare notes with the other ranks."""
        rank, world = self._share()
        try:
            if not self.folders:
                self._open()
            mine = {**self.identity, "batch_size": self.batch_size, "val_rows": self.val_rows, "world": world}
        except UserError as error:
            mine = {"problem": str(error)}
        agree(mine, rank)

    def train_dataloader(self) -> TrainingLoader:
        """The endless stream of training batches, of which Lightning takes what is left up to max_steps."""
        rank, world = self._share()
        trainer, accumulate = self.trainer, 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        if trainer is None or trainer.max_steps < 0:
            step = self.batch_size * world * accumulate
            raise UserError(f"set trainer.max_steps: one pass over the data is {self.rows_per_epoch / step:,.1f} steps")
        _align_progress(trainer)
        return self.training_loader(
            trainer.max_steps * accumulate, rank=rank, world=world, accumulate=accumulate, num_workers=self.num_workers
        )

    def training_loader(self, batches: int = 0, **options: Any) -> TrainingLoader:
        """The training stream without a Trainer; `options` are those of TrainingLoader."""
        args = (self.rows["train"], self.order, self.eos_id, self.batch_size, batches)
        return TrainingLoader(*args, identity=self.identity, **options)

    def val_dataloader(self) -> ValidationLoader:
        """The validation rows, in fixed order and shared out over the ranks."""
        rank, world = self._share()
        order = Order([r.chunk_rows for r in self.rows["val"]], seed=None)
        args = (self.rows["val"], order, self.eos_id, self.batch_size, self.val_rows)
        return ValidationLoader(*args, rank=rank, world=world, num_workers=self.num_workers)

    def test_dataloader(self) -> ValidationLoader:
        """There is no third split: ``test`` reads the validation rows."""
        return self.val_dataloader()

    def teardown(self, stage: str | None = None) -> None:
        for rows in [*self.rows["train"], *self.rows["val"]]:
            rows.close()

    # ---- inside

    def _open(self) -> None:
        for name, least in {"length": 1, "batch_size": 1, "val_rows": 1, "num_workers": 0, "shuffle_window": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}: set it to {least} or more")
        paths = [self.path] if isinstance(self.path, str) else list(self.path)
        weights = [float(w) for w in self.path.values()] if isinstance(self.path, dict) else None
        if not paths:
            raise UserError("data.path names no folder: give at least one made by `lit-llada prepare`")
        if weights is not None and not min(weights) > 0:
            raise UserError(f"data.path has weights {weights}: make each more than 0, or leave the folder out")
        folders = [DataFolder.open(path) for path in paths]
        for folder in folders:
            if folder.tokenizer.digest != folders[0].tokenizer.digest:
                raise UserError(
                    f"{folder.location} was prepared with another tokenizer than {folders[0].location}: prepare one of"
                    " them again with the other's tokenizer"
                )
            folder.check_chunks(self.verify)
        rows = {s: [f.rows(s, self.length, self.cache_dir) for f in folders] for s in ("train", "val")}
        windows = [REMOTE_WINDOW * is_remote(p) if self.shuffle_window is None else self.shuffle_window for p in paths]
        self.order = Order([r.chunk_rows for r in rows["train"]], weights, self.seed, windows)
        if not min(self.order.quotas) > 0:
            raise UserError(f"data.path has weights {weights}: one is too small for a single row in an epoch")
        self.identity = {  # what a position in the order depends on
            "seed": self.seed,
            "length": self.length,
            "data": [f.digest for f in folders],
            "rows_of_each": self.order.quotas,
            "shuffle_window": windows,
        }
        self.folders, self.rows = folders, rows

    def _share(self) -> tuple[int, int]:
        """(rank, world) among the processes that read different rows."""
        kwargs = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (kwargs["rank"], kwargs["num_replicas"]) if kwargs else (0, 1)


def _align_progress(trainer: L.Trainer) -> None:
    """Make Lightning's count of batches the count of optimizer steps times accumulate_grad_batches.

    It already is, unless a run is resumed with another accumulate_grad_batches, or stopped between two optimizer steps
    (the partial gradients are lost, and the loader goes back to where they began). Then Lightning would make
    the first step of too few batches, and end too early.
    """
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    shift = trainer.global_step * trainer.accumulate_grad_batches - current.processed
    for name in ("ready", "started", "processed", "completed"):
        setattr(current, name, getattr(current, name) + shift)
