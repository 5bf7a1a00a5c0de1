"""What is kept of the reference is the reference; other things, and what no run can start from, are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.cached_reference import CachedReference, ReferenceWriter
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.modules.sft import SFTModule
from lit_llada.modules.vrpo import VRPOModule
from lit_llada.objectives.preference import Estimator
from lit_llada.prepare.conversations import prepare_preference
from lit_llada.training.lora import LoRA
from tests.modules.conftest import SPARSE, Curve, data_of, module_of, trainer_of, write_rows


def write(root: Path, start: Path, folder: Path, **options: Any) -> str:
    data, path = data_of(folder, **options), root / "reference.safetensors"
    trainer_of(root, ReferenceWriter(path)).predict(module_of(start), datamodule=data, return_predictions=False)
    return str(path)


@pytest.mark.parametrize(
    ("net", "layout", "lora"),
    [("dense", "padded", None), ("moe", "packed", None), ("moe", "packed", LoRA(rank=2))],
)
def test_a_run_on_the_kept_reference_is_the_run_with_the_live_one_bit_for_bit(
    tmp_path: Path, pairs: Path, starts: dict[str, Path], net: str, layout: str, lora: Any
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    live, kept = Curve(), Curve()
    trainer = trainer_of(tmp_path, live)
    trainer.fit(module_of(starts[net], noise="record", lora=lora), datamodule=data_of(pairs, layout=layout))
    reference = write(tmp_path, starts[net], pairs, layout=layout)
    module = module_of(starts[net], reference=reference, lora=lora)
    cached = trainer_of(tmp_path, kept)
    cached.fit(module, datamodule=data_of(pairs, layout=layout))
    assert not module._twin and module._cache is not None
    assert live.values[-1]["train/score"] != 0
    assert live.values == kept.values
    assert trainer.callback_metrics == cached.callback_metrics
    assert {name for name in trainer.callback_metrics if name.startswith("val/")} >= {"val/loss", "val/accuracy"}


def test_a_test_asks_the_reference_itself(tmp_path: Path, pairs: Path, starts: dict[str, Path]) -> None:
    rows = [{"prompt": f"{i}?", "chosen": f"{i} is {i % 7}", "rejected": "no" * (1 + i % 3)} for i in range(60)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    folder = prepare_preference([file], str(tmp_path / "data"), val_fraction=0.2, test_fraction=0.2, workers=1)
    live = trainer_of(tmp_path)
    live.test(module_of(starts["dense"], noise="record"), datamodule=data_of(folder), verbose=False)
    assert float(live.callback_metrics["test/score"]) == 0  # the policy still is the reference
    module = module_of(starts["dense"], reference=write(tmp_path, starts["dense"], folder))
    trainer_of(tmp_path).validate(module, datamodule=data_of(folder), verbose=False)
    with pytest.raises(UserError, match=r"holds no test records: give --model\.reference null"):
        trainer_of(tmp_path).test(module, datamodule=data_of(folder), verbose=False)


def test_every_pair_is_in_the_file_also_of_a_mixture(tmp_path: Path, pairs: Path, starts: dict[str, Path]) -> None:
    data = data_of(pairs)
    data.path = {str(pairs): 0.8, f"{pairs}/.": 0.2}
    writer = ReferenceWriter(tmp_path / "r.safetensors")
    trainer_of(tmp_path, writer).predict(module_of(starts["dense"]), datamodule=data, return_predictions=False)
    tables = load_file(tmp_path / "r.safetensors")
    assert {split: len(table) for split, table in tables.items()} == {
        split: sum(map(len, data.rows[split])) for split in ("train", "val")
    }
    assert all(table.isfinite().all() for table in tables.values())
    assert not list(tmp_path.glob("*.part"))


def test_a_reference_of_something_else_is_refused_by_name(
    tmp_path: Path, chats: Path, pairs: Path, starts: dict[str, Path]
) -> None:
    reference = write(tmp_path, starts["dense"], pairs, val_rows=4)
    other = tmp_path / "other.ckpt"
    saved = torch.load(starts["dense"], weights_only=True)
    saved["state_dict"]["net.norm.weight"] *= 1.5
    torch.save(saved, other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(reference).read_bytes()[:100])

    def refused(said: str, start: Path = starts["dense"], data: dict[str, Any] = {}, **options: Any) -> None:  # noqa: B006
        module = module_of(start, **{"reference": reference, **options})
        with pytest.raises(UserError, match=said) as error:
            trainer_of(tmp_path).fit(module, datamodule=data_of(**{"folder": pairs, **data}))
        assert "\n" not in str(error.value)

    refused("made with other seed;", seed=2)
    refused("made with other estimator;", estimator=Estimator(4))
    refused("made with other checkpoint;", start=other)
    refused("made with other data;", data={"folder": _again(tmp_path)})
    refused("made with other data.eos;", data={"eos": "block"})
    refused("data.eos is batch", data={"eos": "batch"})
    refused("lacks val records", data={"val_rows": 8})
    refused("gone: no such file", reference="gone")
    refused("was not written by lit-llada reference", reference=str(cut))
    refused("VRPOModule learns from preference data.*holds chat", data={"folder": chats})
    with pytest.raises(UserError, match=r"data\.eos is batch"):
        write(tmp_path, starts["dense"], pairs, eos="batch")


def _again(root: Path) -> Path:
    from lit_llada.prepare.conversations import prepare_preference

    rows = [{"prompt": f"{i}!", "chosen": "yes", "rejected": "no"} for i in range(40)]
    return prepare_preference(
        [write_rows(root / "rows.jsonl", rows)], out=str(root / "again"), val_fraction=0.2, workers=1
    )


def test_what_a_run_cannot_start_from_is_refused_by_name(
    tmp_path: Path, chats: Path, pairs: Path, starts: dict[str, Path]
) -> None:
    def refused(said: str, module: DiffusionModule, folder: Path) -> None:
        with pytest.raises(UserError, match=said) as error:
            trainer_of(tmp_path).fit(module, datamodule=data_of(folder))
        assert "\n" not in str(error.value)

    with pytest.raises(UserError, match=r"model\.init_from is not set"):
        VRPOModule()
    refused(r"gone\.ckpt", module_of(tmp_path / "gone.ckpt"), pairs)
    another = module_of(starts["dense"], backbone=SPARSE)
    refused(r"dense\.ckpt: the checkpoint's backbone differs in .*n_experts 0 \(now 4\)", another, pairs)
    start = str(starts["dense"])
    refused(r"SFTModule learns from chat data, and .* holds preference", SFTModule(init_from=start), pairs)
    refused(r"PretrainingModule learns from text data, and .* holds chat", PretrainingModule(init_from=start), chats)
    saved = torch.load(start, weights_only=True)
    torch.save({**saved, "mask_id": 7}, tmp_path / "other.ckpt")
    refused("another tokenizer than the data's", SFTModule(init_from=str(tmp_path / "other.ckpt")), chats)
    refused("model.backbone is not set", SFTModule(), chats)


def test_a_checkpoint_can_be_looked_at_without_its_reference(
    tmp_path: Path, pairs: Path, starts: dict[str, Path]
) -> None:
    start = tmp_path / "start.ckpt"
    start.write_bytes(starts["dense"].read_bytes())
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.fit(module_of(start), datamodule=data_of(pairs))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    start.unlink()
    module = VRPOModule.load_from_checkpoint(tmp_path / "end.ckpt", map_location="cpu")
    assert module.estimator == Estimator(3) and not module._twin
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert not any("twin" in name for name in saved["state_dict"])
    with pytest.raises(UserError, match=r"start.ckpt"):  # going on needs the reference
        trainer_of(tmp_path).fit(module_of(start), datamodule=data_of(pairs), ckpt_path=tmp_path / "end.ckpt")
    torch.save(torch.load(tmp_path / "end.ckpt", weights_only=True), start)
    with pytest.raises(UserError, match="does not hold the weights that this run started from"):
        trainer_of(tmp_path).fit(module_of(start), datamodule=data_of(pairs), ckpt_path=tmp_path / "end.ckpt")


def test_a_kept_reference_answers_in_the_order_of_the_batch() -> None:
    tables = {"train": torch.arange(5 * 3 * 2).view(5, 3, 2).float(), "val": torch.zeros(0, 3, 2)}
    records = torch.tensor([4, 1, 4, 1])
    batch = SimpleNamespace(records=records, tokens=records)
    found = CachedReference("x", tables).sums(batch, "train")  # type: ignore[arg-type]
    assert found.tolist() == [[tables["train"][r, n, side].item() for side in (0, 1) for r in (4, 1)] for n in range(3)]
