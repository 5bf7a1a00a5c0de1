"""Seeds: the one of a run, those that follow from another one, and the streams of the keyed noise."""

from __future__ import annotations

import os
from enum import IntEnum, unique


@unique
class Stream(IntEnum):
    """What a number of :func:`~lit_llada.objectives.noise.keyed_uniform` is for; one of its keys.

    Numbers of two streams do not depend on each other. The values are those that older runs have drawn with.
    """

    TIME = 0  # the noise level of a sample
    MASK = 1  # which tokens of a sample are masked
    LENGTH = 2  # the length that a step's rows are cut to
    LENGTH_GATE = 3  # whether they are cut
    COUNT = 21  # preference: how many tokens of an answer are masked
    WHICH = 22  # preference: which of them
    TOKEN = 101  # sampling: the token of a position
    TURN = 102  # sampling: whose turn it is, in random order
    BACK = 103  # sampling: which tokens are taken back


def seed_of_run(seed: int | None) -> int:
    """The given seed, or else what ``lightning.seed_everything`` has set, or else 1."""
    return int(os.environ.get("PL_GLOBAL_SEED", 1)) if seed is None else seed


def mix(seed: int, number: int, factor: int = 1_000_003) -> int:
    """The seed of a numbered part of something that has a seed: a parameter, a prompt, a sample.

    Args:
        seed: seed of the whole.
        number: number of the part, below ``factor``, so that no part of one seed meets a part of the next.
        factor: distance of two seeds.
    """
    return (seed * factor + number) % 2**63
