"""What a predictor says of itself decides which plans it may serve; a bare net is a plain one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_llada.errors import UserError
from lit_llada.sampling.canvas import View, lay_out
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.predictor import Plain, Predictor, padding_mask, predictor_of
from lit_llada.text.specials import Specials

MASK, EOS = 8, 7
SPECIALS = Specials(MASK, EOS)


def refused(words: str, call: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(UserError, match=words) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)


class Nobody(Predictor):
    """A predictor that must not be asked."""

    def __call__(self, _: View) -> torch.Tensor:
        raise AssertionError("asked before the input was checked")


class Cached(Nobody):
    cached = True


@pytest.mark.parametrize(
    "options",
    [{"stop_at_eos": True}, {"eos": "last"}, {"eos": "never"}, {"length": "rho_eos", "count": "threshold"}],
    ids=str,
)
def test_rules_about_an_end_that_is_not_known(options: dict[str, Any]) -> None:
    canvas = torch.full((1, 4), MASK)
    refused("give specials.eos", lambda: list(generate(Nobody(), canvas, Specials(MASK), Plan(**options))))


@pytest.mark.parametrize(
    "options", [{"remask": "verify"}, {"length": "rho_eos", "count": "threshold"}], ids=["verify", "rho_eos"]
)
def test_what_a_cache_cannot_serve(options: dict[str, Any]) -> None:
    canvas = torch.full((1, 4), MASK)
    refused("a cache goes neither with", lambda: list(generate(Cached(), canvas, SPECIALS, Plan(**options))))


@pytest.mark.parametrize("official", [False, True])
def test_fewer_steps_than_blocks(official: bool) -> None:
    canvas, real = lay_out([[1], [2, 2]], [2, 6], SPECIALS)
    plan = Plan(steps=2, block_length=2, official=official)
    refused("2 steps are too few for 3 blocks", lambda: list(generate(Nobody(), canvas, SPECIALS, plan, real=real)))


def test_a_bare_net_becomes_a_plain_predictor_and_a_predictor_stays_itself(Table: Any) -> None:
    table, nobody = Table(9), Nobody()
    plain = predictor_of(table)
    assert isinstance(plain, Plain) and plain.net is table and predictor_of(nobody) is nobody
    assert (plain.cached, plain.least_forwards) == (False, 1)


def test_a_plain_predictor_asks_for_the_positions_of_a_view_and_hides_its_padding(Table: Any) -> None:
    tokens, real = torch.tensor([[1, MASK, MASK], [2, MASK, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    no = torch.zeros_like(real)
    view = View(tokens, real, torch.tensor([1, 4]), torch.tensor([0, 1]), no, no, no[:, 0])
    table = Table(9)
    expected = torch.stack((table.logits((1, MASK, MASK))[1], table.logits((2, MASK))[1]))
    assert torch.equal(Plain(table)(view), expected) and table.shapes == [(2, 2)]
    assert padding_mask(view._replace(real=None)) is None
