"""A device is what was named, if it is here; a GPU that cannot do what is asked is refused before the run starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.backbone.devices import pick_device, require_bfloat16, require_driver
from lit_llada.errors import UserError


def test_a_device_that_is_here_is_taken_and_another_is_refused() -> None:
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="--device cuda:99 is not here"):
        pick_device("cuda:99")


def test_auto_takes_the_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    for found, expected in ((None, "cpu"), (torch.device("cuda"), "cuda")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, found=found: found)
        assert pick_device() == expected


@pytest.mark.parametrize("said", ["Found no NVIDIA driver on your system", "No CUDA GPUs are available"])
def test_no_gpu_at_all_is_no_error(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(said, monkeypatch)
    require_driver("--device cpu")


def test_a_driver_that_is_too_old_is_one_line_with_its_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    broken("The NVIDIA driver is too old\n(found version 1). Please update it", monkeypatch)
    with pytest.raises(UserError, match=r"too old \(found version 1\); update the driver, .*, or set --device cpu$"):
        require_driver("--device cpu")


@pytest.mark.parametrize(("capability", "precision", "fine"), [
    ((7, 5), "bf16-mixed", False), ((7, 5), "16-mixed", True), ((8, 0), "bf16-true", True),
])  # fmt: skip
def test_bfloat16_needs_a_gpu_that_multiplies_it(
    capability: tuple[int, int], precision: str, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    require_bfloat16(torch.device("cpu"), precision)
    if fine:
        require_bfloat16(torch.device("cuda"), precision)
    else:
        with pytest.raises(UserError, match=r"capability 8.0 or higher, and this one has 7.5"):
            require_bfloat16(torch.device("cuda"), precision)


def broken(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> Any:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
