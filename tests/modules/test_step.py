"""A training step that forgets a part of its contract is refused at once, by name; a whole one trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lit_llada.backbone.config import BackboneConfig
from lit_llada.data.batch import Batch
from lit_llada.data.text_datamodule import DiffusionDataModule
from lit_llada.errors import UserError
from lit_llada.modules.base import DiffusionModule
from lit_llada.modules.step import StepOutput
from lit_llada.training.trainer import Trainer


class Toy(DiffusionModule):
    """Masks every fourth token, from the row's first, second, third or fourth on."""

    def predict(self, batch: Batch) -> StepOutput:
        place = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        masked = (place % 4 == batch.keys[:, None] % 4) & batch.maskable
        positions, count = masked.flatten().nonzero().squeeze(1), masked.sum()
        noisy = batch.tokens.masked_fill(masked, self.mask_token)
        loss, nll, router = self.trained.weighted_nll(noisy, batch.tokens, positions, torch.ones_like(positions))
        t = torch.full_like(nll, 0.25)
        return StepOutput(
            loss=loss, count=count, tokens=count, nll=nll, t=t, p_mask=t, masked=masked, router_logits=router
        )

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        output = self.predict(batch)
        output["loss"] = self.sum_up(output["loss"], output["count"], output["router_logits"])
        self.add_keys(batch.keys)
        return output

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        return self.validated(self.predict(batch))


class Forgetful(Toy):
    """``forget`` says what its training step leaves out or does wrong."""

    forget = ""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        output: Any = self.predict(batch)
        if self.forget == "the loss":
            self.add_up("other", output["loss"].detach(), output["count"])
        elif self.forget == "the count":
            self.add_up("loss", output["loss"].detach())
        elif self.forget != "to sum up":
            self.sum_up(output["loss"], output["count"], None)
        if self.forget == "that one count is enough":
            self.add_up("again", output["loss"].detach(), output["count"])
        if self.forget != "the keys":
            self.add_keys(batch.keys)
        if self.forget == "a field":
            del output["p_mask"]
        if self.forget == "the sum":
            output["loss"] = output["nll"]
        return output["loss"] if self.forget == "the output" else output


class Losses(L.Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if "train/loss" in trainer.callback_metrics:  # an optimizer step has been made
            self.found.append(float(trainer.callback_metrics["train/loss"]))


def fit(module: DiffusionModule, data: Path, steps: int, accumulate: int = 1) -> list[float]:
    losses = Losses()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=[losses],
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, datamodule=DiffusionDataModule(str(data), length=32, batch_size=4, val_rows=4))
    return losses.found


def net(**options: Any) -> BackboneConfig:
    return BackboneConfig(d_model=32, n_layers=2, n_heads=2, ff_dim=64, **options)


@pytest.mark.parametrize("options", [{}, {"n_experts": 4, "expert_dim": 32}], ids=["dense", "sparse"])
def test_an_objective_that_keeps_the_contract_trains(prepared: Path, options: dict[str, Any]) -> None:
    L.seed_everything(1)
    losses = fit(Toy(net(**options), lr=1e-2), prepared, steps=12)
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("forget", "said"),
    [
        ("to sum up", r'did not add to the sum "loss": call self\.sum_up'),
        ("the loss", r'did not add to the sum "loss": call self\.sum_up'),
        ("the count", r"brought 0 counts: give the count to one call of self\.sum_up or self\.add_up"),
        ("that one count is enough", r"brought 2 counts"),
        ("the keys", r"gave its keys 0 times: call self\.add_keys\(batch\.keys\) once"),
        ("a field", r"returned a StepOutput without p_mask"),
        ("the sum", r"returned a loss of shape"),
        ("the output", r"returned Tensor: return a StepOutput"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_step_forgets_is_named_at_the_first_step(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, forget: str, said: str, accumulate: int
) -> None:
    monkeypatch.setattr(Forgetful, "forget", forget)
    module = Forgetful(net())
    with pytest.raises(UserError, match=rf"^Forgetful\.training_step {said}"):
        fit(module, prepared, steps=2, accumulate=accumulate)
    assert module.global_step == 0


def test_the_check_holds_for_the_second_micro_batch_too(prepared: Path) -> None:
    class Late(Forgetful):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            self.forget = "the keys" if batch_idx else ""
            return super().training_step(batch, batch_idx)

    module = Late(net())
    with pytest.raises(UserError, match="gave its keys 0 times"):
        fit(module, prepared, steps=1, accumulate=2)
    assert module.forget == "the keys"


def test_a_step_may_build_on_that_of_its_parent(prepared: Path) -> None:
    class Doubled(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
            output = super().training_step(batch, batch_idx)
            loss: Tensor = output["loss"]
            output["loss"] = 2 * loss
            return output

    assert len(fit(Doubled(net()), prepared, steps=1)) == 1
