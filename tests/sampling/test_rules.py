"""A count rule is one entry of RULES: the plan, the sampler, calibration and the help know it by that alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_llada.cli.options import add_options, given
from lit_llada.cli.parser import Parser
from lit_llada.errors import UserError
from lit_llada.evaluation.calibration import plans_to_try
from lit_llada.sampling import rules
from lit_llada.sampling.generate import generate
from lit_llada.sampling.plan import Plan
from lit_llada.sampling.rules import RULES, Rule, entropy_bound, factor, frechet, threshold
from lit_llada.text.specials import Specials

VOCABULARY, MASK = 9, 8


def first_so_many(doubt: Tensor, entropy: Tensor, bound: float) -> Tensor:
    """So many as the bound says, however unsure they are."""
    return doubt.new_ones(doubt.shape).cumsum(1) <= bound


@pytest.fixture
def toy_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "so_many", Rule("the first so many", 3.0, [2.0, 5.0], first_so_many))


def test_a_new_rule_samples(toy_rule: None, Table: Any) -> None:
    canvas = torch.full((1, 7), MASK)
    for bound, expected in ((None, [3, 3, 1]), (2, [2, 2, 2, 1]), (5, [5, 2])):
        states = list(generate(Table(VOCABULARY), canvas, Specials(MASK), Plan(count="so_many", bound=bound)))
        assert [int(state.committed.sum()) for state in states[1:]] == expected


def test_a_new_rule_is_calibrated_over_its_own_bounds(toy_rule: None) -> None:
    one, *tried = plans_to_try(Plan(), ["so_many"], None)
    assert one.count == "quota" and [(plan.count, plan.limit) for plan in tried] == [("so_many", 2.0), ("so_many", 5.0)]


def test_a_new_rule_is_an_option_and_its_words_are_in_the_help(toy_rule: None) -> None:
    parser = Parser()
    add_options(parser)
    assert given(parser.parse_args(["--count", "so_many"]).as_dict()) == {"count": "so_many"}
    assert "so_many: the first so many" in " ".join(parser.format_help().split())


def test_an_unknown_rule_is_refused_with_the_names_that_there_are(toy_rule: None) -> None:
    with pytest.raises(UserError, match=r"count is 'all'; it is one of quota, threshold, .*, so_many$"):
        Plan(count="all")


def test_without_the_entry_the_rule_is_unknown() -> None:
    assert "so_many" not in RULES
    with pytest.raises(UserError, match=r"count is 'so_many'"):
        Plan(count="so_many")


def test_each_rule_takes_as_many_as_its_formula_says() -> None:
    doubt = torch.tensor([[0.05, 0.1, 0.3, 1.0]], dtype=torch.float64)
    entropy = torch.tensor([[0.2, 0.1, 0.3, torch.inf]], dtype=torch.float64)
    assert threshold(doubt, entropy, 0.9 - 1e-9).tolist() == [[True, True, False, False]]
    assert factor(doubt, entropy, 0.31).tolist() == [[True, True, False, False]]  # 2 * 0.05, 3 * 0.1, 4 * 0.3
    assert frechet(doubt, entropy, 0.26).tolist() == [[True, True, False, False]]  # 0.1, 0.25, 0.75
    assert entropy_bound(doubt, entropy, 0.2).tolist() == [[True, True, False, False]]  # 0, 0.1, 0.3
