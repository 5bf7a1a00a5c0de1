"""Seeds: what follows from one is the same for ever, and no two streams of noise are one."""

from __future__ import annotations

import itertools

import pytest
import torch

from lit_llada.objectives.noise import keyed_uniform
from lit_llada.seeding import Stream, mix, seed_of_run


def test_a_mixed_seed_is_the_number_that_older_runs_were_made_with() -> None:
    assert mix(0, 7) == 7 and mix(1, 7) == 1_000_010 and mix(-2, 5) == 2**63 - 2_000_001
    assert mix(2**62, 3) == (2**62 * 1_000_003 + 3) % 2**63 < 2**63
    assert mix(mix(1, 2), 3, 1_009) == (1_000_003 + 2) * 1_009 + 3


def test_parts_of_neighbouring_seeds_do_not_meet() -> None:
    found = [mix(seed, number) for seed in range(-3, 4) for number in range(500)]
    assert len(set(found)) == len(found)


def test_streams_keep_their_values_and_no_two_are_alike() -> None:
    values = {"TIME": 0, "MASK": 1, "LENGTH": 2, "LENGTH_GATE": 3, "COUNT": 21, "WHICH": 22}
    values |= {"TOKEN": 101, "TURN": 102, "BACK": 103}
    assert {stream.name: stream.value for stream in Stream} == values
    assert len(Stream.__members__) == len(set(values.values()))  # a second name of a value would be an alias


def test_streams_of_the_same_other_keys_are_not_correlated() -> None:
    keys = torch.arange(4000)
    drawn = {stream: keyed_uniform(5, stream, keys) for stream in Stream}
    for one, other in itertools.combinations(drawn.values(), 2):
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.08


def test_a_runs_seed_is_its_own_or_that_of_seed_everything_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert (seed_of_run(None), seed_of_run(0)) == (1, 0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    assert (seed_of_run(None), seed_of_run(3)) == (12, 3)
