"""Serves every run its data: prepared folders, checked before the first step, the same on all ranks."""

from __future__ import annotations

from itertools import chain
from typing import Any, ClassVar

import lightning as L

from lit_llada.data.folder import DataFolder, check_alike, is_remote
from lit_llada.data.order import AnyOrder, GlobalOrder
from lit_llada.data.ranks import agree
from lit_llada.data.streaming import Batches, Rows, TrainingLoader, ValidationLoader
from lit_llada.errors import UserError
from lit_llada.seeding import seed_of_run
from lit_llada.text.tokenizer import Tokenizer

REMOTE_WINDOW = 8  # chunks whose rows are shuffled together when chunks have to be fetched


class PreparedDataModule(L.LightningDataModule):
    """Rows out of folders made by `lit-llada prepare`, in an endless order whose whole state is one integer.

    A subclass says which folders it takes, what their rows are, and how a batch is made of them.

    Args:
        path: One folder, several (every row of each is used once an epoch), or folder -> weight for a mixture.
            A folder may be a URL that LitData reads (s3://, gs://, azure://, r2://, hf://).
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

    order: AnyOrder

    def __init__(
        self,
        path: str | list[str] | dict[str, float],
        batch_size: int,
        val_rows: int | None,
        num_workers: int | None,
        seed: int | None,
        shuffle_window: int | None,
        cache_dir: str | None,
        verify: bool,
    ) -> None:
        super().__init__()
        self.path, self.batch_size, self.val_rows = path, batch_size, val_rows
        self.num_workers, self.seed, self.shuffle_window = num_workers, seed_of_run(seed), shuffle_window
        self.cache_dir, self.verify = cache_dir, verify
        self.folders: list[DataFolder] = []
        self.rows: dict[str, list[Any]] = {"train": [], "val": []}

    # ---- what a subclass says

    # The least that each number may be.
    numbers: ClassVar[dict[str, int]] = {"batch_size": 1, "val_rows": 1, "num_workers": 0, "shuffle_window": 0}

    def check(self, folder: DataFolder) -> None:
        """UserError if the folder cannot be trained on."""
        raise NotImplementedError

    def open_rows(self, folder: DataFolder, split: str) -> Rows:
        """The rows of a split."""
        raise NotImplementedError

    def batches(self, split: str, order: AnyOrder) -> Batches:
        """How keys become batches."""
        raise NotImplementedError

    def regrouped(self, order: GlobalOrder) -> AnyOrder:
        """The order in which rows are trained on."""
        return order

    def position_identity(self) -> dict[str, Any]:
        """What a saved position depends on, besides folders, seed and shuffling: another value is another order.

        A checkpoint that was made with another value cannot go on, and is refused.
        """
        return {}

    def options(self) -> dict[str, Any]:
        """What else all ranks must agree on."""
        return {}

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
    def rows_per_epoch(self) -> int:
        return self.order.rows_per_epoch

    # ---- Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        """Open and check all folders (the first time), then compare notes with the other ranks."""
        rank, world = self._share()
        try:
            if not self.folders:
                self._open()
            if stage == "test":
                self._open_test()
            mine = {**self.identity, **self.options(), "world": world}
            mine |= {"batch_size": self.batch_size, "val_rows": self.val_rows}
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
            trainer.max_steps * accumulate, rank=rank, world=world, accumulate=accumulate, num_workers=self._workers()
        )

    def training_loader(self, batches: int = 0, **options: Any) -> TrainingLoader:
        """The training stream without a Trainer; `options` are those of TrainingLoader."""
        dataset = self.batches("train", self.order)
        return TrainingLoader(dataset, self.batch_size, batches, identity=self.identity, **options)

    def val_dataloader(self) -> ValidationLoader:
        """The validation rows, in fixed order and shared out over the ranks."""
        return self._fixed_loader("val", self.val_rows)

    def test_dataloader(self) -> ValidationLoader:
        """All rows of the test split, in fixed order and shared out over the ranks.

        Raises:
            UserError: a folder has no test split.
        """
        self._open_test()
        return self._fixed_loader("test")

    def predict_dataloader(self) -> list[Any]:
        """Loaders of training and validation, with the batches that training makes until every row has been met."""
        rank, world = self._share()
        quotas = self.identity["rows_of_each"]
        epochs = max(-(-len(rows) // quota) for rows, quota in zip(self.rows["train"], quotas, strict=True))
        batches = -(-epochs * self.rows_per_epoch // (self.batch_size * world))
        train = self.training_loader(batches, rank=rank, world=world, num_workers=self._workers())
        return [train, self.val_dataloader()]

    def teardown(self, stage: str | None = None) -> None:
        for rows in chain.from_iterable(self.rows.values()):
            rows.close()

    # ---- inside

    def _open(self) -> None:
        for name, least in self.numbers.items():
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
            check_alike(folder, folders[0])
            self.check(folder)
            folder.check_chunks(self.verify)
        rows = {split: [self.open_rows(folder, split) for folder in folders] for split in ("train", "val")}
        windows = [REMOTE_WINDOW * is_remote(p) if self.shuffle_window is None else self.shuffle_window for p in paths]
        order = GlobalOrder([r.chunk_rows for r in rows["train"]], weights, self.seed, windows)
        if not min(order.quotas) > 0:
            raise UserError(f"data.path has weights {weights}: one is too small for a single row in an epoch")
        self.identity = {  # what a position in the order depends on
            "seed": self.seed,
            **self.position_identity(),
            "data": [f.digest for f in folders],
            "rows_of_each": order.quotas,
            "shuffle_window": windows,
        }
        self.folders, self.rows = folders, rows
        self.order = self.regrouped(order)

    def _open_test(self) -> None:
        """Open the rows of the test split: not before they are asked for, so that they stop no training.

        Raises:
            UserError: a folder has no test split.
        """
        if "test" in self.rows:
            return
        for folder in self.folders:
            if "test" not in folder.splits:
                made = f"`lit-llada prepare {folder.kind} ... --test_fraction 0.05`"
                raise UserError(f"{folder.location} has no test split: make a folder that has one with {made}")
        self.rows["test"] = [self.open_rows(folder, "test") for folder in self.folders]

    def _fixed_loader(self, split: str, limit: int | None = None) -> ValidationLoader:
        rank, world = self._share()
        order = GlobalOrder([r.chunk_rows for r in self.rows[split]], seed=None)
        dataset, workers = self.batches(split, order), self._workers()
        return ValidationLoader(dataset, self.batch_size, limit, rank=rank, world=world, num_workers=workers)

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return 2 if self.trainer is not None and self.trainer.strategy.root_device.type == "cuda" else 0

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
