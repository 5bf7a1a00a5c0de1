"""Out of memory is one line: what was asked for, and what would be smaller."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lit_llada.cli.memory import asked_for, smaller


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB"),
            "2.50 GiB more on GPU 0 of 79.1 GiB",
        ),
        (
            RuntimeError("can't allocate memory: you tried to allocate 4294967296 bytes."),
            "4.0 GiB more",
        ),
        (MemoryError(), "more than there is"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_was_asked_for(error: Exception, said: str | None) -> None:
    assert asked_for(error) == said


def run(strategy: str = "SingleDevice", **changes: Any) -> tuple[Any, Any, Any]:
    options = {"batch_size": 8, "checkpointing": False, "precision": "32-true", **changes}
    module = SimpleNamespace(checkpointing=options["checkpointing"], init_from=None, lora=None)
    data = SimpleNamespace(batch_size=options["batch_size"], length=64)
    strategies = type(strategy, (), {})()
    return module, data, SimpleNamespace(accumulate_grad_batches=2, strategy=strategies, precision=options["precision"])


def test_at_most_three_options_those_that_change_least_first() -> None:
    first, second, third = smaller("fit", *run())
    assert first == "data.batch_size 4 with trainer.accumulate_grad_batches 4"
    assert (second, third) == ("model.checkpointing true", "data.length 32")
    assert smaller("validate", *run(batch_size=1, precision="bf16-true"))[0] == "data.length 32"
    assert "more devices" in smaller("validate", *run("FSDP2Strategy", batch_size=1))
