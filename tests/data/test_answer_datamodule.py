"""Answers from folder to batch: nothing lost, exact after a stop on any number of ranks, and what is refused."""

from __future__ import annotations

import gc
import multiprocessing
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_llada.data.answer_datamodule import AnswerDataModule
from lit_llada.data.batch import AnswerBatch
from lit_llada.data.folder import read_records
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.prepare.conversations import prepare_chat
from lit_llada.text.tokenizer import Tokenizer
from tests.shared.answers import dialogue, write_rows


def data(path: Any, **options: Any) -> AnswerDataModule:
    path = str(path) if isinstance(path, Path) else path
    return AnswerDataModule(**{"path": path, "length": 512, "batch_size": 4, **options})


def ready(path: Any, **options: Any) -> AnswerDataModule:
    module = data(path, **options)
    module.setup()
    return module


def answers(batch: AnswerBatch) -> list[str]:
    """The text of every answer, `|` for EOS."""
    flat = batch.tokens.flatten()
    return [Tokenizer.byte().decode(flat[places[places >= 0]].tolist(), eos="|") for places in batch.answers]


# ---- what a batch holds


@pytest.mark.parametrize("bucketing", [False, True])
def test_an_epoch_uses_every_record_once(chat_folder: Path, bucketing: bool) -> None:
    module = ready(chat_folder, batch_size=1, bucketing=bucketing, turns="all", eos="one")
    records = read_records(str(chat_folder), "train")
    assert module.rows_per_epoch == len(records) > 30
    batches = list(islice(module.training_loader(), len(records)))
    assert sorted(int(batch.records) for batch in batches) == list(range(len(records)))
    for batch in batches:
        record = records[int(batch.records)]
        said = [m["content"] for m in record.messages if m["role"] == "assistant"] + [record.answer]
        assert answers(batch) == ["".join(f"{text}|" for text in said)]
    assert (module.vocab_size, module.eos_id, module.mask_id, module.kind) == (258, 256, 257, "chat")
    assert module.chat_template.render([{"role": "user", "content": "x"}]) == "user:\nx<|endoftext|>"


def test_one_turn_is_an_answer_and_what_is_before_it(chat_folder: Path) -> None:
    module = ready(chat_folder)
    for batch in islice(module.training_loader(), 10):
        assert (batch.documents == 0).all()
        for row, (text, tokens) in enumerate(zip(answers(batch), batch.tokens, strict=True)):
            _, turn, role, *_ = text.split()
            whole = Tokenizer.byte().decode(tokens.tolist(), eos="|")
            assert role == "assistant" and whole.count("assistant:\n") == int(turn) + 1
            assert whole.endswith(text) and int(batch.answers[row].max()) == (row + 1) * len(tokens) - 1


def test_packed_batches_hold_what_padded_ones_hold(chat_folder: Path) -> None:
    options = {"batch_size": 8, "eos": "block", "block_length": 8}
    padded = ready(chat_folder, **options).training_loader()
    packed = ready(chat_folder, **options, layout="packed", length=400).training_loader()
    for one, other in zip(islice(padded, 12), packed, strict=False):
        assert answers(one) == answers(other) and torch.equal(one.records, other.records)
        assert other.tokens.shape[1] == 400 and len(other.tokens) < len(one.tokens)
        assert (one.lengths % 8 == 0).all()


def test_buckets_save_padding(chat_folder: Path) -> None:
    spent = {}
    for bucketing in (False, True):
        module = ready(chat_folder, bucketing=bucketing, turns="all", eos="one")
        batches = list(islice(module.training_loader(), module.rows_per_epoch // 4))
        spent[bucketing] = sum(batch.tokens.numel() for batch in batches)
    assert spent[True] < 0.8 * spent[False]


def test_pairs(pair_folder: Path) -> None:
    module = ready(pair_folder, eos="one")
    batch = next(iter(module.training_loader()))
    assert module.kind == "preference" and len(batch.keys) == 8
    assert batch.keys.tolist() == [0, 1, 2, 3] * 2 and torch.equal(batch.records[:4], batch.records[4:])
    for good, bad in zip(answers(batch)[:4], answers(batch)[4:], strict=True):
        assert good.startswith("good ") and bad == f"bad {good.strip('!|')[5:]}|"


def test_validation_reads_each_record_once_in_order(chat_folder: Path, pair_folder: Path) -> None:
    for folder, sides in ((chat_folder, 1), (pair_folder, 2)):
        total = len(read_records(str(folder), "val"))
        batches = list(ready(folder, bucketing=True).val_dataloader())
        assert [r for b in batches for r in b.records[: len(b.records) // sides].tolist()] == list(range(total))
        assert all((batch.lengths > 0).all() for batch in batches)
        again = list(ready(folder, seed=1).val_dataloader())
        assert all(torch.equal(a, b) for x, y in zip(batches, again, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of chat with a test split."""
    root = tmp_path_factory.mktemp("tested")
    rows = write_rows(root / "rows.jsonl", [{"messages": dialogue(n)} for n in range(60)])
    return prepare_chat([rows], str(root / "data"), val_fraction=0.2, test_fraction=0.2, workers=1)


def test_a_test_reads_each_record_of_its_split_once_in_order(tested: Path) -> None:
    records = read_records(str(tested), "test")
    batches = list(ready(tested, val_rows=1, turns="all", eos="one").test_dataloader())
    assert [int(row) for batch in batches for row in batch.records] == list(range(len(records)))
    for answer, record in zip((text for batch in batches for text in answers(batch)), records, strict=True):
        assert answer.endswith(f"{record.answer}|")


def test_ranks_share_the_test_records_in_equal_batches(tested: Path) -> None:
    module, found = ready(tested), []
    for rank in (0, 1, 2):
        module._share = lambda rank=rank: (rank, 3)  # type: ignore[method-assign,misc]
        found.append(list(module.test_dataloader()))
    sizes = [[len(batch.keys) for batch in share] for share in found]
    assert sizes[0] == sizes[1] == sizes[2]
    real = [int(k) for share in found for batch in share for k in batch.keys[batch.lengths > 0]]
    assert sorted(real) == list(range(len(read_records(str(tested), "test"))))


def test_a_folder_of_chat_without_a_test_split_is_refused(chat_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no test split: .* `lit-llada prepare chat \.\.\. --test_fraction 0\.05`"):
        data(chat_folder).setup("test")


def test_a_rank_without_a_record_left_has_one_without_an_answer(chat_folder: Path) -> None:
    module = ready(chat_folder, val_rows=5)
    found = []
    for rank in (0, 1):
        module._share = lambda rank=rank: (rank, 2)  # type: ignore[method-assign,misc]
        found.append(list(module.val_dataloader()))
    assert [len(batch.keys) for batch in found[0]] == [len(batch.keys) for batch in found[1]] == [3]
    lengths = torch.cat([batch.lengths for share in found for batch in share])
    assert (lengths > 0).tolist() == [True] * 5 + [False]


def test_a_remote_folder_gives_the_same_batches(chat_folder: Path, tmp_path: Path) -> None:
    options = {"shuffle_window": 2, "cache_dir": str(tmp_path), "bucketing": True}
    local, remote = ready(chat_folder, **options), ready(f"local:{chat_folder}", **options)
    assert local.identity == remote.identity and len(local.rows["train"][0].chunk_rows) > 2
    for mine, theirs in zip(islice(local.training_loader(), 12), remote.training_loader(), strict=False):
        assert torch.equal(mine.tokens, theirs.tokens) and torch.equal(mine.answers, theirs.answers)
    remote.teardown()


# ---- under Lightning


class Recorder(L.LightningModule):
    """Notes what each training batch holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[list[int], list[int], list[str]]] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen.append((batch.keys.tolist(), batch.records.tolist(), answers(batch)))
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: AnswerDataModule, root: Path, steps: int, ckpt: Path | None = None, **options: Any) -> list[Any]:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    keep = ModelCheckpoint(root, "{step}", every_n_train_steps=1, save_top_k=-1)
    place: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "default_root_dir": root, "limit_val_batches": 0}
    model = Recorder()
    trainer = L.Trainer(max_steps=steps, callbacks=[keep], **{**quiet, **place, **options})
    trainer.fit(model, datamodule=module, ckpt_path=ckpt, weights_only=True)
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(chat_folder: Path, tmp_path: Path, workers: int) -> None:
    options = {"num_workers": workers, "bucketing": True, "eos": "one"}
    steps = 3 * ready(chat_folder).rows_per_epoch // 8  # an epoch and a half
    whole = fit(data(chat_folder, **options), tmp_path / "whole", steps)
    assert [key for keys, _, _ in whole for key in keys] == list(range(4 * steps))
    for stop in (5, steps - 2):
        rest = fit(data(chat_folder, **options), tmp_path / "rest", steps, tmp_path / f"whole/step={stop}.ckpt")
        assert rest == whole[stop:]
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_then_one_read_what_one_alone_reads(
    forked: Any, chat_folder: Path, tmp_path: Path, workers: int
) -> None:
    options = {"bucketing": True, "eos": "one", "num_workers": workers}

    def work(rank: int) -> Any:
        return fit(data(chat_folder, batch_size=2, **options), tmp_path / "two", 6, strategy="ddp", devices=2)

    first, second = forked(work, 2)
    [alone] = forked(lambda _: fit(data(chat_folder, **options), tmp_path / "alone", 8), 1)
    both = [tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(first, second, strict=True)]
    assert both == alone[:6]
    two = tmp_path / "two/step=4.ckpt"
    [rest] = forked(lambda _: fit(data(chat_folder, **options), tmp_path / "rest", 8, two), 1)
    assert rest == alone[4:]


def test_a_checkpoint_of_another_order_is_refused(chat_folder: Path, pair_folder: Path, tmp_path: Path) -> None:
    fit(data(chat_folder), tmp_path, 2)
    with pytest.raises(UserError, match="bucketing was False and is now True"):
        fit(data(chat_folder, bucketing=True), tmp_path, 3, tmp_path / "step=2.ckpt")
    with pytest.raises(UserError, match="data was"):
        fit(data(pair_folder), tmp_path, 3, tmp_path / "step=2.ckpt")


def test_ranks_that_would_differ_are_all_refused(forked: Any, chat_folder: Path) -> None:
    def work(rank: int) -> str:
        dist.init_process_group("gloo")
        module = data(chat_folder, turns=["one", "all"][rank])
        module._share = lambda: (rank, 2)  # type: ignore[method-assign]
        try:
            module.setup()
        except UserError as error:
            return str(error)
        return "fine"

    assert all(answer.startswith("rank 1 has turns = all but rank 0 has one") for answer in forked(work, 2))


# ---- refused at setup


def refused(message: str, path: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ready(path, **options)
    assert "\n" not in str(caught.value)


def test_folders_of_the_wrong_kind(chat_folder: Path, pair_folder: Path, prepared: Path) -> None:
    refused("holds text, not answers: train on it with DiffusionDataModule", prepared)
    refused("holds preference and .* chat: give folders of one kind", [str(chat_folder), str(pair_folder)])
    with pytest.raises(UserError, match="holds chat, not text: train on it with AnswerDataModule"):
        DiffusionDataModule(str(chat_folder), 16, 4).setup()


def test_lengths_and_choices_that_cannot_work(chat_folder: Path) -> None:
    longest = max(split["longest"] for split in ready(chat_folder).manifest["splits"].values())
    ready(chat_folder, length=longest)
    refused(f"data.length is {longest - 1}, but a record of .* has {longest} tokens: set data.length to {longest},",
            chat_folder, length=longest - 1)  # fmt: skip
    refused(f"and up to 31 EOS follow: set data.length to {longest + 31},", chat_folder, length=longest, eos="block")
    refused("data.eos is batch, but data.layout is packed", chat_folder, layout="packed")
    refused("data.block_length is 0", chat_folder, block_length=0)
    refused("no data folder .*nowhere", chat_folder / "nowhere")


def test_two_tokenizers_or_templates(chat_folder: Path, tmp_path: Path) -> None:
    Tokenizer.train_bpe(["some text to learn from"] * 3, 270).save(tmp_path / "bpe")
    source = str(chat_folder / "val" / "records.jsonl")
    other = prepare_chat([source], str(tmp_path / "other"), tokenizer=str(tmp_path / "bpe"), val_fraction=0.5)
    refused("other was prepared with another tokenizer than", [str(chat_folder), str(other)])
    own = tmp_path / "own.jinja"
    own.write_text("Q: " + ready(chat_folder).chat_template.source)
    third = prepare_chat([source], str(tmp_path / "third"), template=str(own), val_fraction=0.5)
    refused("third was prepared with another chat template than", [str(chat_folder), str(third)])


def test_lengths_of_other_records(chat_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(chat_folder, tmp_path / "copy"))
    shutil.copy(copy / "val" / "lengths.npy", copy / "train" / "lengths.npy")
    refused(r"train/lengths\.npy is not of these records", copy)
    (copy / "train" / "lengths.npy").write_bytes(b"?")
    refused(r"train/lengths\.npy is missing or damaged", copy)
