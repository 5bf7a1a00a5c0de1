"""Visits are counted by hand here, and summed over ranks; a dense net is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_llada.callbacks.router import RouterLoad, balance, visits

SCALARS = {f"{who}/{what}" for who in ("masked", "visible", "all") for what in ("peak", "entropy", "dead")} | {"split"}


def outputs() -> dict[str, Any]:
    """One layer, four experts, two rows of two tokens: chosen 01, 01, 23, 02; the first and the last are masked."""
    logits = torch.full((1, 4, 4), -5.0)
    for token, chosen in enumerate([(0, 1), (0, 1), (2, 3), (0, 2)]):
        logits[0, token, list(chosen)] = 5.0
    return {"router_logits": logits, "masked": torch.tensor([[True, False], [False, True]])}


def module(bias: torch.Tensor | None = None) -> Any:
    net = torch.nn.Module()
    net.register_buffer("expert_bias", bias)
    return SimpleNamespace(net=net, backbone=SimpleNamespace(experts_per_token=2))


def test_visits_by_hand() -> None:
    assert visits(module(), outputs()).tolist() == [[[2, 1, 1, 0]], [[1, 1, 1, 1]]]


def test_an_expert_bias_takes_part_in_the_choice() -> None:
    counts = visits(module(torch.tensor([0.0, 0.0, 0.0, 9.0])), outputs())
    assert counts[..., 3].tolist() == [[2], [2]]


def test_balance_figures() -> None:
    values = balance(torch.tensor([[[4.0, 0, 0, 0]], [[1.0, 1, 1, 1]]]))
    assert set(values) == SCALARS
    assert (values["masked/peak"], values["masked/entropy"], values["masked/dead"]) == (4, 0, 0.75)
    assert (values["visible/peak"], values["visible/entropy"], values["visible/dead"]) == (1, pytest.approx(1), 0)
    assert values["split"] == 0.75
    empty = balance(torch.tensor([[[0.0, 0]], [[2.0, 2]]]))  # a batch without a masked token
    assert empty["masked/peak"] == 0 and empty["visible/peak"] == 1


def test_a_sparse_net_is_logged_and_a_dense_one_is_not(toy: Any) -> None:
    options = {"limit_val_batches": 1.0, "val_check_interval": 4, "max_steps": 4}
    toy.fit([RouterLoad(every_n_steps=2)], experts=4, logger=toy.board(), **options)
    events = toy.events()
    tags = set(events.Tags()["scalars"])
    assert {f"{p}/{name}" for p in ("router", "val_router") for name in SCALARS} <= tags
    assert [e.step for e in events.Scalars("router/split")] == [2, 4]
    assert len(events.Images("router/load")) == 2 and len(events.Images("val_router/load")) == 1
    toy.folder = toy.folder / "dense"
    toy.fit([RouterLoad(every_n_steps=2)], logger=toy.board(), **options)
    assert not [tag for tag in toy.events().Tags()["scalars"] if "router" in tag]


def test_a_test_run_has_figures_of_its_own(toy: Any) -> None:
    data = toy.data()
    data.test_dataloader = data.val_dataloader
    toy.trainer([RouterLoad()], logger=toy.board()).test(toy.module(4), data, verbose=False)
    tags = {tag for tag in toy.events().Tags()["scalars"] if "router" in tag}
    assert tags == {f"test_router/{name}" for name in SCALARS}


def first_look(rank: int, toy: Any, world: int) -> None:
    """One step on eight rows, dealt out to the ranks."""
    torch.manual_seed(3)
    data, size = toy.data(), 8 // world
    rows = toy.batch(list(range(rank * size, (rank + 1) * size)))
    data.train_dataloader = lambda: torch.utils.data.DataLoader([rows], batch_size=None)
    options = {"strategy": "ddp", "devices": world} if world > 1 else {}
    toy.trainer([RouterLoad(1)], logger=toy.board(), max_steps=1, **options).fit(toy.module(4), data)


def test_ranks_are_summed(toy: Any, forked: Any) -> None:
    forked(first_look, 2, toy, 2)
    two = {name: toy.events().Scalars(f"router/{name}")[0].value for name in SCALARS}
    toy.folder = toy.folder / "one"
    first_look(0, toy, 1)
    assert {name: toy.events().Scalars(f"router/{name}")[0].value for name in SCALARS} == pytest.approx(two, rel=1e-5)
