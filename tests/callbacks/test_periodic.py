"""A periodic callback looks every n steps and at the end, in eval mode, and leaves the net as it was."""

from __future__ import annotations

from typing import Any

import torch

from lit_llada.callbacks.periodic import Periodic, evaluating


class Watch(Periodic):
    """Notes when it looks, and whether the net is in eval mode then."""

    def __init__(self, every_n_steps: int, before: bool = False) -> None:
        super().__init__(every_n_steps, before)
        self.looks: list[tuple[int, bool]] = []

    def look(self, trainer: Any, pl_module: Any) -> int:
        self.looks.append((trainer.global_step, pl_module.denoiser.training))
        return trainer.global_step


def test_it_looks_every_n_steps_and_at_the_end_and_once_only_at_each(toy: Any) -> None:
    two, three, never = Watch(2), Watch(3), Watch(100)
    module, _ = toy.fit([two, three, never], max_steps=4)
    assert [step for step, _ in two.looks] == [2, 4] and two.start is None
    assert [step for step, _ in three.looks] == [3, 4]
    assert never.looks == [(4, False)]
    assert module.net.training


def test_it_looks_before_the_first_step_if_wished_and_keeps_what_it_saw(toy: Any) -> None:
    watch = Watch(2, before=True)
    toy.fit([watch], max_steps=3)
    assert watch.looks == [(0, False), (2, False), (3, False)] and watch.start == 0


def test_every_part_gets_its_mode_back() -> None:
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    net[1].eval()
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
