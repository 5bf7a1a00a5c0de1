"""``precision: auto``, and whether options that only save memory or time leave the run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_llada.backbone.config import BackboneConfig
from lit_llada.backbone.devices import pick_device
from lit_llada.callbacks import EMA, SampleLogger
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.modules.pretraining import PretrainingModule
from lit_llada.training import trainer as trainer_module
from lit_llada.training.strategies import FSDP2Strategy
from lit_llada.training.trainer import Trainer, fast_bfloat16

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str) -> None:
    monkeypatch.setattr(trainer_module, "fast_bfloat16", lambda *_: fast)
    assert Trainer(accelerator="cpu", **QUIET).precision == precision
    assert Trainer(accelerator="cpu", precision="64-true", **QUIET).precision == "64-true"


def test_fast_bfloat16_on_a_cpu_is_what_torch_says_of_it() -> None:
    assert fast_bfloat16("cpu") == (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
    " and installing a new\nversion from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"
MISMATCH = "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted"


def driver_says(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """A torch built for CUDA on a machine whose driver says this when it is started."""

    def start() -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", start)


@pytest.mark.parametrize(("message", "named"), [(OLD_DRIVER, "found version 11040"), (MISMATCH, "Error 804")])
@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_a_driver_that_torch_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, message: str, named: str
) -> None:
    """Whether torch then counts no device (auto would take the CPU) or Lightning counts some."""
    driver_says(monkeypatch, message)
    for counted in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda counted=counted: counted)
        with pytest.raises(UserError, match=r"set trainer\.accelerator cpu") as refusal:
            Trainer(accelerator=accelerator, **QUIET)
        assert named in str(refusal.value) and "\n" not in str(refusal.value) and "http" not in str(refusal.value)
    assert Trainer(accelerator="cpu", **QUIET).num_devices == 1
    with pytest.raises(UserError, match="set --device cpu"):
        pick_device("auto")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("message", [NO_DRIVER, "No CUDA GPUs are available"])
def test_a_machine_without_a_gpu_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    driver_says(monkeypatch, message)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Trainer(accelerator="auto", **QUIET).strategy.root_device.type == "cpu"
    assert pick_device("auto") == "cpu"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``card(capability)``: as if this machine had such a GPU, as far as the trainer's constructor asks."""

    def call(capability: tuple[int, int]) -> None:
        for where in ("fabric", "pytorch"):
            monkeypatch.setattr(f"lightning.{where}.accelerators.cuda.num_cuda_devices", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return call


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_on_a_gpu_that_has_none_is_refused(card: Any, precision: str) -> None:
    card((7, 5))
    with pytest.raises(
        UserError, match=f"trainer.precision {precision} needs a GPU of .* 8.0 .* has 7.5; set .*16-mixed"
    ):
        Trainer(accelerator="gpu", devices=1, precision=precision, **QUIET)
    for good in ("16-mixed", "32-true"):
        assert Trainer(accelerator="gpu", devices=1, precision=good, **QUIET).precision == good
    assert Trainer(accelerator="gpu", devices=1, **QUIET).precision == "32-true"  # auto
    card((8, 0))
    assert Trainer(accelerator="gpu", devices=1, precision=precision, **QUIET).precision == precision
    assert Trainer(accelerator="gpu", devices=1, **QUIET).precision == "bf16-mixed"


def final_loss(_rank: int, data: Path, world: int, precision: str, **options: Any) -> float:
    L.seed_everything(1)
    backbone = BackboneConfig(d_model=32, n_layers=2, n_heads=4, ff_dim=64, n_experts=4, expert_dim=32, qk_norm="head")
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=FSDP2Strategy() if world > 1 else "auto",
        max_steps=4,
        precision=precision,
        callbacks=[EMA(0.9), SampleLogger(2, length=16, steps=4, prompts=["a"], infills=[])],
        **QUIET,
    )
    module = PretrainingModule(backbone, lr=1e-2, random_length=0.0, **options)
    trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=32, batch_size=4 // world, val_rows=4))
    return float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("world", [1, 2])
def test_recomputing_activations_changes_nothing(forked: Any, prepared: Path, world: int) -> None:
    plain, recomputed = (
        forked(lambda rank, on=on: final_loss(rank, prepared, world, "32-true", checkpointing=on), world)
        for on in (False, True)
    )
    assert recomputed == plain


def test_mixed_precision_shards_train_validate_and_sample(forked: Any, prepared: Path) -> None:
    """Blocks gathered in bfloat16; the loss stays near that of float32."""
    [exact] = forked(lambda rank: final_loss(rank, prepared, 1, "32-true"), 1)
    mixed = forked(lambda rank: final_loss(rank, prepared, 2, "bf16-mixed"), 2)
    assert mixed[0] == mixed[1] == pytest.approx(exact, rel=2e-2)


def test_a_run_is_counted_in_steps_unless_it_says_otherwise() -> None:
    """The loader shares rows out by itself and starts again by itself; a value of the user's counts."""
    ours = Trainer(accelerator="cpu", max_steps=4, val_check_interval=2, **QUIET)
    assert (ours.max_epochs, ours.check_val_every_n_epoch, ours.num_sanity_val_steps) == (-1, None, 0)
    assert ours._accelerator_connector.use_distributed_sampler is False
    theirs = Trainer(
        accelerator="cpu",
        max_epochs=2,
        check_val_every_n_epoch=3,
        num_sanity_val_steps=1,
        use_distributed_sampler=True,
        **QUIET,
    )
    assert (theirs.max_epochs, theirs.check_val_every_n_epoch, theirs.num_sanity_val_steps) == (2, 3, 1)
    assert theirs._accelerator_connector.use_distributed_sampler is True


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_share_of_an_epoch_validates_every_epoch(share: float | None) -> None:
    assert Trainer(accelerator="cpu", max_steps=4, val_check_interval=share, **QUIET).check_val_every_n_epoch == 1
