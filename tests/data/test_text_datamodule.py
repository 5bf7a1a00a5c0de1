"""The datamodule on real folders: exact under Lightning, and every unusable input refused in one line before a step."""

from __future__ import annotations

import gc
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from litdata.streaming import TokensLoader

from lit_llada.data.folder import DataFolder
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.prepare.chunks import write_items
from lit_llada.text.tokenizer import Tokenizer

LENGTH = 16


def documents(numbers: Iterable[int]) -> Iterator[torch.Tensor]:
    for number in numbers:
        text = f"Document {number}: " + f"{number * 7919 % 1000} and so on. " * (number % 4 + 1)
        yield torch.tensor([*text.encode(), 256], dtype=torch.int32).to(torch.uint16)


def make(
    root: Path, name: str, first: int = 0, count: int = 40, val_count: int = 8, tokenizer: Any = None, test: int = 0
) -> str:
    """A prepared folder of `count` short documents, in chunks of about 600 tokens."""
    folder, splits = root / name, {}
    tokenizer = tokenizer or Tokenizer.byte()
    numbered = {"train": (first, count), "val": (first + count, val_count), "test": (first + count + val_count, test)}
    if not test:
        del numbered["test"]
    for split, numbers in numbered.items():
        (folder / split).mkdir(parents=True)
        pieces = documents(range(numbers[0], sum(numbers)))
        entries = write_items(folder / split, pieces, "tokens", chunk_size=600, item_loader=TokensLoader())
        tokens = sum(c["tokens"] for c in entries)
        splits[split] = {"tokens": tokens, "documents": numbers[1], "bytes": tokens - numbers[1], "chunks": entries}
    splits["val"]["unigram_nll"] = 3.0
    if test:
        splits["test"]["unigram_nll"] = 2.0
    tokenizer.save(folder / "tokenizer")
    ids = {"vocab_size": tokenizer.vocab_size, "mask_id": tokenizer.mask_id, "eos_id": tokenizer.eos_id}
    manifest = {"format": 1, "tokenizer": {"digest": tokenizer.digest, "kind": "byte", **ids}, "dtype": "uint16"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "splits": splits}))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("data")
    return [make(root, "a"), make(root, "b", first=100, count=20)]


@pytest.fixture
def folder(folders: list[str], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(folders[0], tmp_path / "copy"))


def data(path: Any, **options: Any) -> DiffusionDataModule:
    return DiffusionDataModule(**{"path": path, "length": LENGTH, "batch_size": 4, **options})


def ready(path: Any, **options: Any) -> DiffusionDataModule:
    module = data(path, **options)
    module.setup()
    return module


# ---- what a batch holds


def test_batches_are_rows_of_the_chunks(folders: list[str]) -> None:
    module = ready(folders[0])
    stored = [torch.cat(list(documents(list(range(40)))))]
    text = bytes(t for t in stored[0].tolist() if t < 256)
    batch = next(iter(module.training_loader()))
    assert batch.tokens.shape == (4, LENGTH)
    assert batch.tokens.dtype == torch.int64
    assert batch.maskable.all()
    for row, ids in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        assert bytes(t for t in row if t < 256) in text
        assert ids[-1] == sum(t == 256 for t in row[:-1])
    assert (module.vocab_size, module.eos_id, module.mask_id) == (258, 256, 257)
    val = module.manifest["splits"]["val"]
    assert module.bytes_per_token == val["bytes"] / val["tokens"] < 1
    assert module.unigram_nll == 3.0


def test_an_epoch_uses_every_row_of_every_folder_once(folders: list[str]) -> None:
    module = ready(folders, batch_size=1)
    keys = [int(b.keys) for b in islice(module.training_loader(), module.rows_per_epoch)]
    folder, row = module.order.locate(torch.tensor(keys).numpy())
    pairs = sorted(zip(folder.tolist(), row.tolist(), strict=True))
    assert pairs == [(d, r) for d in (0, 1) for r in range(len(module.rows["train"][d]))]


def test_mixtures_follow_their_weights(folders: list[str]) -> None:
    module = ready({folders[0]: 0.6, folders[1]: 0.4})
    a, b = module.order.quotas
    assert abs(a / (a + b) - 0.6) < 1 / (a + b)


def test_validation_rows_and_their_limit(folders: list[str]) -> None:
    module = ready(folders)
    total = sum(len(rows) for rows in module.rows["val"])
    keys = torch.cat([b.keys for b in module.val_dataloader()]).tolist()
    assert keys == list(range(total))
    limited = ready(folders, val_rows=6)
    batches = list(limited.val_dataloader())
    assert [len(b.keys) for b in batches] == [4, 2]
    assert torch.cat([b.keys for b in batches]).tolist() == [i * total // 6 for i in range(6)]


def rows_of(split: str, module: DiffusionDataModule) -> int:
    return sum(len(rows) for rows in module.rows[split])


def test_a_test_reads_all_rows_of_its_own_split(tmp_path: Path) -> None:
    folders = [make(tmp_path, "a", test=9), make(tmp_path, "b", first=100, count=20, test=5)]
    module = ready(folders, val_rows=2)
    batches = list(module.test_dataloader())
    assert torch.cat([batch.keys for batch in batches]).tolist() == list(range(rows_of("test", module)))
    texts = [bytes(t for t in row if t < 256) for batch in batches for row in batch.tokens.tolist()]
    for first, count in ((48, 9), (128, 5)):  # behind the documents of training and validation
        whole = bytes(t for t in torch.cat(list(documents(range(first, first + count)))).tolist() if t < 256)
        found = [text for text in texts if text in whole]
        assert len(found) >= len(whole) // LENGTH - count
        texts = [text for text in texts if text not in whole]
    assert texts == []
    assert ready(folders).identity == module.identity  # the test is no part of what a run depends on


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_test_rows_in_equal_batches(tmp_path: Path, world: int) -> None:
    module = ready(make(tmp_path, "a", test=7))
    found = []
    for rank in range(world):
        module._share = lambda rank=rank: (rank, world)  # type: ignore[method-assign,misc]
        found.append(list(module.test_dataloader()))
    sizes = [[len(batch.keys) for batch in share] for share in found]
    assert all(share == sizes[0] for share in sizes)
    total = rows_of("test", module)
    assert total % world or total % (4 * world)
    real = [int(k) for share in found for b in share for k, m in zip(b.keys, b.maskable, strict=True) if m.any()]
    assert sorted(real) == list(range(total))


def test_a_remote_test_split_gives_the_same_rows(tmp_path: Path) -> None:
    folder = make(tmp_path, "a", test=7)
    local, remote = ready(folder), ready(f"local:{folder}", cache_dir=str(tmp_path / "cache"))
    assert remote.folders[0].splits == ("train", "val", "test")
    for mine, theirs in zip(local.test_dataloader(), remote.test_dataloader(), strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
    remote.teardown()


def test_without_a_test_split_a_test_is_refused_and_says_how_to_make_one(folders: list[str], tmp_path: Path) -> None:
    message = r"a has no test split: .* `lit-llada prepare text \.\.\. --test_fraction 0\.05`"
    with pytest.raises(UserError, match=message):
        ready(folders[0]).test_dataloader()
    with pytest.raises(UserError, match=message):
        data([make(tmp_path, "with", test=5), folders[0]]).setup("test")


def test_a_test_split_that_is_too_short_stops_no_training(tmp_path: Path) -> None:
    module = ready(make(tmp_path, "a", test=1), length=200)
    with pytest.raises(UserError, match="longer than every test chunk"):
        module.test_dataloader()


def test_figures_of_a_test_are_those_of_its_text(tmp_path: Path) -> None:
    module = ready(make(tmp_path, "a", test=9))
    splits, found = module.manifest["splits"], {}
    for testing in (False, True):
        module.trainer = SimpleNamespace(testing=testing)  # type: ignore[assignment]
        found[testing] = (module.bytes_per_token, module.unigram_nll)
    assert found == {
        testing: (splits[split]["bytes"] / splits[split]["tokens"], nll)
        for testing, split, nll in ((False, "val", 3.0), (True, "test", 2.0))
    }
    assert found[False][0] != found[True][0]


def test_a_remote_folder_gives_the_same_rows(folders: list[str], tmp_path: Path) -> None:
    options = {"shuffle_window": 2, "cache_dir": str(tmp_path)}
    local, remote = ready(folders[0], **options), ready(f"local:{folders[0]}", **options)
    assert local.identity == remote.identity
    for mine, theirs in zip(islice(local.training_loader(), 12), remote.training_loader(), strict=False):
        assert torch.equal(mine.tokens, theirs.tokens)
    assert ready(f"local:{folders[0]}").identity["shuffle_window"] == [8]
    remote.teardown()


# ---- under Lightning


class Recorder(L.LightningModule):
    """Notes the keys and the tokens of each training batch, with the optimizer step that they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int], list[list[int]]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append((self.global_step, batch.keys.tolist(), batch.tokens.tolist()))
        return self.weight.sum()

    def validation_step(self, batch: Any) -> None:
        self.validated += batch.keys.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: DiffusionDataModule, root: Path, steps: int, ckpt: Path | None = None, **options: Any) -> Recorder:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
    }
    quiet["default_root_dir"] = root
    keep = ModelCheckpoint(root, "{step}", every_n_train_steps=1, save_top_k=-1)
    model = Recorder()
    trainer = L.Trainer(max_steps=steps, **{**quiet, "callbacks": [keep], **options})
    trainer.fit(model, datamodule=module, ckpt_path=ckpt, weights_only=True)
    assert trainer.global_step == steps
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_saves_and_restores_the_place(folders: list[str], tmp_path: Path, workers: int) -> None:
    steps = 3 * ready(folders[0]).rows_per_epoch // 8  # an epoch and a half
    whole = fit(data(folders[0], num_workers=workers), tmp_path / "whole", steps)
    assert [key for _, keys, _ in whole.seen for key in keys] == list(range(4 * steps))
    assert whole.validated  # the sanity check before training read the validation rows
    for stop in (5, steps - 2):
        rest = fit(
            data(folders[0], num_workers=workers), tmp_path / "rest", steps, tmp_path / f"whole/step={stop}.ckpt"
        )
        assert rest.seen == whole.seen[stop:]
    gc.collect()
    assert not multiprocessing.active_children()


def test_resume_with_another_accumulation_makes_only_whole_steps(folders: list[str], tmp_path: Path) -> None:
    fit(data(folders[0]), tmp_path / "one", 7)
    four = {"batch_size": 1}, {"accumulate_grad_batches": 4}
    rest = fit(data(folders[0], **four[0]), tmp_path / "four", 11, tmp_path / "one/step=5.ckpt", **four[1])
    assert [(step, keys) for step, keys, _ in rest.seen] == [(5 + i // 4, [20 + i]) for i in range(24)]
    back = fit(data(folders[0]), tmp_path / "back", 12, tmp_path / "four/step=9.ckpt")
    assert [(step, keys[0]) for step, keys, _ in back.seen] == [(9 + i, 36 + 4 * i) for i in range(3)]


class SaveAfterBatch(L.Callback):
    def __init__(self, number: int, file: Path) -> None:
        self.number, self.file = number, file

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if args[-1] == self.number:
            trainer.save_checkpoint(self.file)


def test_a_checkpoint_between_two_optimizer_steps_repeats_the_whole_step(folders: list[str], tmp_path: Path) -> None:
    save, three = SaveAfterBatch(7, tmp_path / "middle.ckpt"), {"accumulate_grad_batches": 3}
    whole = fit(data(folders[0]), tmp_path / "whole", 5, callbacks=[save], **three)
    rest = fit(data(folders[0]), tmp_path / "rest", 5, tmp_path / "middle.ckpt", **three)
    assert rest.seen == whole.seen[6:]
    assert len(rest.seen) == 9


def test_a_checkpoint_of_another_order_is_refused(folders: list[str], tmp_path: Path) -> None:
    fit(data(folders[0]), tmp_path, 2)
    for options, name in [({"seed": 2}, "seed"), ({"length": 8}, "length")]:
        with pytest.raises(UserError, match=f"{name} was .* and is now"):
            fit(data(folders[0], **options), tmp_path, 3, tmp_path / "step=2.ckpt")
    with pytest.raises(UserError, match="data was"):
        fit(data(folders[1]), tmp_path, 3, tmp_path / "step=2.ckpt")


def test_max_steps_is_asked_for(folders: list[str]) -> None:
    with pytest.raises(UserError, match=r"set trainer.max_steps: one pass over the data is [\d.]+ steps"):
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1).fit(
            Recorder(), datamodule=data(folders[0])
        )


# ---- two processes


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_then_one_read_every_row_once(forked: Any, folders: list[str], tmp_path: Path, workers: int) -> None:
    def work(rank: int) -> Any:
        module = data(folders[0], batch_size=2, num_workers=workers, val_rows=7)
        model = fit(module, tmp_path / "two", 8, strategy="ddp", devices=2)
        return model.seen, model.validated

    (seen_0, val_0), (seen_1, val_1) = forked(work, 2)
    [alone] = forked(lambda _: fit(data(folders[0]), tmp_path / "alone", 10).seen, 1)
    assert [(s, a + b, c + d) for (s, a, c), (_, b, d) in zip(seen_0, seen_1, strict=True)] == alone[:8]
    assert len(val_0) == len(val_1)
    assert not set(val_0) & set(val_1)
    two = tmp_path / "two/step=6.ckpt"
    [rest] = forked(lambda _: fit(data(folders[0]), tmp_path / "rest", 10, two).seen, 1)
    assert rest == alone[6:]


def test_ranks_that_would_differ_are_all_refused(forked: Any, folders: list[str]) -> None:
    def answers(change: Callable[[int], DiffusionDataModule], shares: tuple[int, int] = (0, 1), world: int = 2) -> Any:
        def work(rank: int) -> str:
            dist.init_process_group("gloo")
            module = change(rank)
            module._share = lambda: (shares[rank], world)  # what a strategy says
            try:
                module.setup()
            except UserError as error:
                return f"UserError: {error}"
            return "fine"

        return forked(work, 2)

    def same(rank: int) -> DiffusionDataModule:
        return data(folders[0])

    for change, message in [
        (lambda rank: data(folders[rank]), "rank 1 has data = "),
        (lambda rank: data(folders[0], seed=1 + rank), "rank 1 has seed = 2 but rank 0 has 1"),
        (lambda rank: data(folders[0], batch_size=4 - rank), "rank 1 has batch_size = 3 but rank 0 has 4"),
        (lambda rank: data("nowhere" if rank else folders[0]), "rank 1: no data folder nowhere"),
    ]:
        assert all(answer.startswith(f"UserError: {message}") for answer in answers(change))
    for share, world in [((0, 0), 2), ((0, 0), 1)]:  # the second: what ModelParallelStrategy() does by default
        message = f"UserError: 2 processes would read shares [0, 0] of {world}"
        assert all(answer.startswith(message) for answer in answers(same, share, world))
    assert answers(same) == ["fine", "fine"]


# ---- refused at setup


def refused(message: str, path: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ready(path, **options)
    assert "\n" not in str(caught.value)


def test_missing_files(folder: Path) -> None:
    refused("no data folder .*nowhere: make it with `lit-llada prepare`", str(folder / "nowhere"))
    refused("names no folder", [])
    (folder / "train" / "chunk-0-1.bin").rename(folder / "elsewhere")
    refused(r"chunk .*chunk-0-1\.bin is missing", str(folder))
    (folder / "train" / "index.json").unlink()
    refused(r"train has no index\.json", str(folder))
    (folder / "manifest.json").unlink()
    refused("has no manifest.json: run `lit-llada prepare`", str(folder))
    refused(r"cannot fetch local:.*manifest\.json", f"local:{folder}")


def test_a_truncated_chunk(folder: Path) -> None:
    chunk = folder / "train" / "chunk-0-0.bin"
    chunk.write_bytes(chunk.read_bytes()[:-10])
    refused(r"chunk-0-0\.bin has [\d,]+ bytes instead of [\d,]+", str(folder))


def test_flipped_bytes_are_found_by_verify(folder: Path) -> None:
    ready(str(folder), verify=True)
    chunk = folder / "val" / "chunk-0-0.bin"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    ready(str(folder))
    refused(r"val/chunk-0-0\.bin is corrupt", str(folder), verify=True)
    refused("verify needs the chunks on disk", f"local:{folder}", verify=True)


def test_an_index_or_manifest_that_does_not_fit(folder: Path) -> None:
    index = json.loads((folder / "train" / "index.json").read_text())
    index["chunks"].pop()
    (folder / "train" / "index.json").write_text(json.dumps(index))
    refused("list different chunks", str(folder))
    (folder / "train" / "index.json").write_text("{")
    refused("train/index.json is not valid JSON", str(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    refused("manifest of format 2, not 1", str(folder))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "sound"}))
    refused("holds sound; known are text, chat, preference: prepare it again", str(folder))
    manifest["tokenizer"]["digest"] = "other"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused("is not the tokenizer of its manifest", str(folder))


def test_two_tokenizers(folders: list[str], tmp_path: Path) -> None:
    other = make(tmp_path, "other", count=10, tokenizer=Tokenizer.train_bpe(["some text to learn from"] * 3, 270))
    refused("other was prepared with another tokenizer than", {folders[0]: 1.0, other: 1.0})


def test_numbers_that_cannot_work(folders: list[str], tmp_path: Path) -> None:
    refused("length 5000 is longer than every train chunk of .* tokens", folders[0], length=5000)
    refused("data.batch_size is 0: set it to 1 or more", folders[0], batch_size=0)
    refused("data.length is -1", folders[0], length=-1)
    refused("data.val_rows is 0", folders[0], val_rows=0)
    refused("make each more than 0", {folders[0]: 1.0, folders[1]: 0.0})
    refused("too small for a single row", {folders[0]: 1.0, folders[1]: 1e-6})
    refused("the val split of .* is empty", make(tmp_path, "no_val", count=10, val_count=0))


def test_the_digest_names_contents_not_places(folders: list[str], folder: Path) -> None:
    digests = [DataFolder.open(p).digest for p in (folders[0], str(folder), folders[1])]
    assert digests[0] == digests[1] != digests[2]
