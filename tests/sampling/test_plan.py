"""Options that cannot be meant are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from lit_llada.errors import UserError
from lit_llada.sampling.plan import PRESETS, Plan, preset


def refused(words: str, call: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=words) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("order is 'likely'; it is one of low_confidence, random, margin", {"order": "likely"}),
        ("count is 'all'; it is one of quota, threshold", {"count": "all"}),
        ("remask is 'wino'; it is one of none, remdm, verify", {"remask": "wino"}),
        ("eos is 'late'; it is one of free, last, never", {"eos": "late"}),
        ("length is 'auto'; it is one of fixed, rho_eos", {"length": "auto"}),
        ("steps is 0; it must be at least 1", {"steps": 0}),
        ("block_length is 0; it must be at least 1", {"block_length": 0}),
        ("temperature is -0.1; it must be at least 0", {"temperature": -0.1}),
        ("temperature is nan", {"temperature": float("nan")}),
        ("bound is -1; it must be at least 0", {"bound": -1, "count": "factor"}),
        ("remask_bound is 1.5; it must be in 0..1", {"remask_bound": 1.5, "remask": "remdm"}),
        ("remask_bound is -0.5; it must be in 0..1", {"remask_bound": -0.5, "remask": "remdm"}),
        ("grow is 0; it must be at least 1", {"grow": 0}),
        ("remask remdm needs count quota, not threshold", {"remask": "remdm", "count": "threshold"}),
        ("length rho_eos needs a count that adapts", {"length": "rho_eos"}),
        ("count factor decides the number of steps by itself", {"count": "factor", "steps": 4}),
        ("aligned needs a block_length", {"aligned": True}),
    ],
)
def test_plan(words: str, options: dict[str, Any]) -> None:
    refused(words, Plan, **options)
    refused(words, preset, "official", **options)


def test_preset() -> None:
    refused(f"unknown preset 'faster'; there are {', '.join(PRESETS)}", preset, "faster")
