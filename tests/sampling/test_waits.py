"""How often a step makes the host wait for the device: counted on a CPU, where each of these calls costs nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_llada.sampling.cached import Cached
from lit_llada.sampling.canvas import lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.guided import Guided
from lit_llada.sampling.plan import Plan
from lit_llada.text.specials import Specials

SPECIALS = Specials(mask=15, eos=14, eot=13, forbidden=(12,))
aten = torch.ops.aten
# A number for the host, positions whose count only the device knows, a constant that is copied from the host.
WAITING = {
    getattr(aten, name).default
    for name in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "lift_fresh")
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Waits(TorchDispatchMode):
    """Counts the calls that would wait for a GPU. ``tolist`` passes no dispatcher, so it is wrapped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        tolist = Tensor.tolist

        def counted(x: Tensor) -> Any:
            self.count += 1
            return tolist(x)

        monkeypatch.setattr(Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += func in WAITING or by_mask
        return func(*args, **(kwargs or {}))


def test_what_waits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    x, waits = torch.arange(3), Waits(monkeypatch)
    with waits:
        assert int(x.sum()) == 3 and (x >= 0).all() and x.nonzero().shape == (2, 1)
        assert x[x > 0].tolist() == [1, 2]
        assert torch.equal(torch.tensor([0, 1, 2]), x)
    assert waits.count == 7  # int, bool, nonzero, index, tolist, tensor, equal


@pytest.mark.parametrize("ragged", [False, True], ids=["equal", "ragged"])
@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (Plan(block_length=6), 1),
        (Plan(block_length=6, official=True, eos="last", order="random"), 1),
        (Plan(steps=5, eos="never", order="margin", remask="remdm"), 1),
        (Plan(block_length=6, temperature=0.8, count="threshold", stop_at_eos=True), 1),
        (Plan(count="entropy_bound", order="entropy", aligned=True, block_length=6), 1),
        (Plan(block_length=6, count="threshold", bound=0.05, remask="verify"), 2),
        (Plan(count="threshold", length="rho_eos", grow=2, max_length=20), 2),
    ],
    ids=["quota", "official", "steps", "threshold", "entropy", "verify", "rho_eos"],
)
def test_a_step_waits_once(tiny: Any, monkeypatch: pytest.MonkeyPatch, plan: Plan, expected: int, ragged: bool) -> None:
    assert set(count(tiny(16, 4), plan, ragged, monkeypatch)) == {expected}


def test_guidance_and_caches(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(block_length=6)
    assert set(count(Guided(tiny(16), 1.0, SPECIALS.mask), plan, True, monkeypatch)) == {1}
    assert set(count(Cached(tiny(16), "dual"), plan, False, monkeypatch)) == {4}
    assert set(count(Cached(tiny(16), "prefix"), plan, True, monkeypatch)) == {4}


def count(denoiser: Any, plan: Plan, ragged: bool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The waits of each step but the first, which also puts the special ids on the device."""
    canvas, real = lay_out([[1, 2, 3], [4] * 5 if ragged else [4] * 3], 12, SPECIALS)
    states = generate(denoiser, canvas, SPECIALS, plan, real=real)
    next(states), next(states)
    waits, totals = Waits(monkeypatch), [0]
    with waits:
        for _ in states:
            totals.append(waits.count)
    assert waits.count == totals[-1] + 1  # to see that all rows are done
    return [after - before for before, after in pairwise(totals)]
